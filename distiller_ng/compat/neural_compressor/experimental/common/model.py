"""Neural Compressor's wrapper of a model, and calling models with whatever a loader yields (layer 5)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from distiller_ng.errors import ArgumentError
from distiller_ng.ops.modules import convert_tensors_recursively_to

__all__ = ["Model", "as_model", "forward", "moved"]


class Model:
    """``Model(module).model`` is ``module``; a wrapper may be given again. Raises :class:`ArgumentError` for no module.

    >>> Model(Model(nn.ReLU())).model
    ReLU()
    """

    def __init__(self, root: nn.Module | Model) -> None:
        module = root.model if isinstance(root, Model) else root
        if not isinstance(module, nn.Module):
            raise ArgumentError(f"expected a torch.nn.Module, got a {type(module).__name__}", argument=("root",))
        self.model: nn.Module = module

    def __repr__(self) -> str:
        return f"Model({type(self.model).__name__})"


def as_model(value: Any, whose: str) -> Model | None:
    """``value`` wrapped; None stays. The error says ``whose`` model it should have been."""
    if value is None or isinstance(value, Model):
        return value
    if not isinstance(value, nn.Module):
        raise ArgumentError(
            f"{whose} is a torch.nn.Module or common.Model(module), got a {type(value).__name__}", argument=(whose,)
        )
    return Model(value)


def forward(model: nn.Module, inputs: Any) -> Any:
    """``model(**inputs)`` for a mapping, ``model(*inputs)`` for a tuple or list, else ``model(inputs)``."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, list | tuple) else model(inputs)


def moved(value: Any, device: torch.device | str) -> Any:
    """``value`` with every tensor in it on ``device``."""
    plain = dict(value) if isinstance(value, Mapping) else value
    return convert_tensors_recursively_to(plain, device)
