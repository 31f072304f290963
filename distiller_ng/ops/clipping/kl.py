"""Clipping that keeps the distribution of the values closest, by Kullback-Leibler divergence (layer 1).

Source: S. Migacz, "8-bit Inference with TensorRT", GTC 2017,
https://on-demand.gputechconf.com/gtc/2017/presentation/s7310-8-bit-inference-with-tensorrt.pdf. For each candidate
range the distribution P of the clipped values (what is cut off counted at the end) is compared with Q, the same without
what is cut off, merged into as many bins as there are levels. The range with the least ``sum(P * log(P / Q))`` wins.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from distiller_ng.ops.clipping.base import CLIPPINGS, Clipping, rows_along
from distiller_ng.ops.histogram import Histogram
from distiller_ng.ops.linear_quantization import LinearQuantMode, check_bits, quantized_range

__all__ = ["KlClipping", "kl_range"]

_BINS = 2048
_STRIDE = 16
_SMOOTHING = 1e-4  # probability of a bin that Q left empty, as in MXNet's implementation


def kl_range(
    values: Tensor | Histogram, num_bits: int, mode: LinearQuantMode, *, axis: int | None = None
) -> tuple[Tensor, Tensor]:
    """The range ``low .. high`` with the least divergence: float32 scalars, or ``[C]`` with ``axis``.

    Symmetric modes search on magnitudes. Values on both sides of 0 in an asymmetric mode keep the proportion of the two
    ends. Meant for 8 bits: with few levels MSE chooses better, and from 11 bits on there are as many levels as bins and
    the full range is returned.

    Raises :class:`ArgumentError` for an empty tensor, NaN or infinity, an axis that does not exist and wrong bits.
    """
    check_bits(num_bits)
    if isinstance(values, Histogram):
        return _one_range(values, num_bits, mode)
    ranges = [_one_range(Histogram.of_tensor(row, _BINS), num_bits, mode) for row in rows_along(values, axis)]
    low, high = (torch.stack(bounds) for bounds in zip(*ranges))
    return (low[0], high[0]) if axis is None else (low, high)


@CLIPPINGS.register("KL")
class KlClipping(Clipping):
    """The range whose quantized distribution is closest to the real one (TensorRT's entropy calibration). ::

    clip_acts: KL
    """

    name = "KL"
    needs = ("histogram",)

    def of_tensor(
        self, values: Tensor, num_bits: int, mode: LinearQuantMode, *, axis: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """:func:`kl_range` of the values."""
        return kl_range(values, num_bits, mode, axis=axis)

    def of_stats(self, stats: Mapping[str, Any], num_bits: int, mode: LinearQuantMode) -> tuple[Tensor, Tensor]:
        """:func:`kl_range` of the statistics' ``histogram``."""
        return kl_range(self.histogram(stats), num_bits, mode)


def _one_range(histogram: Histogram, num_bits: int, mode: LinearQuantMode) -> tuple[Tensor, Tensor]:
    qmin, qmax = quantized_range(num_bits, mode)
    low, high = min(histogram.low, 0.0), max(histogram.high, 0.0)
    if mode.is_symmetric:
        # magnitudes share the levels 0 .. qmax (negative ones mirror them)
        fraction = _best_fraction(_above_zero(histogram.magnitudes(_BINS)), qmax + 1)
        clip = torch.tensor(max(-low, high) * fraction)
        return -clip, clip
    levels = qmax - qmin + 1
    if low == 0 or high == 0:
        fraction = _best_fraction(_above_zero(histogram.magnitudes(_BINS)), levels)
    elif low == high:
        fraction = 1.0
    else:
        fraction = _best_fraction_both(histogram.rebinned(low, high, _BINS), levels)
    return torch.tensor(low * fraction), torch.tensor(high * fraction)


def _above_zero(magnitudes: Histogram) -> Tensor:
    """Counts by magnitude; exact zeros (after a ReLU) quantize exactly, so they must not dominate."""
    counts = magnitudes.counts.clone()
    counts[0] = counts[1]
    return counts


def _best_fraction(counts: Tensor, levels: int) -> float:
    """Fraction of the range to keep, cutting bins off the end."""

    def divergence(kept: int) -> float:
        return _divergence(counts[:kept], 0.0, float(counts[kept:].sum()), levels)

    return _least(divergence, levels, counts.numel()) / counts.numel()


def _best_fraction_both(histogram: Histogram, levels: int) -> float:
    """Fraction of the range to keep, cutting both ends in proportion to their distance from 0."""
    counts = histogram.counts
    zero = -histogram.low / (histogram.high - histogram.low) * counts.numel()

    def divergence(kept: int) -> float:
        first = min(round(zero * (1 - kept / counts.numel())), counts.numel() - kept)
        inside = counts[first : first + kept]
        return _divergence(inside, float(counts[:first].sum()), float(counts[first + kept :].sum()), levels)

    return _least(divergence, levels, counts.numel()) / counts.numel()


def _least(divergence: Callable[[int], float], first: int, last: int) -> int:
    """The number of bins with the least divergence: every 16th, then each one around the best."""
    if first >= last:
        return last
    coarse = min(range(last, first - 1, -_STRIDE), key=divergence)
    near = range(min(last, coarse + _STRIDE - 1), max(first, coarse - _STRIDE + 1) - 1, -1)
    return min(near, key=divergence)


def _divergence(inside: Tensor, below: float, above: float, levels: int) -> float:
    """``KL(P || Q)`` for the bins that are kept and the counts cut off at either end."""
    reference = inside.clone()
    reference[0] += below
    reference[-1] += above
    filled = reference > 0
    level = torch.arange(inside.numel()) * levels // inside.numel()
    total = torch.zeros(levels, dtype=torch.float64).index_add_(0, level, inside)
    spread = torch.zeros(levels, dtype=torch.float64).index_add_(0, level, filled.double()).clamp_(min=1)
    quantized = torch.where(filled, (total / spread)[level], torch.zeros_like(inside))
    if not bool(quantized.sum() > 0):
        return float("inf")
    p, q = (_smoothed(counts / counts.sum()) for counts in (reference, quantized))
    return float((p * (p / q).log()).sum())


def _smoothed(probability: Tensor) -> Tensor:
    """No bin empty: a little probability moved from the filled ones."""
    empty = probability == 0
    moved = _SMOOTHING * empty.sum() / (~empty).sum()
    if moved >= probability[~empty].min():  # too many empty bins to pay for: mix with an even distribution instead
        return (probability + _SMOOTHING / probability.numel()) / (1 + _SMOOTHING)
    return torch.where(empty, torch.full_like(probability, _SMOOTHING), probability - moved)
