"""Everything the calibration file says about one tensor, gathered in one pass (layer 2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor

from distiller_ng.data_loggers._batch_summary import BatchSummary, accumulator_dtype, rows_of
from distiller_ng.ops.streaming_histogram import StreamingHistogram
from distiller_ng.ops.table import size_to_str

__all__ = ["StatsEntry", "TensorStatistics"]

#: What the file holds of one tensor: numbers, and the shape as text.
StatsEntry: TypeAlias = "dict[str, int | float | str]"

_MERGE_BATCHES = 64
_MERGE_VALUES = 32768


@dataclass(frozen=True, slots=True)
class _Totals:
    """Sums over everything merged so far; tensors without dimensions, in the accumulators' dtype."""

    low: Tensor
    high: Tensor
    low_sum: Tensor  # over samples, of each sample's extremes
    high_sum: Tensor
    mean: Tensor
    squares: Tensor  # sum of (x - mean)^2
    deviation: Tensor  # sum of |x - reference|
    numel: int
    samples: int


@dataclass(slots=True)
class TensorStatistics:
    """Running statistics of the batches of one tensor.

    Extremes are exact and averages of extremes weigh every sample alike. Mean and standard deviation (of the
    population) are merged from the batches' own: T. Chan, G. Golub, R. LeVeque, "Updating Formulae and a Pairwise
    Algorithm for Computing Sample Variances", http://i.stanford.edu/pub/cstr/reports/cs/tr/79/773/CS-TR-79-773.pdf.

    ``b``, the mean of ``|x - mean|``, needs the mean of everything, which is known last. It is estimated in the same
    pass: the mean of ``|x - r|`` is kept exactly for a fixed ``r``, the first batch's mean, and the difference that
    moving ``r`` to the final mean makes is read from a histogram of up to 4096 values of each batch. The difference is
    small where batches resemble each other, and the histogram is complete where batches are small.
    :meth:`begin_exact` and a second pass replace the estimate by the exact value.

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
            self.shape, self.reference = tuple(tensor.shape), summary.mean
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
        sample = torch.cat([batch.sample.to(batches[0].sample) for batch in batches])
        # values that are not finite are reported from the extremes; here they must only not fail
        self._histogram.update(torch.nan_to_num(sample, nan=0.0, posinf=0.0, neginf=0.0))

    def extremes(self) -> Tensor | None:
        """``[2]``: the smallest and the largest value, NaN if there was one; None before the first batch."""
        self.flush()
        return None if self._totals is None else torch.stack([self._totals.low, self._totals.high])

    @property
    def histogram(self) -> StreamingHistogram:
        """Of the values that the batches' summaries kept."""
        self.flush()
        return self._histogram

    def entry(self) -> StatsEntry | None:
        """What the calibration file says; None before the first batch."""
        self.flush()
        sums = self._totals
        if sums is None or self.shape is None:
            return None
        spread = (sums.squares / sums.numel).clamp(min=0).sqrt()
        averages = [sums.low_sum / sums.samples, sums.high_sum / sums.samples]
        names = ("min", "max", "avg_min", "avg_max", "mean", "std", "b")
        values = torch.stack([sums.low, sums.high, *averages, sums.mean, spread, self._mean_deviation(sums)]).tolist()
        entry: StatsEntry = dict(zip(names, values))
        if self.whole:
            entry["min"], entry["max"] = int(values[0]), int(values[1])
        return {**entry, "shape": size_to_str(self.shape), "total_numel": sums.numel}

    def _mean_deviation(self, sums: _Totals) -> Tensor:
        if self._exact_numel:
            return torch.stack(self._exact_sums).sum() / self._exact_numel
        around_reference = sums.deviation / sums.numel
        if self.reference is None:
            return around_reference
        around = self._histogram.mean_absolute_deviation
        moved = around(sums.mean) - around(self.reference.to(sums.mean))
        return torch.minimum((around_reference + moved).clamp(min=0), (sums.squares / sums.numel).sqrt())

    # -- second pass ------------------------------------------------------------------------------------------------

    def begin_exact(self) -> None:
        """From now on :meth:`add_exact` measures ``b`` around the mean of everything seen until now."""
        self.flush()
        self._exact_mean = None if self._totals is None else self._totals.mean
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

    def wide(parts: Sequence[Tensor]) -> Tensor:
        return torch.cat([part.reshape(-1).to(device) for part in parts]).to(dtype)

    sizes = torch.tensor([float(batch.numel) for batch in batches], dtype=dtype).to(device)
    missed = wide([batch.rest for batch in batches]) / sizes
    means = wide([batch.mean for batch in batches]) + missed
    squares = wide([batch.squares for batch in batches]) - sizes * missed.square()
    lows, highs = wide([batch.low for batch in batches]), wide([batch.high for batch in batches])
    counts = [float(batch.samples_a_row) for batch in batches for _ in range(len(batch.low))]
    weights = torch.tensor(counts, dtype=dtype).to(device)
    low_sum, high_sum = (lows * weights).sum(), (highs * weights).sum()
    deviation = wide([batch.deviation for batch in batches]).sum()
    numel = sum(batch.numel for batch in batches)
    samples = sum(batch.low.numel() * batch.samples_a_row for batch in batches)
    if before is not None:
        sizes = torch.cat([sizes, sizes.new_tensor([float(before.numel)])])
        means, squares = torch.cat([means, before.mean[None]]), torch.cat([squares, before.squares[None]])
        lows, highs = torch.cat([lows, before.low[None]]), torch.cat([highs, before.high[None]])
        low_sum, high_sum = low_sum + before.low_sum, high_sum + before.high_sum
        deviation, numel, samples = deviation + before.deviation, numel + before.numel, samples + before.samples
    mean = (means * sizes).sum() / numel
    spread = (squares + sizes * (means - mean).square()).sum()
    return _Totals(lows.amin(), highs.amax(), low_sum, high_sum, mean, spread, deviation, numel, samples)
