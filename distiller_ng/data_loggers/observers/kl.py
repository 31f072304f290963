"""The range that keeps the distribution closest (layer 2)."""

from __future__ import annotations

from torch import Tensor

from distiller_ng.data_loggers.observers._searched import SearchedRangeObserver
from distiller_ng.data_loggers.observers.base import OBSERVERS
from distiller_ng.ops.clipping import kl_range
from distiller_ng.ops.histogram import Histogram

__all__ = ["KLObserver"]


@OBSERVERS.register("kl")
class KLObserver(SearchedRangeObserver):
    """Minimises the Kullback-Leibler divergence of the quantized from the real distribution.

    See :func:`distiller_ng.ops.clipping.kl_range` for the source and what is done: TensorRT's entropy calibration. From
    11 bits on the full range is kept. The range includes 0. ::

        observer_named("kl", {"num_bits": 8, "mode": "ASYMMETRIC_UNSIGNED"})
    """

    def search(self, histogram: Histogram) -> tuple[Tensor, Tensor]:
        """By divergence."""
        return kl_range(histogram, self.num_bits, self.mode)
