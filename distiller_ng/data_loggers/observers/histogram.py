"""The distribution of everything seen (layer 2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from distiller_ng.data_loggers.observers.base import OBSERVERS, Observer
from distiller_ng.ops.histogram import Histogram
from distiller_ng.ops.streaming_histogram import StreamingHistogram

__all__ = ["HistogramObserver"]


@OBSERVERS.register("histogram")
class HistogramObserver(Observer):
    """Keeps a histogram in ``bins`` equal bins; the range is the full one, :meth:`histogram` is for choosing another.

    The base of the observers that choose by the distribution. The batches ``[0., 1.]`` and ``[4.]`` give the range
    ``(0.0, 4.0)``. Raises :class:`ArgumentError` for fewer than 2 bins.
    """

    def __init__(self, *, bins: int = 2048) -> None:
        StreamingHistogram(bins)  # refuses a wrong number
        self.bins = bins
        super().__init__()

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self._histogram = StreamingHistogram(self.bins)

    def observe(self, values: Tensor, low: Tensor, high: Tensor) -> None:
        """Count; what is not finite is reported by :meth:`range` and must only not fail here."""
        self._histogram.update(torch.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0))

    def histogram(self) -> Histogram:
        """What was counted, on the CPU."""
        return self._histogram.frozen()

    def chosen_range(self) -> tuple[Tensor, Tensor]:
        """The extremes."""
        return self._histogram.minimum, self._histogram.maximum

    def merge(self, other: HistogramObserver) -> None:
        """Both histograms in one."""
        self._histogram.merge(other._histogram)

    def state(self) -> dict[str, Any]:
        """The histogram."""
        return self._histogram.state_dict()

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`state`."""
        self._histogram.load_state_dict(state)
