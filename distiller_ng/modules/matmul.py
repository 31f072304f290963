"""Matrix products as modules (layer 2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["BatchMatmul", "Matmul"]


class Matmul(nn.Module):
    """``a @ b`` with ``torch.matmul``'s broadcasting: ``[[1., 2.]]`` and ``[[3.], [4.]]`` give ``[[11.]]``."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """``[..., n, k]`` times ``[..., k, m]`` gives ``[..., n, m]``."""
        return torch.matmul(a, b)


class BatchMatmul(nn.Module):
    """One matrix product a batch element, without broadcasting: ``[B, n, k]`` times ``[B, k, m]``."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """``[B, n, m]``; raises ``RuntimeError`` (torch's) when the inputs are not 3-dimensional or do not fit."""
        return torch.bmm(a, b)
