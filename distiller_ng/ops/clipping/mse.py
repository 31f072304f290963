"""Clipping that minimises the mean squared error of quantization, by search (layer 1).

Clipping adds error at the ends and takes it away everywhere else, so the optimum depends on the data and on the bits.
The search tries hundredths of the real range, then 500ths around the best; an asymmetric range is shrunk as a whole
first, then each end in turn. Of large weights the 100 are tried on a sample, of a histogram with its bins merged. A
histogram's error is integrated exactly within the bins, so the number of bins does not have to exceed the number of
levels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from distiller_ng.ops.clipping.base import CLIPPINGS, Clipping, rows_along, symmetric_range
from distiller_ng.ops.histogram import Histogram
from distiller_ng.ops.linear_quantization import LinearQuantMode, check_range, quantized_range, scale_and_zero_point

__all__ = ["MseClipping", "mse_range", "quantization_error"]

_HISTOGRAM_FROM = 1 << 17  # values; beyond this a histogram of 8192 bins is as good and a hundred times faster
_SAMPLE = 1 << 18  # values of all rows together, for the coarse search
_SMALLEST_SAMPLE = 256  # of one row
_COARSE, _FINE, _AROUND = 100, 500, 5
_FEW_BINS = 512  # of a histogram, for the coarse search
_PIECE = 25  # ranges tried at once


def mse_range(
    values: Tensor | Histogram, num_bits: int, mode: LinearQuantMode, *, axis: int | None = None
) -> tuple[Tensor, Tensor]:
    """The range ``low .. high`` whose quantization has the least mean squared error: scalars, or ``[C]`` with ``axis``.

    For many values of a standard Gauss distribution and 4 bits, symmetric: about ``-2.56 .. 2.56``.

    Raises :class:`ArgumentError` for an empty tensor, NaN or infinity, an axis that does not exist and wrong bits.
    """
    if isinstance(values, Tensor) and axis is None and values.numel() > _HISTOGRAM_FROM:
        values = Histogram.of_tensor(values, bins=8192)
    if isinstance(values, Histogram):
        errors: _Errors = _HistogramErrors(values, num_bits, mode)
        rough: _Errors = _HistogramErrors(_merged(values), num_bits, mode)
        lows, highs = torch.tensor([values.low]), torch.tensor([values.high])
    else:
        rows = rows_along(values, axis)
        errors = _RowErrors(rows, num_bits, mode)
        rough = _RowErrors(_sample(rows), num_bits, mode)
        lows, highs = rows.amin(dim=1), rows.amax(dim=1)
    check_range(lows, highs)
    low, high = _search(errors, rough, lows, highs, mode)
    return (low[0], high[0]) if axis is None else (low, high)


def quantization_error(
    values: Tensor | Histogram, low: float | Tensor, high: float | Tensor, num_bits: int, mode: LinearQuantMode
) -> float:
    """Mean squared error of quantizing ``values`` with the range ``low .. high``.

    >>> round(quantization_error(torch.tensor([0.0, 0.3, 1.0]), 0.0, 1.0, 1, LinearQuantMode.ASYMMETRIC_UNSIGNED), 4)
    0.03
    """
    histogram = isinstance(values, Histogram)
    errors: _Errors
    if isinstance(values, Histogram):
        errors = _HistogramErrors(values, num_bits, mode)
    else:
        errors = _RowErrors(rows_along(values, None), num_bits, mode)
    lowest, highest = check_range(low, high)
    error = errors.of(*(bound.reshape(1) for bound in (lowest, highest)))
    return float(error / (values.counts.sum() if histogram else 1))  # type: ignore[union-attr]


@CLIPPINGS.register("MSE")
class MseClipping(Clipping):
    """The range with the least mean squared quantization error, found by search. ::

    clip_acts: MSE
    """

    name = "MSE"
    needs = ("histogram",)

    def of_tensor(
        self, values: Tensor, num_bits: int, mode: LinearQuantMode, *, axis: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """:func:`mse_range` of the values."""
        return mse_range(values, num_bits, mode, axis=axis)

    def of_stats(self, stats: Mapping[str, Any], num_bits: int, mode: LinearQuantMode) -> tuple[Tensor, Tensor]:
        """:func:`mse_range` of the statistics' ``histogram``."""
        return mse_range(self.histogram(stats), num_bits, mode)


