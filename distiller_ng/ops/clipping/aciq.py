"""ACIQ: the analytically best clipping of a Gauss or Laplace distribution (layer 1).

Source: R. Banner et al., "Post-training 4-bit quantization of convolution networks for rapid-deployment",
https://arxiv.org/abs/1810.05723.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from distiller_ng.ops.clipping.aciq_alpha import Distribution, aciq_alpha
from distiller_ng.ops.clipping.base import CLIPPINGS, Clipping, rows_along
from distiller_ng.ops.linear_quantization import LinearQuantMode

__all__ = ["GaussClipping", "LaplaceClipping"]


class _AciqClipping(Clipping):
    """Symmetric: ``-+(|mean| + alpha * deviation)``. Asymmetric: from ``max(avg_min, mean - alpha * deviation)``.

    The asymmetric range is ``2 * alpha * deviation`` wide; with ``half_range`` (values that a ReLU follows), one
    ``alpha * deviation`` with the ``alpha`` of one bit more.
    """

    distribution: ClassVar[Distribution]
    deviation: ClassVar[str]  # the statistic

    def __init__(self, *, half_range: bool = False) -> None:
        self.half_range = half_range

    def of_tensor(
        self, values: Tensor, num_bits: int, mode: LinearQuantMode, *, axis: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Of the tensor (the lowest value averaged over the samples in dimension 0), or of each slice."""
        rows = rows_along(values, axis)
        mean = rows.mean(dim=1)
        if self.distribution == "laplace":
            deviation = (rows - mean[:, None]).abs().mean(dim=1)
        else:
            deviation = rows.std(dim=1, correction=1 if rows.shape[1] > 1 else 0)
        lowest = rows.amin(dim=1)
        if axis is None and values.dim():
            lowest = rows_along(values, 0).amin(dim=1).mean().reshape(1)
        low, high = self._range(mean, deviation, lowest, num_bits, mode)
        return (low[0], high[0]) if axis is None else (low, high)

    def of_stats(self, stats: Mapping[str, Any], num_bits: int, mode: LinearQuantMode) -> tuple[Tensor, Tensor]:
        """From ``mean``, the deviation (``std`` or ``b``) and, for asymmetric modes, ``avg_min``."""
        mean, deviation = self.statistic(stats, "mean"), self.statistic(stats, self.deviation)
        lowest = mean if mode.is_symmetric else self.statistic(stats, "avg_min")
        return self._range(mean, deviation, lowest, num_bits, mode)

    def _range(
        self, mean: Tensor, deviation: Tensor, lowest: Tensor, num_bits: int, mode: LinearQuantMode
    ) -> tuple[Tensor, Tensor]:
        half_range = self.half_range and not mode.is_symmetric
        distance = deviation * aciq_alpha(num_bits, self.distribution, half_range=half_range)
        if mode.is_symmetric:
            clip = mean.abs() + distance
            return -clip, clip
        low = torch.maximum(lowest, mean - distance)
        return low, low + (distance if half_range else 2 * distance)


@CLIPPINGS.register("GAUSS")
class GaussClipping(_AciqClipping):
    """ACIQ for values with a Gauss distribution.

    8 bits, symmetric, mean 0, standard deviation 0.5: ``-1.96 .. 1.96`` (alpha is 3.92). ::

        clip_acts: GAUSS
        clip_half_range: true   # only asymmetric: a ReLU follows
    """

    name = "GAUSS"
    needs = ("mean", "std", "avg_min")
    distribution = "gauss"
    deviation = "std"


@CLIPPINGS.register("LAPLACE")
class LaplaceClipping(_AciqClipping):
    """ACIQ for values with a Laplace distribution, which has heavier tails.

    8 bits, symmetric, mean 0, mean absolute deviation 0.5: ``-4.945 .. 4.945`` (alpha is 9.89). ::

        clip_acts: LAPLACE
    """

    name = "LAPLACE"
    needs = ("mean", "b", "avg_min")
    distribution = "laplace"
    deviation = "b"
