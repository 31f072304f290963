"""One ranking over the scores of several tensors (layer 2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from distiller_ng.ops.masks import lowest_k_mask
from distiller_ng.ops.patterns import NMPattern, nm_mask

__all__ = ["rank_together"]


def rank_together(
    scores: Sequence[Tensor],
    k: int,
    *,
    pattern: NMPattern | None = None,
    protected: Sequence[Tensor | None] = (),
) -> list[Tensor]:
    """Masks with exactly ``k`` zeros over all tensors, where the scores are lowest; equal ones by order, then index.

    With ``pattern``, what it drops inside each tensor goes first. ``protected`` has for each tensor the flat indices
    that are never pruned (``k`` must leave room for them). Each mask has its scores' shape and dtype.

    >>> rank_together([torch.tensor([1.0, 4.0]), torch.tensor([2.0, 3.0])], 3, protected=[torch.tensor([0]), None])
    [tensor([1., 0.]), tensor([0., 0.])]
    """
    dtype = torch.float64 if any(s.dtype == torch.float64 for s in scores) else torch.float32
    device = scores[0].device
    flat = torch.cat([s.detach().reshape(-1).to(device=device, dtype=dtype) for s in scores])
    if pattern is not None:
        dropped = torch.cat([nm_mask(s, pattern).reshape(-1).to(device) == 0 for s in scores])
        # Either only what the pattern drops competes, or all of it is gone and the rest competes.
        if k <= int(dropped.sum()):
            flat = torch.where(dropped, flat, torch.inf)
        else:
            flat = torch.where(dropped, -torch.inf, flat)
    start = 0
    for score, indices in zip(scores, protected):
        if indices is not None:
            flat[indices.to(device) + start] = torch.inf
        start += score.numel()
    keep = lowest_k_mask(flat, k)
    parts = torch.split(keep, [s.numel() for s in scores])
    # Copies: views of one buffer would be kept alive, and saved, as a whole.
    return [part.reshape(s.shape).to(device=s.device, dtype=s.dtype, copy=True) for part, s in zip(parts, scores)]