class _Errors(ABC):
    """Squared error of each row for one range a row."""

    def __init__(self, num_bits: int, mode: LinearQuantMode) -> None:
        self.num_bits, self.mode = num_bits, mode
        self.qmin, self.qmax = quantized_range(num_bits, mode)

    @abstractmethod
    def of(self, low: Tensor, high: Tensor) -> Tensor:
        """``[C]`` errors for the ranges ``low .. high``, both ``[C]``."""

    def of_each(self, lows: Tensor, highs: Tensor) -> Tensor:
        """``[K, C]`` errors of ``K`` ranges a row, both ``[K, C]``."""
        return torch.stack([self.of(low, high) for low, high in zip(lows, highs, strict=True)])

    def grid(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Step and the ends of what can be represented."""
        scale, zero_point = scale_and_zero_point(low, high, self.num_bits, self.mode)
        return scale, (self.qmin - zero_point) * scale, (self.qmax - zero_point) * scale


class _RowErrors(_Errors):
    """Of the values themselves, ``[C, P]``: the mean over a row."""

    def __init__(self, rows: Tensor, num_bits: int, mode: LinearQuantMode) -> None:
        super().__init__(num_bits, mode)
        self.rows = rows

    def of(self, low: Tensor, high: Tensor) -> Tensor:
        scale, lowest, highest = (bound[:, None] for bound in self.grid(low, high))
        kept = torch.minimum(torch.maximum(self.rows, lowest), highest)
        return (torch.round(kept / scale) * scale - self.rows).square_().mean(dim=1)


class _HistogramErrors(_Errors):
    """Of a histogram: the sum over the bins, each integrated as evenly filled."""

    def __init__(self, histogram: Histogram, num_bits: int, mode: LinearQuantMode) -> None:
        super().__init__(num_bits, mode)
        self.histogram = histogram
        self.edges = histogram.edges

    def of(self, low: Tensor, high: Tensor) -> Tensor:
        scale, lowest, highest = (bound.double()[:, None] for bound in self.grid(low, high))
        if self.histogram.width == 0:
            kept = torch.minimum(torch.maximum(self.edges[:1], lowest), highest)
            error = (torch.round(kept / scale) * scale - self.edges[:1]).square()[:, 0]
            return error * self.histogram.counts.sum()
        integral = self._integral(self.edges, scale, lowest, highest)
        return (self.histogram.counts * integral.diff(dim=1)).sum(dim=1) / self.histogram.width

    def of_each(self, lows: Tensor, highs: Tensor) -> Tensor:
        # Pieces whose intermediate results fit a CPU's cache; a histogram has one row.
        pieces = zip(torch.split(lows[:, 0], _PIECE), torch.split(highs[:, 0], _PIECE), strict=True)
        return torch.cat([self.of(low, high) for low, high in pieces])[:, None]

    @staticmethod
    def _integral(at: Tensor, scale: Tensor, lowest: Tensor, highest: Tensor) -> Tensor:
        """Antiderivative of the squared error: a cubic outside the range, one cubic a level inside it."""

        def inside(point: Tensor) -> Tensor:
            steps = point / scale
            level = torch.round(steps)
            return scale**3 * (level / 12 + (steps - level) ** 3 / 3)

        kept = torch.minimum(torch.maximum(at, lowest), highest)
        return inside(kept) + (at - kept) ** 3 / 3


def _sample(rows: Tensor) -> Tensor:
    """Every n-th value of each row, such that all together are few."""
    wanted = max(_SMALLEST_SAMPLE, _SAMPLE // rows.shape[0])
    # An odd stride, or a kernel position of a convolution might be left out altogether.
    return rows[:, :: rows.shape[1] // wanted | 1].contiguous()


def _merged(histogram: Histogram) -> Histogram:
    """Neighbouring bins together, such that a few hundred are left: enough for the coarse search."""
    many = histogram.counts.numel() // _FEW_BINS
    if many < 2:
        return histogram
    counts = torch.nn.functional.pad(histogram.counts, (0, -histogram.counts.numel() % many)).reshape(-1, many).sum(1)
    return Histogram(counts, histogram.low, histogram.low + histogram.width * many * counts.numel())


def _search(
    errors: _Errors, rough: _Errors, lows: Tensor, highs: Tensor, mode: LinearQuantMode
) -> tuple[Tensor, Tensor]:
    """The best range of each row; ``rough`` is a cheaper estimate of the errors."""
    if mode.is_symmetric:
        lows, highs = symmetric_range(lows, highs, mode)
    else:
        lows, highs = lows.clamp(max=0), highs.clamp(min=0)

    def best(range_at: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Tensor:
        def exact(fractions: Tensor) -> Tensor:
            return errors.of_each(*range_at(fractions))

        def estimate(fractions: Tensor) -> Tensor:
            return rough.of_each(*range_at(fractions))

        return _best_fraction(exact, estimate, torch.ones_like(highs))

    low = high = best(lambda f: (lows * f, highs * f))
    if not mode.is_symmetric:
        for _ in range(2):
            high = best(lambda f, end=low: (lows * end.expand_as(f), highs * f))  # type: ignore[misc]
            low = best(lambda f, end=high: (lows * f, highs * end.expand_as(f)))  # type: ignore[misc]
    return lows * low, highs * high


def _best_fraction(exact: Callable[[Tensor], Tensor], estimate: Callable[[Tensor], Tensor], ones: Tensor) -> Tensor:
    """The fraction in 0.01 .. 1 with the least error, for each row; among equals the largest (least clipping)."""
    whole = torch.stack([ones * (1 - step / _COARSE) for step in range(_COARSE)])
    centre = _least(estimate, whole)
    for width in (1 / _COARSE, 1 / _FINE):  # hundredths again, for what a sample got wrong; then 500ths
        near = torch.stack([centre + step * width for step in range(_AROUND, -_AROUND - 1, -1)])
        centre = _least(exact, near.clamp(1 / _COARSE, 1))
    return _least(exact, torch.stack([ones, centre]))


def _least(errors_at: Callable[[Tensor], Tensor], candidates: Tensor) -> Tensor:
    """The candidate with the least error, for each row; the first of equals. ``candidates``: ``[K, C]``."""
    best = errors_at(candidates).argmin(dim=0, keepdim=True)
    return candidates.gather(0, best)[0]
