"""A copy of a value that is about to be overwritten (layer 1)."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["snapshot"]


def snapshot(values: Tensor) -> Tensor:
    """A copy of ``values`` for the backward pass, without autograd history; take it of what a buffer tells a forward.

    Compiled training may compute again in backward what was cheap in forward, from buffers that a later in-place
    update has changed by then (seen with torch 2.13: gradients off by more than their size). A custom operator is never
    computed twice, so its result is kept.

    >>> buffer = torch.ones(2)
    >>> before = snapshot(buffer)
    >>> buffer.add_(1), before
    (tensor([2., 2.]), tensor([1., 1.]))
    """
    copy: Tensor = _snapshot(values.detach())
    return copy


@torch.library.custom_op("distiller_ng::snapshot", mutates_args=(), schema="(Tensor values) -> Tensor")
def _snapshot(values: Tensor) -> Tensor:
    return values.clone()


@_snapshot.register_fake
def _(values: Tensor) -> Tensor:
    return values.clone()
