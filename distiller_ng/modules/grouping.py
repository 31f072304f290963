"""Joining and cutting tensors as modules (layer 2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["Chunk", "Concat", "Split", "Stack"]


class Concat(nn.Module):
    """Joins its inputs along an existing dimension: ``[1.]`` and ``[2., 3.]`` give ``[1., 2., 3.]``."""

    def __init__(self, dim: int = 0) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, *tensors: Tensor) -> Tensor:
        """The inputs, which differ in size along ``dim`` only, one after the other."""
        return torch.cat(tensors, dim=self.dim)

    def extra_repr(self) -> str:
        """The dimension, for the printed model."""
        return f"dim={self.dim}"


class Chunk(nn.Module):
    """Cuts into ``chunks`` parts along ``dim``, the last one smaller if need be: 5 elements in 2 give 3 and 2."""

    def __init__(self, chunks: int, dim: int = 0) -> None:
        super().__init__()
        self.chunks = chunks
        self.dim = dim

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Views of ``x``."""
        return torch.chunk(x, self.chunks, dim=self.dim)

    def extra_repr(self) -> str:
        """The constructor's arguments, for the printed model."""
        return f"chunks={self.chunks}, dim={self.dim}"


class Split(nn.Module):
    """Cuts into parts of one size, or of the sizes listed: 5 elements give 2, 2, 1 (size 2) or 4, 1 (``[4, 1]``).

    ``forward`` raises ``RuntimeError`` (torch's) when listed sizes do not add up to the input's size along ``dim``.
    """

    def __init__(self, split_size_or_sections: int | Sequence[int], dim: int = 0) -> None:
        super().__init__()
        self.split_size_or_sections = (
            split_size_or_sections if isinstance(split_size_or_sections, int) else list(split_size_or_sections)
        )
        self.dim = dim

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Views of ``x``."""
        return torch.split(x, self.split_size_or_sections, dim=self.dim)

    def extra_repr(self) -> str:
        """The constructor's arguments, for the printed model."""
        return f"{self.split_size_or_sections}, dim={self.dim}"


class Stack(nn.Module):
    """Joins a list of equally shaped tensors along a new dimension: two of shape ``[3]`` give ``[2, 3]``."""

    def __init__(self, dim: int = 0) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, tensors: Sequence[Tensor]) -> Tensor:
        """The stacked tensor; unlike :class:`Concat` it takes one list, as Distiller's does."""
        return torch.stack(list(tensors), dim=self.dim)

    def extra_repr(self) -> str:
        """The dimension, for the printed model."""
        return f"dim={self.dim}"
