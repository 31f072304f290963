"""Changing optimizers and gradients in place, for parameters that are trained beside the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

__all__ = ["average_gradients_", "broadcast_", "is_replicated", "join_group_"]


def join_group_(optimizer: Optimizer, named: Sequence[tuple[str, nn.Parameter]]) -> None:
    """Give those parameters that ``optimizer`` does not have to it, as a group with the first group's learning rate."""
    known = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    fresh = [(name, parameter) for name, parameter in named if id(parameter) not in known]
    if not fresh:
        return
    first = optimizer.param_groups[0]
    group: dict[str, Any] = {"params": fresh if "param_names" in first else [parameter for _, parameter in fresh]}
    group |= {key: first[key] for key in ("lr", "initial_lr") if key in first}
    optimizer.add_param_group(group)


def average_gradients_(parameters: Sequence[nn.Parameter]) -> None:
    """Average gradients over all ranks, in place. Twice changes nothing; a missing gradient counts as zeros."""
    if not parameters or not is_replicated():
        return
    ranks = torch.distributed.get_world_size()
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        torch.distributed.all_reduce(parameter.grad)
        parameter.grad.div_(ranks)


def broadcast_(tensors: Sequence[Tensor]) -> None:
    """Rank 0's values on every rank, in place."""
    if is_replicated():
        for tensor in tensors:
            torch.distributed.broadcast(tensor.detach(), src=0)


def is_replicated() -> bool:
    """Whether several processes train together."""
    dist = torch.distributed
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
