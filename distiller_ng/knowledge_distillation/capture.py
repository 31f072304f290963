"""What a model was given and what it and its layers returned, noted by forward hooks during one step (layer 2).

The hooks are plain and do nothing while their recorder is closed; torch.compile traces them, so they must be there
before a compiled model's first call.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.hooks import RemovableHandle

from distiller_ng.errors import LifecycleError
from distiller_ng.graph.inputs import ExampleInputs
from distiller_ng.knowledge_distillation.structures import tensors_in
from distiller_ng.names import unwrap
from distiller_ng.ops.modules import model_find_module

__all__ = ["Call", "Listener", "Recorder", "ambient_autocast", "called_module", "is_compiled", "observe"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Call:
    """One forward pass. ``features`` maps layers to what each returned, once for every time it was called in the pass.

    ``autocast`` is the type autocast computed in, None without it.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    output: Any
    features: Mapping[str, list[Any]]
    autocast: torch.dtype | None = None


class Recorder:
    """Collects what hooks see while it is open; a copy or a pickle of it is empty and closed.

    ``needs_grad``: passes without gradients (an evaluation inside a step) are not noted.

    What a layer returned is noted as it was then, though an operation that follows changes it in place, as the ReLU of
    many networks does: layers for which that happens are copied. One pass over copies shows which those are.
    """

    def __init__(self, needs_grad: bool = False) -> None:
        self.needs_grad = needs_grad
        self.is_open = False
        self.passes: list[tuple[Any, ...]] = []
        self.features: dict[str, list[Any]] = {}
        self._changes: dict[str, bool] = {}  # whether the output of a layer is changed in place after it
        self._originals: list[tuple[str, Tensor, int]] = []  # of this pass: layer, what it returned, version

    def note(self, name: str, output: Any) -> None:
        """What the layer ``name`` returned."""
        if torch.compiler.is_compiling():  # a compiler drops the copies that are not needed
            self.features.setdefault(name, []).append(_copied(output))
            return
        self._originals += [(name, t, t._version) for t in tensors_in(output) if not t.is_inference()]
        self.features.setdefault(name, []).append(_copied(output) if self._changes.get(name, True) else output)

    def note_pass(self, *noted: Any) -> None:
        """The end of a pass: what the model was given and returned, and the type of autocast."""
        args, kwargs, output, autocast = noted
        self.passes.append((args, kwargs, output, self.features, autocast))
        self.features = {}
        if not torch.compiler.is_compiling():
            self._learn()

    def _learn(self) -> None:
        """Which layers' outputs have changed since they were returned."""
        originals, self._originals = self._originals, []
        changed = {name for name, tensor, version in originals if tensor._version != version}
        for name in dict.fromkeys(name for name, _, _ in originals):
            if name in changed and self._changes.get(name) is False:
                logger.warning(
                    "the output of layer %s was changed in place for the first time: this step compares what it was "
                    "changed to, later ones what the layer returns",
                    name,
                )
            self._changes[name] = name in changed or self._changes.get(name, False)

    def open(self) -> None:
        """Forget everything and begin to note."""
        self.clear()
        self.is_open = True

    def close(self) -> None:
        """Forget everything and stop."""
        self.is_open = False
        self.clear()

    def clear(self) -> None:
        """Release what was noted."""
        self.passes = []
        self.features = {}
        self._originals = []

    def calls(self) -> list[Call]:
        """The forward passes noted so far."""
        return [Call(*noted) for noted in self.passes]

    def __deepcopy__(self, memo: dict[int, Any]) -> Recorder:
        return Recorder(self.needs_grad)

    def __reduce__(self) -> tuple[type[Recorder], tuple[bool]]:
        return Recorder, (self.needs_grad,)


class _LayerHook:
    """Notes what a layer returned."""

    def __init__(self, recorder: Recorder, name: str) -> None:
        self.recorder = recorder
        self.name = name

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        recorder = self.recorder
        if recorder.is_open and (torch.is_grad_enabled() or not recorder.needs_grad):
            recorder.note(self.name, output)


