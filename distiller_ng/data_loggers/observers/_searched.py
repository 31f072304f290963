"""Base of the observers that search the range which quantizes a histogram best (layer 2)."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor

from distiller_ng.data_loggers.observers.histogram import HistogramObserver
from distiller_ng.ops.histogram import Histogram
from distiller_ng.ops.linear_quantization import LinearQuantMode, check_bits

__all__ = ["SearchedRangeObserver"]


class SearchedRangeObserver(HistogramObserver):
    """``num_bits`` and ``mode`` (a :class:`LinearQuantMode` or its name) say for which quantization to search.

    Raises :class:`ArgumentError` for wrong bits, an unknown mode and fewer than 2 bins.
    """

    def __init__(
        self, *, num_bits: int = 8, mode: str | LinearQuantMode = LinearQuantMode.ASYMMETRIC_UNSIGNED, bins: int = 2048
    ) -> None:
        self.num_bits = check_bits(num_bits)
        self.mode = LinearQuantMode.parse(mode)
        super().__init__(bins=bins)

    @abstractmethod
    def search(self, histogram: Histogram) -> tuple[Tensor, Tensor]:
        """The best range."""

    def chosen_range(self) -> tuple[Tensor, Tensor]:
        """The best range, no wider than what was seen (for symmetric modes: than its largest magnitude)."""
        low, high = (float(end) for end in self.search(self.histogram()))
        least, most = super().chosen_range()
        if self.mode.is_symmetric:
            reach = least.abs().maximum(most.abs())
            return least.new_tensor(low).clamp(min=-reach), least.new_tensor(high).clamp(max=reach)
        return least.new_tensor(low).clamp(min=least.clamp(max=0)), least.new_tensor(high).clamp(max=most.clamp(min=0))
