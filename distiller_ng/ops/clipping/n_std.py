"""Clipping at a number of standard deviations from the mean (layer 1)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from distiller_ng.errors import ArgumentError
from distiller_ng.ops.clipping.base import CLIPPINGS, Clipping, rows_along, symmetric_range
from distiller_ng.ops.linear_quantization import LinearQuantMode

__all__ = ["StandardDeviationClipping"]


@CLIPPINGS.register("N_STD")
class StandardDeviationClipping(Clipping):
    """``mean -+ n_stds * std`` (unbiased), no wider than the real range.

    Mean 1, standard deviation 2, range -9 .. 4 and ``n_stds=2`` give ``-3 .. 4``. ::

        clip_acts: N_STD
        clip_n_stds: 3

    Raises :class:`ArgumentError` unless ``n_stds`` is a positive number.
    """

    name = "N_STD"
    needs = ("min", "max", "mean", "std")

    def __init__(self, n_stds: float) -> None:
        if isinstance(n_stds, bool) or not isinstance(n_stds, Real) or not 0 < float(n_stds) < math.inf:
            raise ArgumentError(
                f"N_STD clipping needs clip_n_stds, a number of standard deviations above 0 such as 3; got {n_stds!r}",
                argument=("clip_n_stds",),
            )
        self.n_stds: float = float(n_stds)

    def of_tensor(
        self, values: Tensor, num_bits: int, mode: LinearQuantMode, *, axis: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Of the tensor, or of each slice along ``axis``."""
        rows = rows_along(values, axis)
        std = rows.std(dim=1, correction=1 if rows.shape[1] > 1 else 0)
        low, high = self._clipped(rows.amin(dim=1), rows.amax(dim=1), rows.mean(dim=1), std)
        return symmetric_range(*((low[0], high[0]) if axis is None else (low, high)), mode)

    def of_stats(self, stats: Mapping[str, Any], num_bits: int, mode: LinearQuantMode) -> tuple[Tensor, Tensor]:
        """From the statistics' ``min``, ``max``, ``mean`` and ``std``."""
        low, high, mean, std = (self.statistic(stats, name) for name in self.needs)
        return symmetric_range(*self._clipped(low, high, mean, std), mode)

    def _clipped(self, low: Tensor, high: Tensor, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
        return torch.maximum(low, mean - self.n_stds * std), torch.minimum(high, mean + self.n_stds * std)