class _ModelHook:
    """Closes a pass: notes inputs and output of the model, with what its layers returned."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        recorder = self.recorder
        if recorder.is_open and (torch.is_grad_enabled() or not recorder.needs_grad):
            autocast = None if torch.compiler.is_compiling() else ambient_autocast(output)
            recorder.note_pass(args, kwargs, output, autocast)


class Listener:
    """The hooks of one recorder on one model: on the model as given, and on the named layers inside it.

    Raises :class:`LifecycleError` from :meth:`refresh` when layers were replaced after a compiled model first ran.
    """

    def __init__(self, model: nn.Module, recorder: Recorder, layers: Iterable[str] = ()) -> None:
        self.model = model
        self.recorder = recorder
        self._layers = list(dict.fromkeys(name for name in layers if name))
        self._hooked: dict[str, nn.Module] = {}
        self._paths: dict[str, str] = {}  # names in the model itself, with the parts that wrappers add
        self._handles: dict[str, RemovableHandle] = {}

    @property
    def is_installed(self) -> bool:
        """Whether there are hooks."""
        return bool(self._handles)

    def install(self) -> None:
        """Put the hooks in place; again does nothing."""
        if "" not in self._handles:
            hook = _ModelHook(self.recorder)
            self._handles[""] = self.model.register_forward_hook(hook, with_kwargs=True)
        self.refresh()

    def refresh(self, *, has_run: bool = False) -> None:
        """Follow layers that were replaced (quantization wraps them); ``has_run``: the model was called before."""
        for name in self._layers:
            module = self._find(name)
            if module is None:
                raise LifecycleError(f"layer {name!r}, whose output is distilled, is no longer in the model")
            if self._hooked.get(name) is module:
                continue
            if has_run and is_compiled(self.model):
                raise LifecycleError(
                    f"layer {name!r} was replaced after the compiled model first ran, which does not see hooks that "
                    "come later: change the model first, then compile it"
                )
            if name in self._handles:
                self._handles.pop(name).remove()
            self._handles[name] = module.register_forward_hook(_LayerHook(self.recorder, name))
            self._hooked[name] = module

    def _find(self, name: str) -> nn.Module | None:
        """The module of that name now; where it was before is looked at first, for this is done in every step."""
        path = self._paths.get(name)
        if path is not None:
            try:
                return self.model.get_submodule(path)
            except AttributeError:
                pass
        module = model_find_module(self.model, name)
        if module is not None:
            self._paths[name] = next(n for n, m in self.model.named_modules(remove_duplicate=False) if m is module)
        return module

    def remove(self) -> None:
        """Take all hooks away and release what was noted."""
        for handle in self._handles.values():
            handle.remove()
        self._handles, self._hooked = {}, {}
        self.recorder.close()


def observe(model: nn.Module, example: ExampleInputs, layers: Iterable[str]) -> Call:
    """One pass of the bare model over ``example`` in eval mode, without gradients; its modes are given back."""
    bare = unwrap(model)
    modes = [(module, module.training) for module in bare.modules()]
    recorder = Recorder()
    listener = Listener(bare, recorder, layers)
    try:
        bare.eval()
        listener.install()
        recorder.open()
        with torch.no_grad():
            example.call(bare)
        return recorder.calls()[-1]
    finally:
        listener.remove()
        for module, mode in modes:
            module.training = mode


def called_module(model: nn.Module) -> nn.Module:
    """Where a model's passes are seen whether the loop calls it or a wrapper around it.

    Inside DistributedDataParallel, and DataParallel on one device, whose own hooks see nothing of a call of the model
    itself; ``torch.compile``'s wrapper stays, for what is inside it is seen only by hooks that were there first.
    """
    while isinstance(model, nn.parallel.DistributedDataParallel) or (
        isinstance(model, nn.DataParallel) and len(model.device_ids) < 2
    ):
        model = model.module
    return model


def _copied(output: Any) -> Any:
    return output.clone() if isinstance(output, Tensor) else pytree.tree_map_only(Tensor, Tensor.clone, output)


def is_compiled(model: nn.Module) -> bool:
    """Whether the model, or a module in it, was given to ``torch.compile`` or called its ``compile()``."""
    return any(
        isinstance(getattr(module, "_orig_mod", None), nn.Module)
        or getattr(module, "_compiled_call_impl", None) is not None
        for module in model.modules()
    )


def ambient_autocast(value: Any) -> torch.dtype | None:
    """The type that autocast computes in on the device of the first tensor in ``value``; None where it is off."""
    tensor = next(tensors_in(value), None)
    if tensor is None or not torch.is_autocast_enabled(tensor.device.type):
        return None
    return torch.get_autocast_dtype(tensor.device.type)
