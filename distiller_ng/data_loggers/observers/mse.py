"""The range with the least quantization error (layer 2)."""

from __future__ import annotations

from torch import Tensor

from distiller_ng.data_loggers.observers._searched import SearchedRangeObserver
from distiller_ng.data_loggers.observers.base import OBSERVERS
from distiller_ng.ops.clipping import mse_range
from distiller_ng.ops.histogram import Histogram

__all__ = ["MSEObserver"]


@OBSERVERS.register("mse")
class MSEObserver(SearchedRangeObserver):
    """Minimises the mean squared error of quantizing what was seen, by :func:`distiller_ng.ops.clipping.mse_range`.

    For 4 bits and many values of a standard Gauss distribution, symmetric: about ``(-2.6, 2.6)``. The range includes 0.
    ::

        observer_named("mse", {"num_bits": 4, "mode": "SYMMETRIC"})
    """

    def search(self, histogram: Histogram) -> tuple[Tensor, Tensor]:
        """By mean squared error."""
        return mse_range(histogram, self.num_bits, self.mode)
