"""What preparing a model changes besides its modules, and putting it back when that fails half way (layer 2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["Undo", "leave_fast_paths_"]

# What preparing a model sets on modules that stay.
_ATTRIBUTES = ("fused_modules", "activation_relu_or_gelu", "use_nested_tensor", "function_names")


def leave_fast_paths_(model: nn.Module) -> None:
    """Let torch's transformer encoders call their parts: their fused form computes with the parts' weights itself."""
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            module.activation_relu_or_gelu = 0
        elif isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False


class Undo:
    """Remembers a model's modules, their classes, parameters, buffers and modes; calling it puts all back.

    Values are copied of all parameters but embeddings', which nothing is folded into. A layer that was replaced is in
    the model again.
    """

    def __init__(self, model: nn.Module) -> None:
        self._state = [
            (module, type(module), dict(module._modules), dict(module._parameters), dict(module._buffers))
            for module in model.modules()
        ]
        self._modes = [(module, module.training) for module in model.modules()]
        self._attributes = [
            (module, {name: module.__dict__[name] for name in _ATTRIBUTES if name in module.__dict__})
            for module in model.modules()
        ]
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
        for module, kind, modules, parameters, buffers in self._state:
            module.__class__ = kind
            module._modules.clear()
            module._modules.update(modules)
            module._parameters.clear()
            module._parameters.update(parameters)
            module._buffers.clear()
            module._buffers.update(buffers)
        for module, training in self._modes:
            module.training = training
        for parameter, value in self._values.items():
            if not torch.equal(parameter, value):
                parameter.copy_(value)
        for module, kept in self._attributes:
            for name in _ATTRIBUTES:
                module.__dict__.pop(name, None)
            module.__dict__.update(kept)
