"""Parameters that join a model after DistributedDataParallel wrapped it (layer 2)."""

from __future__ import annotations

from collections.abc import Iterable

import torch.distributed as dist
from torch import Tensor, nn

__all__ = ["average_gradients"]


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Average the gradients of ``parameters`` over all processes whenever a backward pass has accumulated them.

    DistributedDataParallel does so only for the parameters it found when it was made. Averaging what has accumulated so
    far again in later micro-batches changes nothing: that part is equal everywhere.
    """
    for parameter in parameters:
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(_average)  # type: ignore[no-untyped-call]


def _average(parameter: Tensor) -> None:
    if parameter.grad is not None and dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(parameter.grad)
        parameter.grad /= dist.get_world_size()
