"""A compressed model from its checkpoint, ready to run (layer 3)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import nn

from distiller_ng.checkpoint.contents import read_checkpoint
from distiller_ng.checkpoint.files import PathLike
from distiller_ng.checkpoint.loading import restore
from distiller_ng.errors import ArgumentError

__all__ = ["load_model"]

#: Builds the model as its source code has it, before compression.
Factory: TypeAlias = Callable[[], nn.Module]


def load_model(factory: Factory, path: PathLike, device: str | torch.device | None = None) -> nn.Module:
    """The compressed model of a checkpoint: built by ``factory``, its structural changes made again, weights loaded.

    ``factory()`` returns the model as it was before compression, with any weights. Every weight of the file must fit
    and none may be left over. The model is returned in eval mode, on ``device`` if one is given.

    Raises ``FileNotFoundError``, :class:`ArgumentError` for a factory that builds no model, and
    :class:`CheckpointError` for a damaged file or another model's. Example::

        model = distiller_ng.load_model(lambda: create_model(False, "cifar10", "resnet20_cifar"), "best.pth.tar")
    """
    if isinstance(factory, nn.Module) or not callable(factory):
        raise ArgumentError(
            f"factory is a function that builds the model as it was before compression, got {type(factory).__name__}; "
            "to fill a model you have use load_lean_checkpoint(model, path)",
            argument=("factory",),
        )
    checkpoint = read_checkpoint(path)
    model = factory()
    if not isinstance(model, nn.Module):
        message = f"factory() must return a torch.nn.Module, got {type(model).__name__}"
        raise ArgumentError(message, argument=("factory",))
    restored, *_ = restore(checkpoint, model, None, device, lean=True, strict=True)
    return restored.eval()
