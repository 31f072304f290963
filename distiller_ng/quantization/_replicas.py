"""What replicas of a data-parallel run must agree on: ranges seen in activations (layer 2)."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor

__all__ = ["largest_of_replicas", "mean_of_replicas"]


def largest_of_replicas(values: Tensor) -> Tensor:
    """The elementwise maximum over all processes; ``values`` itself in a single one."""
    return _reduced(values, "max")


def mean_of_replicas(values: Tensor) -> Tensor:
    """The elementwise mean over all processes; ``values`` itself in a single one."""
    return _reduced(values, "mean")


def _reduced(values: Tensor, how: str) -> Tensor:
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return values
    shared = values.detach().clone()
    dist.all_reduce(shared, op=dist.ReduceOp.MAX if how == "max" else dist.ReduceOp.SUM)
    return shared if how == "max" else shared / dist.get_world_size()
