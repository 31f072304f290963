"""Quantizing what flows into a model: a hook on the model that the library owns (layer 2)."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor, nn

__all__ = ["INPUTS_QUANT", "QuantizeInputs", "count_inputs"]

#: Name of the child of the model that quantizes its inputs; Distiller's.
INPUTS_QUANT = "inputs_quant"


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
