"""What is kept of one batch of a tensor: a handful of small tensors on its own device (layer 2)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["BatchSummary", "accumulator_dtype", "rows_of"]

_SAMPLED = 4096  # values of one batch that stand for it in the histogram behind the estimate of b
_LONGEST_ROW = 16384


def accumulator_dtype(device: torch.device) -> torch.dtype:
    """float64, or float32 on devices that have nothing wider."""
    return torch.float32 if device.type == "mps" else torch.float64


def rows_of(tensor: Tensor) -> tuple[Tensor, int]:
    """``([rows, elements], samples a row stands for)``: one row a sample of the batch, its elements in any order.

    A batch of single values ``[N]`` is one row that stands for N samples; a scalar is one row of one value. Half
    precision becomes float32, whole numbers float64, quantized tensors what they mean.
    """
    values = tensor.detach()
    if values.is_quantized:
        values = values.dequantize()
    if not values.is_floating_point():
        values = values.to(accumulator_dtype(values.device))
    elif values.element_size() < 4:
        values = values.float()
    if values.dim() < 2:
        return values.reshape(1, -1), max(values.numel(), 1)
    if values.dim() == 4 and values.is_contiguous(memory_format=torch.channels_last):
        values = values.permute(0, 2, 3, 1)  # so that flattening copies nothing
    return values.flatten(1), 1


@dataclass(frozen=True, slots=True)
class BatchSummary:
    """Extremes of each row of a batch, and sums of all around the batch's mean and around a fixed point.

    The mean of one pass in float32 is rounded; ``rest`` holds what it misses, so that mean and squares can be put right
    in float64 later.
    """

    numel: int
    samples_a_row: int
    low: Tensor  # [rows]
    high: Tensor  # [rows]
    mean: Tensor  # [], as are the following
    rest: Tensor  # sum of (x - mean)
    squares: Tensor  # sum of (x - mean)^2, in the accumulators' dtype
    deviation: Tensor  # sum of |x - reference|
    sample: Tensor  # [at most 4096] of the values, or all of them

    @classmethod
    def of(cls, tensor: Tensor, reference: Tensor | None = None, *, all_values: bool = False) -> BatchSummary:
        """Reduce a batch of at least one value; ``reference`` None stands for the batch's own mean."""
        rows, samples = rows_of(tensor)
        low, high = rows.amin(dim=1), rows.amax(dim=1)
        mean = rows.mean()
        centred = rows - mean
        rest, squares = centred.sum(), _sum_of_squares(centred)
        if reference is not None:
            centred += mean - reference.to(mean)
        deviation = centred.abs_().sum()
        sample = rows.flatten().clone() if all_values else _evenly_spaced(rows)
        return cls(tensor.numel(), samples, low, high, mean, rest, squares, deviation, sample)


def _sum_of_squares(rows: Tensor) -> Tensor:
    # A norm of short rows is as fast as one of long rows and, unlike it, does not lose digits of float32 sums.
    width = rows.shape[1]
    while width > _LONGEST_ROW and width % 2 == 0:
        width //= 2
    norms: Tensor = torch.linalg.vector_norm(rows.reshape(-1, width), 2, dim=1)
    total: Tensor = norms.to(accumulator_dtype(rows.device)).square().sum()
    return total


def _evenly_spaced(rows: Tensor) -> Tensor:
    """A copy of some values; their spacing shares no factor with their number, so it meets every row and column."""
    values = rows.reshape(-1)
    spacing = math.ceil(values.numel() / _SAMPLED)
    while math.gcd(spacing, values.numel()) > 1:
        spacing += 1
    return values[::spacing].clone()
