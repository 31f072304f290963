"""What is kept of one batch of a tensor: a handful of small tensors on its own device (layer 2)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["BatchSummary", "Summarizer", "accumulator_dtype", "rows_of"]

_FEW, _MANY = 2048, 1 << 16  # values of one batch that stand for it in a histogram
_PIECE = 1 << 17  # values that are reduced together on a CPU: they and their scratch stay in its cache


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
    """Extremes of each row of a batch, and sums of all its values around a reference point."""

    numel: int
    samples_a_row: int
    reference: Tensor  # []
    low: Tensor  # [rows]
    high: Tensor  # [rows]
    sums: list[Tensor]  # each []: sum of (x - reference), for a part of the values
    norms: list[Tensor]  # each [n]: square roots of sums of (x - reference)^2
    deviations: list[Tensor]  # each []: sum of |x - reference|
    sample: Tensor  # [at most 2048 or 65536] of the values


class Summarizer:
    """Makes :class:`BatchSummary` objects; large tensors are taken piece by piece, all reductions while in the cache.

    ``large_samples`` keeps up to 65536 values of each batch, not 2048.
    """

    def __init__(self, *, large_samples: bool = False) -> None:
        self.sampled = _MANY if large_samples else _FEW
        self._scratch: dict[torch.dtype, Tensor] = {}
        self._views: dict[tuple[torch.dtype, torch.Size], Tensor] = {}

    def __call__(self, tensor: Tensor, reference: Tensor | None = None) -> BatchSummary:
        """Reduce a batch of at least one value; ``reference`` None takes the batch's own mean."""
        rows, samples = rows_of(tensor)
        point = rows.mean() if reference is None else reference.to(rows)
        lows, highs, sums, norms, deviations = [], [], [], [], []
        for piece in self._pieces(rows):
            lows.append(piece.amin(dim=1))
            highs.append(piece.amax(dim=1))
            centred = torch.sub(piece, point, out=self._room_for(piece))
            sums.append(centred.sum())
            norms.append(torch.linalg.vector_norm(centred, 2, dim=1))  # of short rows: float32 loses nothing in them
            deviations.append(centred.abs_().sum())
        low = lows[0] if len(lows) == 1 else torch.cat(lows).view(len(rows), -1).amin(dim=1)
        high = highs[0] if len(highs) == 1 else torch.cat(highs).view(len(rows), -1).amax(dim=1)
        sample = _evenly_spaced(rows, self.sampled)
        return BatchSummary(tensor.numel(), samples, point, low, high, sums, norms, deviations, sample)

    def _pieces(self, rows: Tensor) -> list[Tensor]:
        """Two-dimensional views that cover ``rows``: some whole rows each, or equally many parts of each row."""
        elements = rows.shape[1]
        if rows.device.type != "cpu" or rows.numel() <= _PIECE:
            return [rows]
        if elements <= _PIECE:
            return list(torch.split(rows, max(1, _PIECE // elements)))
        return [part for row in torch.split(rows, 1) for part in torch.split(row, _PIECE, dim=1)]

    def _room_for(self, piece: Tensor) -> Tensor | None:
        """Memory for a result of this shape, used again each time; new memory costs more than the arithmetic."""
        if piece.device.type != "cpu" or piece.numel() > _PIECE:
            return None
        key = (piece.dtype, piece.shape)
        if key not in self._views:
            with torch.inference_mode(False):
                if piece.dtype not in self._scratch:
                    self._scratch[piece.dtype] = torch.empty(_PIECE, dtype=piece.dtype)
                self._views[key] = self._scratch[piece.dtype][: piece.numel()].view(piece.shape)
        return self._views[key]


def _evenly_spaced(rows: Tensor, most: int) -> Tensor:
    """A copy of some values; their spacing shares no factor with their number, so it meets every row and column."""
    values = rows.reshape(-1)
    spacing = math.ceil(values.numel() / most)
    while math.gcd(spacing, values.numel()) > 1:
        spacing += 1
    return values[::spacing].clone()
