"""The range without its rarest values (layer 2)."""

from __future__ import annotations

from torch import Tensor

from distiller_ng.data_loggers.observers.base import OBSERVERS
from distiller_ng.data_loggers.observers.histogram import HistogramObserver
from distiller_ng.errors import ArgumentError

__all__ = ["PercentileObserver"]


@OBSERVERS.register("percentile")
class PercentileObserver(HistogramObserver):
    """Leaves out the values above the given percentile, and as many at the lower end.

    ``percentile``, in percent, above 50 and up to 100: 99.9 keeps all but the largest and the smallest thousandth.

    Source: H. Wu et al., "Integer Quantization for Deep Learning Inference: Principles and Empirical Evaluation",
    https://arxiv.org/abs/2004.09602. Of the numbers 0, 1, ..., 1000 the percentile 99 keeps about ``(10, 990)``. Raises
    :class:`ArgumentError` for another percentile. ::

        observer_named("percentile", {"percentile": 99.9})
    """

    def __init__(self, *, percentile: float = 99.99, bins: int = 2048) -> None:
        is_number = isinstance(percentile, int | float) and not isinstance(percentile, bool)
        if not is_number or not 50.0 < percentile <= 100.0:
            message = f"percentile must be above 50 and up to 100 (in percent), got {percentile!r}"
            raise ArgumentError(message, argument=("percentile",))
        self.percentile = float(percentile)
        super().__init__(bins=bins)

    def chosen_range(self) -> tuple[Tensor, Tensor]:
        """Both percentiles, rounded outwards to a bin, so that a range from exactly 0 stays one."""
        fraction = self.percentile / 100.0
        return self._histogram.quantile_bounds(1.0 - fraction)[0], self._histogram.quantile_bounds(fraction)[1]
