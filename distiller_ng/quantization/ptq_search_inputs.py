"""What layers are called with while a model is evaluated, kept for searches (layer 2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from distiller_ng.errors import ArgumentError, CalibrationError, TargetError, did_you_mean
from distiller_ng.names import canonical_name

__all__ = ["LayerInputs", "get_input_for_layer"]

#: At most so many samples and bytes of one layer's input are kept.
_SAMPLES, _BYTES = 256, 32 * 2**20


def get_input_for_layer(
    model: nn.Module, layer_name: str, eval_fn: Callable[[nn.Module], Any], *, samples: int | None = None
) -> tuple[Any, ...]:
    """The positional arguments that module ``layer_name`` gets while ``eval_fn(model)`` runs, batches joined.

    ``samples`` limits how many are kept. Raises :class:`TargetError` for a name there is not, :class:`CalibrationError`
    where the module did not run, or was not called with tensors alone.
    """
    modules = _modules(model)
    name = canonical_name(layer_name)
    if name not in modules:
        raise TargetError(f"{layer_name!r} is no module of the model. {did_you_mean(name, modules)}")
    limits = (samples, None) if samples is not None else (None, None)
    recorder = _Recorder(*limits)
    handle = modules[name].register_forward_pre_hook(recorder, with_kwargs=True)
    try:
        with torch.no_grad():
            eval_fn(model)
    finally:
        handle.remove()
    return recorder.joined(name)


class LayerInputs:
    """The inputs of several layers, from one pass; a layer's own module in floating point where there is one."""

    def __init__(self, recorders: dict[str, _Recorder], references: dict[str, nn.Module]) -> None:
        self._recorders, self._references = recorders, references

    @classmethod
    def collect(
        cls,
        original_model: nn.Module,
        quantized_model: nn.Module,
        names: Sequence[str],
        eval_fn: Callable[[nn.Module], Any] | None,
        dummy_input: Any = None,
    ) -> LayerInputs:
        """Run ``original_model`` once; layers that it does not have are watched in ``quantized_model``.

        Without ``eval_fn`` it runs on ``dummy_input``. Raises :class:`ArgumentError` without both.
        """
        run = eval_fn if eval_fn is not None else _on(dummy_input)
        modules, quantized = _modules(original_model), _modules(quantized_model)
        recorders = {name: _Recorder(_SAMPLES, _BYTES) for name in names}
        for model, known in ((original_model, modules), (quantized_model, quantized)):
            watched = [name for name in names if name in known and (known is modules or name not in modules)]
            if not watched:
                continue
            handles = [known[n].register_forward_pre_hook(recorders[n], with_kwargs=True) for n in watched]
            try:
                with torch.no_grad():
                    run(model)
            finally:
                for handle in handles:
                    handle.remove()
        return cls(recorders, {name: modules[name] for name in names if name in modules})

    def of(self, name: str) -> tuple[Any, ...]:
        """The layer's positional arguments; raises :class:`CalibrationError` where they are not known."""
        return self._recorders[name].joined(name)

    def settings(self, name: str) -> dict[str, Any]:
        """The layer's keyword arguments: settings of a function, never tensors."""
        return dict(self._recorders[name].settings)

    def reference(self, name: str) -> nn.Module | None:
        """The layer in floating point; None where the quantized model alone has it."""
        return self._references.get(name)


class _Recorder:
    """A forward pre-hook that keeps what a module was called with, up to so many samples and bytes."""

    def __init__(self, samples: int | None, size: int | None) -> None:
        self._left, self._size = samples, size
        self._calls: list[tuple[Any, ...]] = []
        self._obstacle = "it did not run"
        self.settings: dict[str, Any] = {}

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        other = any(isinstance(one, Tensor) for one in kwargs.values())
        if other or not args or not all(isinstance(one, Tensor) and one.dim() for one in args):
            self._obstacle = "it is not called with tensors alone"
            self._calls.clear()
            self._left = 0
            return
        if self._left == 0:
            return
        self.settings = kwargs
        count = len(args[0])
        if self._size is not None and self._left is not None:
            one = sum(tensor.numel() * tensor.element_size() for tensor in args) // max(count, 1)
            self._left = max(1, min(self._left, self._size // max(one, 1)))
            self._size -= min(self._left, count) * one
        taken = count if self._left is None else min(self._left, count)
        if not _share_a_batch(args):
            if self._calls:
                return
            taken = count  # such arguments stay whole, and one call of them is enough
        plain = [one.detach().as_subclass(Tensor) for one in args]
        self._calls.append(tuple((one if taken == count else one[:taken]).clone() for one in plain))
        if self._left is not None:
            self._left = max(0, self._left - taken)

    def joined(self, name: str) -> tuple[Any, ...]:
        if not self._calls:
            raise CalibrationError(f"the inputs of {name!r} are not known: {self._obstacle}")
        shapes = {tuple(tuple(one.shape[1:]) for one in call) for call in self._calls}
        if len(shapes) > 1 or len(self._calls) == 1:
            return self._calls[0]  # batches of other shapes cannot be joined
        return tuple(torch.cat(column) for column in zip(*self._calls, strict=True))


def _share_a_batch(args: tuple[Any, ...]) -> bool:
    """Whether the first dimension of all tensors counts the same samples; not where one is broadcast."""
    return len({(one.dim(), len(one)) for one in args}) == 1


def _modules(model: nn.Module) -> dict[str, nn.Module]:
    return {canonical_name(name): one for name, one in model.named_modules(remove_duplicate=False)}


def _on(dummy_input: Any) -> Callable[[nn.Module], Any]:
    if dummy_input is None:
        raise ArgumentError("eval_fn is needed: it runs the model, to see what the layers get", argument=("eval_fn",))

    def run(model: nn.Module) -> Any:
        return model(*dummy_input) if isinstance(dummy_input, tuple) else model(dummy_input)

    return run
