"""Everything the calibration file says about one tensor, gathered in one pass (layer 2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor

from distiller_ng.data_loggers._batch_summary import BatchSummary, accumulator_dtype, rows_of
from distiller_ng.ops.histogram import Histogram
from distiller_ng.ops.streaming_histogram import StreamingHistogram
from distiller_ng.ops.table import size_to_str

__all__ = ["StatsEntry", "TensorStatistics"]

#: What the file holds of one tensor: numbers, and the shape as text.
StatsEntry: TypeAlias = "dict[str, int | float | str]"

_MERGE_BATCHES = 64
_MERGE_VALUES = 65536


@dataclass(frozen=True, slots=True)
class _Totals:
    """Sums over everything merged so far; tensors without dimensions, in the accumulators' dtype."""

    low: Tensor
    high: Tensor
    low_sum: Tensor  # over samples, of each sample's extremes
    high_sum: Tensor
    shifted: Tensor  # sum of (x - reference)
    squares: Tensor  # sum of (x - reference)^2
    deviation: Tensor  # sum of |x - reference|
    numel: int
    samples: int


@dataclass(slots=True)
class TensorStatistics:
    """Running statistics of the batches of one tensor.

    Extremes are exact and averages of extremes weigh every sample alike. Mean and standard deviation (of the
    population) come from float64 sums of the differences to a fixed ``r``, the mean of the first batch, which keeps all
    digits: T. Chan, G. Golub, R. LeVeque, "Algorithms for Computing the Sample Variance: Analysis and Recommendations",
    The American Statistician 37(3), 1983, https://doi.org/10.1080/00031305.1983.10483115.

    ``b``, the mean of ``|x - mean|``, needs the mean of everything, which is known last. It is estimated in the same
    pass: the mean of ``|x - r|`` is kept exactly, and the difference that moving ``r`` to the final mean makes is read
    from a histogram of up to 2048 values of each batch. The difference is small where batches resemble each other, and
    the histogram is complete where batches are small. :meth:`begin_exact` and a second pass replace the estimate.

    Batches are merged a few dozen at a time, so that no batch waits for the device. Batches ``[[1., 3.]]`` and
    ``[[5., 7.]]`` give min 1, max 7, avg_min 3, avg_max 5, mean 4, std 2.236 and b 2.
    """

    whole: bool = True  # every value was a whole number by its type
    shape: tuple[int, ...] | None = None
    reference: Tensor | None = None
    _pending: list[BatchSummary] = field(default_factory=list)
    _pending_values: int = 0
    _totals: _Totals | None = None
    _histogram: StreamingHistogram = field(default_factory=StreamingHistogram)
    _exact_mean: Tensor | None = None
    _exact_sums: list[Tensor] = field(default_factory=list)
    _exact_numel: int = 0

    def add(self, tensor: Tensor, summary: BatchSummary) -> None:
        """Add a batch that was summarized with this object's ``reference``."""
        self.whole = self.whole and not (tensor.is_floating_point() or tensor.is_quantized)
        if self.shape is None:
            self.shape, self.reference = tuple(tensor.shape), summary.reference
        self._pending.append(summary)
        self._pending_values += summary.sample.numel()
        if len(self._pending) >= _MERGE_BATCHES or self._pending_values >= _MERGE_VALUES:
            self.flush()

    def flush(self) -> None:
        """Merge the batches that wait."""
        if not self._pending:
            return
        batches, self._pending, self._pending_values = self._pending, [], 0
        self._totals = _merged(batches, self._totals)
        sample = torch.cat([batch.sample for batch in batches])
        # values that are not finite are reported from the extremes; here they must only not fail
        self._histogram.update(torch.nan_to_num(sample, nan=0.0, posinf=0.0, neginf=0.0))

    def extremes(self) -> Tensor | None:
        """``[2]``: the smallest and the largest value, NaN if there was one; None before the first batch."""
        self.flush()
        return None if self._totals is None else torch.stack([self._totals.low, self._totals.high])

    def histogram(self) -> Histogram:
        """Of the values that the batches' summaries kept, from the smallest to the largest value of all.

        Raises :class:`ArgumentError` before the first batch.
        """
        ends = self.extremes()
        if ends is not None:
            self._histogram.cover(ends[0], ends[1])
        return self._histogram.frozen()

    def entry(self) -> StatsEntry | None:
        """What the calibration file says; None before the first batch."""
        self.flush()
        sums = self._totals
        if sums is None or self.shape is None:
            return None
        mean, spread = self._moments(sums)
        averages = [sums.low_sum / sums.samples, sums.high_sum / sums.samples]
        deviation = self._mean_deviation(sums, mean, spread)
        names = ("min", "max", "avg_min", "avg_max", "mean", "std", "b")
        values = torch.stack([sums.low, sums.high, *averages, mean, spread, deviation]).tolist()
        entry: StatsEntry = dict(zip(names, values))
        if self.whole:
            entry["min"], entry["max"] = int(values[0]), int(values[1])
        return {**entry, "shape": size_to_str(self.shape), "total_numel": sums.numel}

    def _moments(self, sums: _Totals) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of everything."""
        moved = sums.shifted / sums.numel
        mean = moved if self.reference is None else self.reference.to(moved) + moved
        spread = (sums.squares / sums.numel - moved.square()).clamp(min=0).sqrt()
        if bool(torch.isfinite(mean) & torch.isfinite(spread)):
            return mean, spread
        return self._histogram.mean_and_deviation()  # float32 sums overflow: values as in attention masks

    def _mean_deviation(self, sums: _Totals, mean: Tensor, spread: Tensor) -> Tensor:
        if self._exact_numel:
            return torch.stack(self._exact_sums).sum() / self._exact_numel
        deviation = sums.deviation / sums.numel
        if self.reference is not None:
            around = self._histogram.mean_absolute_deviation
            moved = deviation + around(mean) - around(self.reference.to(mean))
            deviation = moved if bool(torch.isfinite(moved)) else around(mean)
        return torch.minimum(deviation.clamp(min=0), spread)  # by Jensen's inequality no more than that

    # -- second pass ------------------------------------------------------------------------------------------------

    def begin_exact(self) -> None:
        """From now on :meth:`add_exact` measures ``b`` around the mean of everything seen until now."""
        self.flush()
        self._exact_mean = None if self._totals is None else self._moments(self._totals)[0]
        self._exact_sums, self._exact_numel = [], 0

    def add_exact(self, tensor: Tensor) -> None:
        """Add a batch of the second pass; ignored if the first pass saw nothing."""
        if self._exact_mean is None:
            return
        rows, _ = rows_of(tensor)
        deviation = (rows - self._exact_mean.to(rows)).abs_().sum(dim=1)
        self._exact_sums.append(deviation.to(accumulator_dtype(rows.device)).sum())
        self._exact_numel += tensor.numel()
        if len(self._exact_sums) >= _MERGE_BATCHES:
            self._exact_sums = [torch.stack(self._exact_sums).sum()]


def _merged(batches: Sequence[BatchSummary], before: _Totals | None) -> _Totals:
    """Fold batches into what was merged before, all at once."""
    device = batches[0].low.device if before is None else before.low.device
    dtype = accumulator_dtype(device)
    lows = torch.cat([batch.low for batch in batches]).to(device=device, dtype=dtype)
    highs = torch.cat([batch.high for batch in batches]).to(device=device, dtype=dtype)
    shifted = torch.stack([part for batch in batches for part in batch.sums]).to(device=device, dtype=dtype).sum()
    norms = torch.cat([part for batch in batches for part in batch.norms]).to(device=device, dtype=dtype)
    deviations = torch.stack([part for batch in batches for part in batch.deviations])
    deviation = deviations.to(device=device, dtype=dtype).sum()
    squares, low, high = norms.square().sum(), lows.amin(), highs.amax()
    if any(batch.samples_a_row != 1 for batch in batches):
        weights = [float(batch.samples_a_row) for batch in batches for _ in range(len(batch.low))]
        each = torch.tensor(weights, dtype=dtype).to(device)
        lows, highs = lows * each, highs * each
    low_sum, high_sum = lows.sum(), highs.sum()
    numel = sum(batch.numel for batch in batches)
    samples = sum(len(batch.low) * batch.samples_a_row for batch in batches)
    if before is None:
        return _Totals(low, high, low_sum, high_sum, shifted, squares, deviation, numel, samples)
    return _Totals(
        torch.minimum(low, before.low),
        torch.maximum(high, before.high),
        low_sum + before.low_sum,
        high_sum + before.high_sum,
        shifted + before.shifted,
        squares + before.squares,
        deviation + before.deviation,
        numel + before.numel,
        samples + before.samples,
    )
