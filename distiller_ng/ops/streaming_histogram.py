"""A histogram of values that arrive in pieces and whose range is not known before (layer 1)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from distiller_ng.errors import ArgumentError
from distiller_ng.ops.histogram import Histogram

__all__ = ["StreamingHistogram"]

_PIECE = 1 << 16
_SMALLEST_WIDTH = 1e-30  # of a bin, relative to 1; only for data that is all zeros


class StreamingHistogram:
    """``bins`` equal bins that grow, by merging 2, 4, 8, ... neighbours, when values fall outside.

    Merging whole bins moves no value to a wrong one, so the result is an exact histogram of everything seen (but for
    values on the last edge of a moment, which then count below it), in bins of at most a few times ``range / bins``.
    Besides its count every bin knows the sum of its values; so sums of ``|x - t|`` are exact but for the one bin that
    contains ``t``.

    Counts and sums are float64 on the device of the first values (float32 where there is no float64), and nothing is
    copied to the host while updating. Values must be finite.

    >>> histogram = StreamingHistogram(bins=4)
    >>> histogram.update(torch.tensor([0.0, 1.0, 2.0, 4.0]))
    >>> histogram.counts.tolist(), histogram.edges.tolist()
    ([1.0, 1.0, 1.0, 1.0], [0.0, 1.0, 2.0, 3.0, 4.0])
    >>> histogram.update(torch.tensor([8.0]))
    >>> histogram.counts.tolist(), histogram.edges.tolist()
    ([2.0, 2.0, 0.0, 1.0], [0.0, 2.0, 4.0, 6.0, 8.0])

    Raises :class:`ArgumentError` for fewer than 2 bins.
    """

    def __init__(self, bins: int = 2048) -> None:
        if isinstance(bins, bool) or not isinstance(bins, int) or bins < 2:
            raise ArgumentError(f"bins must be a whole number from 2 on, got {bins!r}", argument=("bins",))
        self.bins = bins
        self._counts: Tensor | None = None
        self._sums = self._low = self._width = self._minimum = self._maximum = torch.zeros(())

    @property
    def is_empty(self) -> bool:
        """Whether nothing was seen yet."""
        return self._counts is None

    @property
    def counts(self) -> Tensor:
        """How many values each bin holds, ``[bins]``. Raises :class:`ArgumentError` when nothing was seen."""
        if self._counts is None:
            raise ArgumentError("the histogram is empty: no values were given to update()")
        return self._counts

    @property
    def edges(self) -> Tensor:
        """The bins' borders, ascending, ``[bins + 1]``."""
        steps = torch.arange(self.bins + 1, dtype=self.counts.dtype, device=self.counts.device)
        edges: Tensor = self._low + self._width * steps
        return edges

    @property
    def bin_means(self) -> Tensor:
        """The mean of each bin's values, ``[bins]``; the centre of an empty bin."""
        edges = self.edges
        return torch.where(self.counts > 0, self._sums / self.counts.clamp(min=1), (edges[:-1] + edges[1:]) / 2)

    @property
    def minimum(self) -> Tensor:
        """The smallest value seen, exactly."""
        return self._edge_of(self._minimum)

    @property
    def maximum(self) -> Tensor:
        """The largest value seen, exactly."""
        return self._edge_of(self._maximum)

    def _edge_of(self, value: Tensor) -> Tensor:
        _ = self.counts
        return value

    def update(self, values: Tensor) -> None:
        """Add values of any shape; no values at all add nothing."""
        if values.numel() == 0:
            return
        flat = values.detach().reshape(-1)
        low, high = torch.aminmax(flat)
        self.cover(low, high)
        # Pieces whose intermediate results fit a CPU's cache take a tenth of the time of a large tensor at once.
        for piece in torch.split(flat, _PIECE) if flat.device.type == "cpu" else [flat]:
            self._count(piece.to(self.counts.dtype), None)

    def add(self, values: Tensor, weights: Tensor) -> None:
        """Add ``values[i]`` as often as ``weights[i]`` says; both ``[n]``, ``n`` > 0."""
        low, high = torch.aminmax(values)
        self.cover(low, high)
        self._count(values.to(self.counts), weights.to(self.counts))

    def cover(self, low: Tensor, high: Tensor) -> None:
        """Widen the range to ``low .. high``, scalars, without counting anything."""
        dtype = torch.float32 if low.device.type == "mps" else torch.float64
        low, high = low.to(dtype), high.to(dtype)
        if self._counts is None:
            self._begin(low, high)
        else:
            self._grow(low, high)

    def _count(self, values: Tensor, weights: Tensor | None) -> None:
        where = values.sub(self._low).div_(self._width).clamp_(0, self.bins - 1).long()  # long() rounds towards 0
        once = torch.ones_like(values) if weights is None else weights
        self._counts = self.counts.scatter_add(0, where, once)
        self._sums = self._sums.scatter_add(0, where, values if weights is None else values * weights)

    def merge(self, other: StreamingHistogram) -> None:
        """Add all that another histogram has seen, every value at the mean of its bin there."""
        if not other.is_empty:
            counts = other.counts
            ends = torch.stack([other.minimum, other.maximum])
            self.add(torch.cat([other.bin_means, ends]), torch.cat([counts, torch.zeros_like(ends)]))

    def mean_and_deviation(self) -> tuple[Tensor, Tensor]:
        """Mean (exact) and standard deviation of the population (of the bins' means) of everything seen."""
        total = self.counts.sum()
        mean = self._sums.sum() / total
        return mean, ((self.counts * (self.bin_means - mean).square()).sum() / total).sqrt()

    def mean_absolute_deviation(self, center: Tensor | float) -> Tensor:
        """Mean of ``|x - center|``; exact but for the values in the bin that contains ``center``."""
        return (self.counts * (self.bin_means - center).abs()).sum() / self.counts.sum()

    def quantile(self, fraction: float) -> Tensor:
        """The value below which ``fraction`` (0..1) of all values lie; interpolated inside its bin.

        Raises :class:`ArgumentError` for a fraction outside 0..1.
        """
        low, high, inside = self._bin_of(fraction)
        return torch.clamp(low + (high - low) * inside, self._minimum, self._maximum)

    def quantile_bounds(self, fraction: float) -> tuple[Tensor, Tensor]:
        """Two values between which :meth:`quantile` lies: the ends of its bin, within what was seen."""
        low, high, _ = self._bin_of(fraction)
        return torch.maximum(low, self._minimum), torch.minimum(high, self._maximum)

    def _bin_of(self, fraction: float) -> tuple[Tensor, Tensor, Tensor]:
        """The edges of the bin where a fraction of all values is reached, and at which part of the bin."""
        if not 0.0 <= fraction <= 1.0:
            raise ArgumentError(f"fraction must be from 0 to 1, got {fraction!r}", argument=("fraction",))
        cumulative = self.counts.cumsum(0)
        wanted = fraction * cumulative[-1]
        at = torch.searchsorted(cumulative, wanted).clamp(max=self.bins - 1)
        inside = (wanted - (cumulative[at] - self.counts[at])) / self.counts[at].clamp(min=1)
        low = self._low + self._width * at
        return low, low + self._width, inside

    def frozen(self) -> Histogram:
        """The counts so far as a :class:`~distiller_ng.ops.histogram.Histogram`, on the CPU, for range searches.

        Bins beyond the smallest and the largest value are left out.
        """
        counts, edges = self.counts.cpu(), self.edges.cpu()
        ends = torch.stack([self._minimum, self._maximum])
        first, last = ((ends - self._low) / self._width).clamp(0, self.bins - 1).long().tolist()
        return Histogram(counts[first : last + 1], float(edges[first]), float(edges[last + 1]))

    def state_dict(self) -> dict[str, Any]:
        """Everything, as plain values and tensors."""
        if self._counts is None:
            return {"bins": self.bins}
        tensors = {"counts": self._counts, "sums": self._sums, "low": self._low, "width": self._width}
        return {"bins": self.bins, **tensors, "minimum": self._minimum, "maximum": self._maximum}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`state_dict`."""
        self.bins = int(state["bins"])
        self._counts = state.get("counts")
        if self._counts is not None:
            self._sums, self._low, self._width = state["sums"], state["low"], state["width"]
            self._minimum, self._maximum = state["minimum"], state["maximum"]

    def _begin(self, low: Tensor, high: Tensor) -> None:
        self._counts = torch.zeros(self.bins, dtype=low.dtype, device=low.device)
        self._sums = torch.zeros_like(self._counts)
        self._low, self._minimum, self._maximum = low, low, high
        # A single value gets the narrowest bins there are: widening them later loses nothing.
        narrowest = (low.abs() * 1e-12).clamp(min=_SMALLEST_WIDTH)
        self._width = torch.maximum((high - low) / self.bins, narrowest)

    def _grow(self, low: Tensor, high: Tensor) -> None:
        """Widen so that both values fit, in tensor arithmetic alone."""
        self._minimum, self._maximum = torch.minimum(self._minimum, low), torch.maximum(self._maximum, high)
        below = ((self._low - self._minimum) / self._width).ceil().clamp(min=0)  # bins to put in front
        start = self._low - below * self._width
        needed = (self._maximum - start) / (self._width * self.bins)
        merged = torch.exp2(needed.clamp(min=1).log2().ceil())  # old bins in a new one
        old = torch.arange(self.bins, dtype=self.counts.dtype, device=self.counts.device)
        where = ((old + below) / merged).floor().clamp(0, self.bins - 1).long()
        self._counts = torch.zeros_like(self.counts).index_add(0, where, self.counts)
        self._sums = torch.zeros_like(self._sums).index_add(0, where, self._sums)
        self._low, self._width = start, self._width * merged
