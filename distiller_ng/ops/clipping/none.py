"""No clipping: the range the values really have (layer 1)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from distiller_ng.ops.clipping.base import CLIPPINGS, Clipping, symmetric_range
from distiller_ng.ops.linear_quantization import LinearQuantMode, axis_min_max

__all__ = ["NoClipping"]


@CLIPPINGS.register("NONE")
class NoClipping(Clipping):
    """``min .. max``: ``[-1, 3]`` gives ``-1 .. 3``, and ``-3 .. 3`` in a symmetric mode.

    ::

        clip_acts: NONE
    """

    name = "NONE"
    needs = ("min", "max")

    def of_tensor(
        self, values: Tensor, num_bits: int, mode: LinearQuantMode, *, axis: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Smallest and largest value; the bits do not matter."""
        return symmetric_range(*axis_min_max(values, axis), mode)

    def of_stats(self, stats: Mapping[str, Any], num_bits: int, mode: LinearQuantMode) -> tuple[Tensor, Tensor]:
        """The statistics' ``min`` and ``max``."""
        return symmetric_range(self.statistic(stats, "min"), self.statistic(stats, "max"), mode)
