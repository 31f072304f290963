"""The range of a tensor in Distiller's terms: min and max, averages over samples, standard deviations (layer 2).

``per_dim`` and ``across_dim`` keep the dimensions up to and including that one: ``per_dim=0`` gives one value for each
filter of a weight ``[C_o, C_i, H, W]`` or each sample of a batch ``[N, ...]``. Results carry no autograd history and
share no memory with the input.
"""

from __future__ import annotations

import torch
from torch import Tensor

from distiller_ng.errors import ArgumentError

__all__ = [
    "get_tensor_avg_max_abs",
    "get_tensor_avg_min_max",
    "get_tensor_max_abs",
    "get_tensor_mean_n_stds_max_abs",
    "get_tensor_mean_n_stds_min_max",
    "get_tensor_min_max",
    "standard_deviation",
]


def get_tensor_min_max(t: Tensor, per_dim: int | None = None) -> tuple[Tensor, Tensor]:
    """Smallest and largest value: scalars, or of shape ``t.shape[: per_dim + 1]``.

    >>> get_tensor_min_max(torch.tensor([[1.0, -2.0], [4.0, 3.0]]), per_dim=0)
    (tensor([-2.,  3.]), tensor([1., 4.]))

    Raises :class:`ArgumentError` for an empty tensor or when it has no dimension ``per_dim``.
    """
    rows = _rows(t, per_dim)
    return rows.amin(dim=-1), rows.amax(dim=-1)


def get_tensor_avg_min_max(t: Tensor, across_dim: int | None = None) -> tuple[Tensor, Tensor]:
    """Mean of the smallest and mean of the largest values found along ``across_dim`` (usually 0: over samples).

    >>> get_tensor_avg_min_max(torch.tensor([[1.0, -2.0], [4.0, 3.0]]), across_dim=0)
    (tensor(0.5000), tensor(2.5000))
    """
    low, high = get_tensor_min_max(t, per_dim=across_dim)
    return low.mean(), high.mean()


def get_tensor_max_abs(t: Tensor, per_dim: int | None = None) -> Tensor:
    """Largest magnitude, shaped as in :func:`get_tensor_min_max`."""
    return _larger_magnitude(*get_tensor_min_max(t, per_dim=per_dim))


def get_tensor_avg_max_abs(t: Tensor, across_dim: int | None = None) -> Tensor:
    """Larger magnitude of the two averages of :func:`get_tensor_avg_min_max`: a scalar."""
    return _larger_magnitude(*get_tensor_avg_min_max(t, across_dim=across_dim))


def get_tensor_mean_n_stds_min_max(t: Tensor, dim: int | None = None, n_stds: float = 1) -> tuple[Tensor, Tensor]:
    """``mean -+ n_stds * std``, no wider than the real range; ``dim`` keeps leading dimensions like ``per_dim``.

    The standard deviation is the unbiased one. For 0, 2, 4 and half a deviation: 1 .. 3.

    Raises :class:`ArgumentError` unless ``n_stds`` is positive.
    """
    if not n_stds > 0:
        raise ArgumentError(f"n_stds must be more than 0, got {n_stds}", argument=("n_stds",))
    rows = _rows(t, dim)
    mean, spread = rows.mean(dim=-1), n_stds * standard_deviation(rows)
    return torch.maximum(rows.amin(dim=-1), mean - spread), torch.minimum(rows.amax(dim=-1), mean + spread)


def get_tensor_mean_n_stds_max_abs(t: Tensor, dim: int | None = None, n_stds: float = 1) -> Tensor:
    """Larger magnitude of the bounds of :func:`get_tensor_mean_n_stds_min_max`."""
    return _larger_magnitude(*get_tensor_mean_n_stds_min_max(t, dim, n_stds))


def standard_deviation(rows: Tensor) -> Tensor:
    """Unbiased standard deviation along the last dimension; 0 (not NaN) for a single value."""
    return rows.std(dim=-1, correction=1 if rows.shape[-1] > 1 else 0)


def _rows(t: Tensor, per_dim: int | None) -> Tensor:
    """``[kept dimensions..., everything else]`` in floating point."""
    if t.numel() == 0:
        raise ArgumentError(f"an empty tensor (shape {tuple(t.shape)}) has no range to quantize")
    data = t.detach()
    data = data if data.is_floating_point() else data.to(torch.float32)
    if per_dim is None:
        return data.reshape(-1)
    if not -data.dim() <= per_dim < data.dim():
        message = f"dimension {per_dim} does not exist: the tensor has {data.dim()} (counted from 0)"
        raise ArgumentError(message, argument=("per_dim",))
    return data.reshape(*data.shape[: per_dim % data.dim() + 1], -1)


def _larger_magnitude(low: Tensor, high: Tensor) -> Tensor:
    return torch.maximum(low.abs(), high.abs())
