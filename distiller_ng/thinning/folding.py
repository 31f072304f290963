"""What a channel whose filter is zero still sends on, moved into the next layer's bias (layer 2).

A zero filter in front of a batch norm leaves the norm's shift, the same value everywhere. Where the next layer is
Linear, or a convolution without padding, that constant times its weights is a bias.
Channels whose filters are not zero are not touched, whatever their values happen to be on the example inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from distiller_ng.graph._failures import MODEL_FAILURES
from distiller_ng.graph.inputs import ExampleInputs
from distiller_ng.thinning.cutting import Journal
from distiller_ng.thinning.plan import ThinningPlan
from distiller_ng.thinning.sizes import modules_by_name
from distiller_ng.thinning.verification import outputs_of

__all__ = ["fold_constants"]


@torch.no_grad()
def fold_constants(model: nn.Module, inputs: ExampleInputs, plan: ThinningPlan, journal: Journal) -> list[str]:
    """Add to biases what channels of zero filters, about to be removed, contribute; names of the layers changed.

    Left alone are layers without a bias, convolutions with padding (their borders see zeros instead), and inputs that
    are not the same constant on other inputs.
    """
    modules = modules_by_name(model)
    readers: dict[str, tuple[int, ...]] = {}
    for tensor, entries in plan.constant.items():
        owner, _, leaf = tensor.rpartition(".")
        if leaf == "weight" and _can_take(modules.get(owner)):
            readers[owner] = entries
    if not readers:
        return []
    seen: dict[str, list[Tensor]] = {}
    handles = [modules[name].register_forward_pre_hook(_recorder(name, seen)) for name in readers]
    try:
        outputs_of(model, inputs)
        outputs_of(model, _other(inputs))
    except MODEL_FAILURES:
        return []  # other values are not allowed, so nothing says what is constant
    finally:
        for handle in handles:
            handle.remove()
    return [name for name, entries in readers.items() if _fold(modules[name], entries, seen.get(name, []), journal)]


def _other(inputs: ExampleInputs) -> ExampleInputs:
    """Inputs of the same shapes with other values; whole numbers stay within those that occur."""
    generator = torch.Generator().manual_seed(0)

    def changed(tensor: Tensor) -> Tensor:
        if tensor.is_floating_point():
            noise = torch.randn(tensor.shape, generator=generator).to(tensor)
            return tensor * 0.5 + noise * (1 + tensor.abs().mean())
        return tensor.flatten().roll(1).reshape(tensor.shape)

    args, kwargs = tree_map_only(Tensor, changed, (inputs.args, dict(inputs.kwargs)))
    return ExampleInputs(args, kwargs)


def _can_take(module: nn.Module | None) -> bool:
    if isinstance(module, nn.Linear):
        return module.bias is not None
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        unpadded = module.padding == "valid" or (not isinstance(module.padding, str) and not any(module.padding))
        return module.groups == 1 and unpadded and module.bias is not None
    return False


def _recorder(name: str, seen: dict[str, list[Tensor]]) -> Any:
    def record(module: nn.Module, args: tuple[Any, ...]) -> None:
        seen.setdefault(name, []).append(args[0].detach())

    return record


def _fold(module: nn.Module, entries: Sequence[int], inputs: Sequence[Tensor], journal: Journal) -> bool:
    if len(inputs) != 2:  # called twice in one pass: its input is not one constant
        return False
    weight: Tensor = module.weight  # type: ignore[assignment]
    bias: Tensor = module.bias  # type: ignore[assignment]
    channel = -1 if isinstance(module, nn.Linear) else inputs[0].dim() - weight.dim() + 1
    index = torch.tensor(entries, device=weight.device)
    values = torch.cat([x.movedim(channel, 0).flatten(1).index_select(0, index) for x in inputs], dim=1)
    constant = values[:, 0]
    if not torch.allclose(values, constant[:, None], rtol=1e-5, atol=1e-7) or not constant.any():
        return False
    rows = weight.index_select(1, index).flatten(2).sum(-1) if weight.dim() > 2 else weight.index_select(1, index)
    journal.set_data(bias, bias.data + (rows.double() @ constant.double()).to(bias.dtype))
    return True
