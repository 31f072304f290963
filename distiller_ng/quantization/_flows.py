"""Quantizing what flows into a model: a hook on the model that the library owns (layer 2)."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any, ClassVar

from torch import Tensor, nn

from distiller_ng.ops.derived import Derived, derive_

__all__ = ["INPUTS_QUANT", "QuantizeInputs", "attach_inputs_quant_", "count_inputs"]

#: Name of the child of the model that quantizes its inputs; Distiller's.
INPUTS_QUANT = "inputs_quant"


class ListBesideInputs(Derived):
    """An ``nn.Sequential`` whose ``inputs_quant`` is none of the modules it runs one after the other."""

    prefix: ClassVar[str] = ""

    def __iter__(self) -> Iterator[nn.Module]:
        return iter(self._listed())

    def __len__(self) -> int:
        return len(self._listed())

    def __getitem__(self, index: Any) -> Any:
        return self._listed()[index]

    def _listed(self) -> nn.Sequential:
        return nn.Sequential(
            *(child for name, child in self._modules.items() if name != INPUTS_QUANT and child is not None)
        )


def attach_inputs_quant_(model: nn.Module, quantizers: nn.Module) -> None:
    """Make ``quantizers`` the model's ``inputs_quant`` and let its inputs pass through them."""
    model.add_module(INPUTS_QUANT, quantizers)
    if isinstance(model, nn.Sequential):
        derive_(model, ListBesideInputs)
    model.register_forward_pre_hook(QuantizeInputs(), with_kwargs=True)


class QuantizeInputs:
    """A forward pre-hook: the floating point tensors among a model's inputs pass through ``model.inputs_quant``.

    That is one module, or a list with one for each tensor, in order. Integer tensors (token numbers) and tensors beyond
    the list stay as they are. It holds nothing, so copies of the model use their own ``inputs_quant``.
    """

    def __call__(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The inputs to compute with."""
        children = getattr(model, INPUTS_QUANT)
        quantizers = list(children) if isinstance(children, nn.ModuleList) else [children]
        positional = [self._quantized(value, quantizers) for value in args]
        return tuple(positional), {name: self._quantized(value, quantizers) for name, value in kwargs.items()}

    @staticmethod
    def _quantized(value: Any, quantizers: list[nn.Module]) -> Any:
        return quantizers.pop(0)(value) if _is_quantizable(value) and quantizers else value


def count_inputs(model: nn.Module, dummy_input: Any = None) -> int:
    """How many floating point tensors a model takes: of the example, or else its required arguments; at least 1."""
    if dummy_input is not None:
        values = dummy_input if isinstance(dummy_input, list | tuple) else [dummy_input]
        return max(sum(_is_quantizable(value) for value in values), 1)
    parameters = inspect.signature(type(model).forward).parameters.values()
    required = [p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD and p.default is p.empty]
    return max(len(required) - 1, 1)


def _is_quantizable(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()
