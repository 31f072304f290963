"""Taking back a load that failed: the structure of a model and what an optimizer points to (layer 3)."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.optim import Optimizer

from distiller_ng.names import unwrap
from distiller_ng.thinning.cutting import Journal

__all__ = ["Undo"]

_TABLES = ("_parameters", "_buffers", "_modules")


class Undo:
    """Remembers a model's modules, attributes and tensors and an optimizer's state; :meth:`run` puts them back.

    Nothing is copied but references: it takes back what replaces tensors, modules or attributes (thinning, quantizing,
    ``Optimizer.load_state_dict``), not what overwrites values in place.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer | None = None) -> None:
        inner = unwrap(model)
        self._modules = [(module, type(module), _attributes(module)) for module in inner.modules()]
        self._tensors = [(tensor, tensor.data, tensor.grad) for tensor in (*inner.parameters(), *inner.buffers())]
        self._optimizer = optimizer
        self._kept: dict[str, Any] = {}
        if optimizer is not None:  # policies may add groups to the list in place
            self._kept = {**optimizer.__dict__, "param_groups": list(optimizer.param_groups)}

    def run(self) -> None:
        """Put everything back."""
        for module, kind, attributes in self._modules:
            module.__class__ = kind
            module.__dict__.clear()
            module.__dict__.update(attributes)
        for tensor, data, gradient in self._tensors:
            if tensor.shape != data.shape or tensor.data_ptr() != data.data_ptr():
                tensor.grad = None
                Journal().set_data(tensor, data)
                tensor.grad = gradient
        if self._optimizer is not None:
            self._optimizer.__dict__.clear()
            self._optimizer.__dict__.update(self._kept)


def _attributes(module: nn.Module) -> dict[str, Any]:
    return {name: dict(value) if name in _TABLES else value for name, value in module.__dict__.items()}
