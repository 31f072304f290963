"""A histogram of values with equal bins, as calibration collects it (layer 1)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from distiller_ng.errors import ArgumentError
from distiller_ng.ops.linear_quantization import axis_min_max, check_range

__all__ = ["Histogram"]


@dataclass(frozen=True, slots=True)
class Histogram:
    """``counts`` (float64 ``[bins]``) of values in equal bins from ``low`` to ``high``.

    >>> Histogram.of_tensor(torch.tensor([0.0, 0.1, 0.9, 1.0]), bins=2).counts.tolist()
    [2.0, 2.0]

    Raises :class:`ArgumentError` for negative or missing counts and for a range that is empty or not finite.
    """

    counts: Tensor
    low: float
    high: float

    def __post_init__(self) -> None:
        counts = torch.as_tensor(self.counts).detach().double().cpu()
        if counts.dim() != 1 or counts.numel() == 0:
            raise ArgumentError(f"a histogram needs a vector of counts, got shape {tuple(counts.shape)}")
        if not bool((torch.isfinite(counts) & (counts >= 0)).all()) or not bool(counts.sum() > 0):
            raise ArgumentError("the counts of a histogram must be 0 or more, finite, and not all 0")
        check_range(self.low, self.high)
        object.__setattr__(self, "counts", counts)
        object.__setattr__(self, "low", float(self.low))
        object.__setattr__(self, "high", float(self.high))

    @classmethod
    def of_tensor(cls, values: Tensor, bins: int = 2048) -> Histogram:
        """Count ``values`` between their smallest and largest."""
        low, high = (bound.item() for bound in axis_min_max(values))
        check_range(low, high)
        # torch.histc exists for floating point only, and half precision has too few steps to place a value
        counts = torch.histc(values.detach().float(), bins=bins, min=low, max=high)
        return cls(counts, low, high)

    @property
    def edges(self) -> Tensor:
        """The ``bins + 1`` borders between bins, float64."""
        return torch.linspace(self.low, self.high, self.counts.numel() + 1, dtype=torch.float64)

    @property
    def width(self) -> float:
        """Width of one bin."""
        return (self.high - self.low) / self.counts.numel()

    def rebinned(self, low: float, high: float, bins: int) -> Histogram:
        """The same values counted in other bins, spreading each bin's count evenly over its width.

        The new range must contain the old one.
        """
        if self.width == 0:
            middle = torch.tensor([self.low], dtype=torch.float64)
            counts = torch.histc(middle, bins=bins, min=low, max=high) * self.counts.sum()
            return Histogram(counts, low, high)
        below = torch.cat([torch.zeros(1, dtype=torch.float64), self.counts.cumsum(0)])
        wanted = (torch.linspace(low, high, bins + 1, dtype=torch.float64) - self.low) / self.width
        place = wanted.clamp(0, self.counts.numel())
        left = place.floor().long().clamp(max=self.counts.numel() - 1)
        cumulative = below[left] + (place - left) * self.counts[left]
        return Histogram(cumulative.diff().clamp(min=0), low, high)

    def magnitudes(self, bins: int) -> Histogram:
        """The histogram of absolute values, from 0."""
        largest = max(abs(self.low), abs(self.high))
        both = self.rebinned(-largest, largest, 2 * bins).counts
        return Histogram(both[bins:] + both[:bins].flip(0), 0.0, largest)
