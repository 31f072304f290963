"""Reductions as modules (layer 2)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from distiller_ng.errors import ArgumentError

__all__ = ["Mean", "Norm"]

Dims = int | tuple[int, ...] | None
_FROBENIUS = "fro"
_NUCLEAR = "nuc"


class Norm(nn.Module):
    """The norm of a tensor, or of its slices along ``dim``: ``[3., 4.]`` gives ``5.`` with ``p`` = "fro" or 2.

    ``p`` is "fro" (square root of the sum of squares), "nuc" (sum of singular values of matrices) or a number, for the
    vector p-norm (``float("inf")``: the largest magnitude). ``dim`` None takes all elements; ``keepdim`` keeps reduced
    dimensions with size 1. Raises :class:`ArgumentError` for another ``p``.
    """

    def __init__(self, p: float | str = _FROBENIUS, dim: Dims = None, keepdim: bool = False) -> None:
        super().__init__()
        if isinstance(p, str) and p not in (_FROBENIUS, _NUCLEAR):
            raise ArgumentError(f"unknown norm {p!r}. allowed: 'fro', 'nuc' or a number", argument=("p",))
        self.p = p
        self.dim = dim
        self.keepdim = keepdim

    def forward(self, x: Tensor) -> Tensor:
        """The norms; a scalar when ``dim`` is None and ``keepdim`` False."""
        if self.p == _NUCLEAR:
            dims = self.dim if isinstance(self.dim, tuple) else (-2, -1)
            norms: Tensor = torch.linalg.matrix_norm(x, _NUCLEAR, dim=dims, keepdim=self.keepdim)
            return norms
        order = 2.0 if isinstance(self.p, str) else self.p
        norms = torch.linalg.vector_norm(x, order, dim=self.dim, keepdim=self.keepdim)
        return norms

    def extra_repr(self) -> str:
        """The constructor's arguments, for the printed model."""
        return f"p={self.p}, dim={self.dim}, keepdim={self.keepdim}"


class Mean(nn.Module):
    """``torch.mean`` with the arguments given here: ``Mean(dim=1)`` of ``[[1., 3.], [2., 6.]]`` gives ``[2., 4.]``."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        self.args = args
        self.kwargs = kwargs

    def forward(self, x: Tensor) -> Tensor:
        """The mean, over all elements unless a dimension was given."""
        mean: Tensor = torch.mean(x, *self.args, **self.kwargs)
        return mean

    def extra_repr(self) -> str:
        """The arguments, for the printed model."""
        return ", ".join([*map(repr, self.args), *(f"{key}={value!r}" for key, value in self.kwargs.items())])
