"""The loss a minibatch most probably is trained on, where nobody says it (layer 1)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from distiller_ng.errors import ArgumentError

__all__ = ["default_loss"]


def default_loss(outputs: Any, target: Any) -> Tensor:
    """The model's own loss, cross-entropy for whole numbers as targets, the mean squared error for floating point ones.

    ``outputs``: logits ``[N, classes, ...]`` or ``[..., classes]``, the first of several outputs, or an object of a
    model library (``.loss``, ``.logits``). The logits ``[[0, 0]]`` and the target ``[1]`` give ``log 2``.

    Raises :class:`ArgumentError` where none of these fits.
    """
    own = outputs.get("loss") if isinstance(outputs, Mapping) else getattr(outputs, "loss", None)
    if isinstance(own, Tensor):
        return own.mean()
    logits = _logits(outputs)
    if logits is not None and isinstance(target, Tensor):
        if not target.is_floating_point():
            if logits.dim() == target.dim() + 1 and logits.shape[:1] + logits.shape[2:] == target.shape:
                return functional.cross_entropy(logits.float(), target.long())
            if logits.shape[:-1] == target.shape:
                return functional.cross_entropy(logits.flatten(0, -2).float(), target.flatten().long())
        elif logits.shape == target.shape or logits.numel() == target.numel():
            return functional.mse_loss(logits.float(), target.reshape(logits.shape).float())
    shapes = f"{_said(outputs)} and a target {_said(target)}"
    raise ArgumentError(
        f"the loss for outputs {shapes} cannot be guessed: give it, "
        "scheduler.grad_sampler = GradientSampler(loader, loss=criterion)",
        argument=("loss",),
    )


def _logits(outputs: Any) -> Tensor | None:
    if isinstance(outputs, Tensor):
        return outputs
    if isinstance(outputs, Mapping):
        found = outputs.get("logits", next(iter(outputs.values()), None))
    elif isinstance(outputs, tuple | list):
        found = outputs[0] if outputs else None
    else:
        found = getattr(outputs, "logits", None)
    return found if isinstance(found, torch.Tensor) else None


def _said(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{list(value.shape)} of {str(value.dtype).removeprefix('torch.')}"
    return f"({type(value).__name__})"
