"""Putting a model back as it was when a change of it fails half way (layer 2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["Undo"]


class Undo:
    """Remembers a model's modules, parameters, buffers and modes; calling it puts all back.

    Values are copied of all parameters but embeddings', which nothing is folded into. A layer that was replaced is in
    the model again.
    """

    def __init__(self, model: nn.Module) -> None:
        self._state = [
            (module, dict(module._modules), dict(module._parameters), dict(module._buffers), module.training)
            for module in model.modules()
        ]
        self._attributes = [(module, "fused_modules" in module.__dict__) for module in model.modules()]
        self._values: dict[Tensor, Tensor] = {}
        for module in model.modules():
            if isinstance(module, nn.Embedding):
                continue
            for parameter in module._parameters.values():
                if parameter is not None:
                    self._values[parameter] = parameter.detach().clone()

    @torch.no_grad()
    def __call__(self) -> None:
        """Put everything back."""
        for module, modules, parameters, buffers, training in self._state:
            module._modules.clear()
            module._modules.update(modules)
            module._parameters.clear()
            module._parameters.update(parameters)
            module._buffers.clear()
            module._buffers.update(buffers)
            module.training = training
        for parameter, value in self._values.items():
            if not torch.equal(parameter, value):
                parameter.copy_(value)
        for module, had in self._attributes:
            if not had:
                module.__dict__.pop("fused_modules", None)
