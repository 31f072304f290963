"""Clipping at the average of the samples' extremes (layer 1)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from distiller_ng.errors import ArgumentError
from distiller_ng.ops.clipping.base import CLIPPINGS, Clipping, rows_along, symmetric_range
from distiller_ng.ops.linear_quantization import LinearQuantMode

__all__ = ["AverageClipping"]


@CLIPPINGS.register("AVG")
class AverageClipping(Clipping):
    """Mean over the samples (dimension 0) of each sample's minimum and maximum.

    Source: N. Zmora et al., "Neural Network Distiller", https://arxiv.org/abs/1910.12232 (``clip_acts: avg``). Samples
    ``[-1, 3]`` and ``[0, 5]`` give ``-0.5 .. 4``. ::

        clip_acts: AVG
    """

    name = "AVG"
    needs = ("avg_min", "avg_max")

    def of_tensor(
        self, values: Tensor, num_bits: int, mode: LinearQuantMode, *, axis: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Averages over dimension 0. Raises :class:`ArgumentError` with an axis: channels have no samples."""
        if axis is not None:
            raise ArgumentError(
                "AVG clipping averages over the samples of a batch, so it cannot be used per channel: use NONE, N_STD, "
                "GAUSS, LAPLACE or MSE there",
                argument=("clip_acts",),
            )
        samples = rows_along(values, 0 if values.dim() else None)
        return symmetric_range(samples.amin(dim=1).mean(), samples.amax(dim=1).mean(), mode)

    def of_stats(self, stats: Mapping[str, Any], num_bits: int, mode: LinearQuantMode) -> tuple[Tensor, Tensor]:
        """The statistics' ``avg_min`` and ``avg_max``."""
        return symmetric_range(self.statistic(stats, "avg_min"), self.statistic(stats, "avg_max"), mode)
