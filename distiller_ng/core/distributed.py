"""What replicas must agree on: masks are decided on rank 0 and broadcast; which of them writes files (layer 1)."""

from __future__ import annotations

from collections.abc import Mapping

import torch.distributed as dist
from torch import Tensor

__all__ = ["broadcast_masks", "is_main_process"]


def broadcast_masks(masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rank 0's masks on every rank; the masks themselves without a process group.

    Replicas hold equal weights, but not equal activations or random numbers, so decisions could differ. All ranks
    must call this with the same names in the same order.
    """
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return dict(masks)
    agreed: dict[str, Tensor] = {}
    for name, mask in masks.items():
        shared = mask.contiguous().clone()
        dist.broadcast(shared, src=0)
        agreed[name] = shared
    return agreed


def is_main_process() -> bool:
    """Whether this process writes files: rank 0, or the only one."""
    return not (dist.is_available() and dist.is_initialized()) or int(dist.get_rank()) == 0
