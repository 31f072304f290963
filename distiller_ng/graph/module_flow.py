"""What follows a module in the user's unmodified model: its consumers, and the batch norm behind it (layer 1).

Found by running the model once on example inputs, or without them by symbolic tracing. The model is left as it was.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn

from distiller_ng.errors import GraphError
from distiller_ng.graph._failures import MODEL_FAILURES
from distiller_ng.graph._recorder import FlowRecorder, ModuleFlow, leaf_modules
from distiller_ng.names import canonical_name, unwrap

__all__ = [
    "ACTIVATIONS",
    "PASS_THROUGH",
    "FlowRecorder",
    "ModuleFlow",
    "batch_norm_after",
    "batch_norm_pairs",
    "fold_batch_norm_weights",
    "leaf_modules",
    "observe_module_flow",
    "undisturbed",
]

#: Element-wise non-linearities.
ACTIVATIONS: tuple[type[nn.Module], ...] = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish),
    *(nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Threshold),
)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
#: Modules that keep channels where they are and come between a layer and its activation.
PASS_THROUGH: tuple[type[nn.Module], ...] = (
    *_BATCH_NORMS,
    *(nn.GroupNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d, nn.LayerNorm, nn.LocalResponseNorm),
    *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout, nn.Identity),
)
_FOLDABLE = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


def observe_module_flow(model: nn.Module, example_inputs: Any) -> ModuleFlow:
    """Run ``model`` once on ``example_inputs`` (a tensor, or the positional arguments) and record the module flow.

    The pass is in eval mode without gradients; training mode, buffers and random generators are restored. Raises
    :class:`GraphError` when the model does not run on these inputs.
    """
    inner = unwrap(model)
    arguments = tuple(example_inputs) if isinstance(example_inputs, list | tuple) else (example_inputs,)
    recorder = FlowRecorder(inner)
    with undisturbed(inner), torch.no_grad():
        inner.eval()
        recorder.start()
        try:
            inner(*arguments)
        except MODEL_FAILURES as error:
            raise GraphError(
                f"{type(inner).__name__} does not run on the example inputs {_shapes(arguments)}: {error}. Give inputs "
                "as the training loop does: file_config(..., example_inputs=(x,)) or scheduler.example_inputs = (x,)"
            ) from error
        finally:
            flow = recorder.stop()
    return flow


def batch_norm_after(model: nn.Module, module_name: str, flow: ModuleFlow) -> str | None:
    """The batch norm that alone reads the output of ``module_name``; None without one."""
    leaves = leaf_modules(model)
    consumers = flow.consumers(module_name)
    if len(consumers) != 1 or flow.calls(module_name) != 1 or flow.calls(consumers[0]) != 1:
        return None
    return consumers[0] if isinstance(leaves[consumers[0]], _BATCH_NORMS) else None


def batch_norm_pairs(model: nn.Module, module_names: Iterable[str], example_inputs: Any = None) -> dict[str, str]:
    """``{module: batch norm directly behind it}``, canonical; modules without one are left out.

    Without ``example_inputs`` the model is traced by ``torch.fx``. Raises :class:`GraphError` where that fails.
    """
    wanted = [canonical_name(name) for name in module_names]
    if not wanted or not any(isinstance(module, _BATCH_NORMS) for module in leaf_modules(model).values()):
        return {}
    if example_inputs is None:
        follow = _traced_follower(model)
    else:
        flow = observe_module_flow(model, example_inputs)

        def follow(name: str) -> str | None:
            return batch_norm_after(model, name, flow)

    return {name: norm for name in wanted if (norm := follow(name)) is not None}


def fold_batch_norm_weights(
    model: nn.Module,
    names: Iterable[str],
    example_inputs: Any = None,
    *,
    pairs: Mapping[str, str] | None = None,
) -> dict[str, Tensor]:
    """Weights as the batch norm behind their layer scales them, for ranking: ``w * gamma / sqrt(running_var + eps)``.

    ``names`` are weight parameters; those of convolutions and linear layers directly followed by a batch norm with
    running statistics are in the result, each filter scaled by its own factor. The model is not changed. With
    ``w = [[1.0], [1.0]]``, ``gamma = [2, 1]``, ``running_var = [4, 1]`` and ``eps = 0`` the result is
    ``[[1.0], [1.0]]``. ``pairs`` is a result of :func:`batch_norm_pairs` to use instead of looking again.

    Raises :class:`GraphError` when the batch norms cannot be found.
    """
    modules = leaf_modules(model)
    layers: dict[str, str] = {}
    for name in names:
        owner, _, parameter = canonical_name(name).rpartition(".")
        if parameter == "weight" and isinstance(modules.get(owner), _FOLDABLE):
            layers[name] = owner
    known = batch_norm_pairs(model, layers.values(), example_inputs) if pairs is None else pairs
    folded: dict[str, Tensor] = {}
    for name, owner in layers.items():
        norm = modules.get(known.get(owner, ""))
        if isinstance(norm, _BATCH_NORMS) and norm.running_var is not None:
            weight: Tensor = modules[owner].weight  # type: ignore[assignment]
            folded[name] = _folded(weight.detach(), norm)
    return folded


def _folded(weight: Tensor, norm: nn.Module) -> Tensor:
    scale = torch.rsqrt(norm.running_var + norm.eps)  # type: ignore[operator]
    if norm.weight is not None:
        scale = scale * norm.weight.detach()  # type: ignore[operator]
    return weight * scale.to(weight.dtype).reshape(-1, *[1] * (weight.dim() - 1))


def _traced_follower(model: nn.Module) -> Callable[[str], str | None]:
    """A function from a module's name to the batch norm behind it, read from a symbolic trace."""
    inner = unwrap(model)
    try:
        graph = torch.fx.Tracer().trace(inner)
    except MODEL_FAILURES as error:
        raise GraphError(
            f"cannot follow {type(inner).__name__} to the batch norms behind its layers: {error}. Give example inputs, "
            "so that it can be run instead: file_config(..., example_inputs=(x,)) or scheduler.example_inputs = (x,)"
        ) from error
    modules = dict(inner.named_modules())
    calls: dict[str, list[torch.fx.Node]] = {}
    for node in graph.nodes:
        if node.op == "call_module":
            calls.setdefault(canonical_name(str(node.target)), []).append(node)

    def follow(name: str) -> str | None:
        nodes = calls.get(name, [])
        users = list(nodes[0].users) if len(nodes) == 1 else []
        if len(users) != 1 or users[0].op != "call_module":
            return None
        target = str(users[0].target)
        norm = canonical_name(target)
        return norm if isinstance(modules.get(target), _BATCH_NORMS) and len(calls[norm]) == 1 else None

    return follow


@contextlib.contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Put the training modes, buffers and random generators of ``model`` back afterwards."""
    modes = {module: module.training for module in model.modules()}
    buffers = [
        (module, name, buffer, buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]
    devices = {t.device.index for t in (*model.parameters(), *model.buffers()) if t.device.type == "cuda"}
    with torch.random.fork_rng(devices=[d for d in devices if d is not None]):
        try:
            yield
        finally:
            for module, mode in modes.items():
                module.training = mode
            with torch.no_grad():
                for module, name, buffer, before in buffers:
                    module._buffers[name] = buffer  # forward may have assigned a new one
                    if not torch.equal(buffer, before):
                        buffer.copy_(before)


def _shapes(arguments: tuple[Any, ...]) -> str:
    described = [str(list(a.shape)) if isinstance(a, Tensor) else type(a).__name__ for a in arguments]
    return ", ".join(described)
