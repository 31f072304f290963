"""Norms of groups of weights (kernels, channels, filters, rows, columns) and rankings by them (layer 1).

Shapes: ``[C_o, C_i]`` for Linear, ``[C_o, C_i, *kernel]`` for convolutions of one to three dimensions. Every function
returns one norm for each group, ``[number of groups]``, without autograd history.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from distiller_ng.errors import ArgumentError
from distiller_ng.ops.masks import structures_to_prune

__all__ = [
    "Norm",
    "NormFunction",
    "channels_lp_norm",
    "channels_norm",
    "cols_lp_norm",
    "cols_norm",
    "e_greedy_normal_noise",
    "filters_lp_norm",
    "filters_norm",
    "generic_norm",
    "k_smallest_elems",
    "kernels_lp_norm",
    "kernels_norm",
    "l1_norm",
    "l2_norm",
    "max_norm",
    "num_structs_to_prune",
    "rank_channels",
    "rank_filters",
    "rows_lp_norm",
    "rows_norm",
    "sub_matrix_norm",
]

NormFunction = Callable[..., Tensor]  # called as norm_fn(matrix, dim=dim)


@dataclass(frozen=True, slots=True)
class Norm:
    """A norm along one dimension, with the name that logs show: ``str(l1_norm)`` is ``"L1"``.

    >>> l2_norm(torch.tensor([[3.0, 4.0], [0.0, 1.0]]))
    tensor([5., 1.])
    """

    name: str
    order: float

    def __call__(self, values: Tensor, dim: int = 1) -> Tensor:
        """The norm of ``values`` along ``dim``."""
        norm: Tensor = torch.linalg.vector_norm(values, ord=self.order, dim=dim)
        return norm

    def __str__(self) -> str:
        return self.name


l1_norm = Norm("L1", 1)
l2_norm = Norm("L2", 2)
max_norm = Norm("Max", float("inf"))


def kernels_norm(param: Tensor, norm_fn: NormFunction, group_len: int = 1, length_normalized: bool = False) -> Tensor:
    """Norm of each kernel of a convolution weight, filter by filter: ``[C_o * C_i / group_len]``.

    ``group_len`` adjacent kernels make one group; ``length_normalized`` divides by the elements in the group.

    Raises :class:`ArgumentError` for fewer than 3 dimensions or when ``group_len`` does not divide the kernels.
    """
    _check_dims(param, 3, "kernels")
    return _grouped_norm(param.flatten(2).flatten(0, 1), norm_fn, group_len, length_normalized, "kernels")


def channels_norm(param: Tensor, norm_fn: NormFunction, group_len: int = 1, length_normalized: bool = False) -> Tensor:
    """Norm of each input channel, ``[C_i / group_len]``: dimension 1 of a convolution, the columns of a Linear weight.

    Raises :class:`ArgumentError` for a vector or when ``group_len`` does not divide ``C_i``.
    """
    _check_dims(param, 2, "channels")
    return _grouped_norm(param.transpose(0, 1).flatten(1), norm_fn, group_len, length_normalized, "channels")


def filters_norm(param: Tensor, norm_fn: NormFunction, group_len: int = 1, length_normalized: bool = False) -> Tensor:
    """Norm of each filter (output channel), ``[C_o / group_len]``: dimension 0; the rows of a Linear weight.

    >>> filters_norm(torch.ones(2, 3, 2, 2), l1_norm), filters_norm(torch.ones(2, 3, 2, 2), l1_norm, 1, True)
    (tensor([12., 12.]), tensor([1., 1.]))

    Raises :class:`ArgumentError` for a vector or when ``group_len`` does not divide ``C_o``.
    """
    _check_dims(param, 2, "filters")
    return _grouped_norm(param.flatten(1), norm_fn, group_len, length_normalized, "filters")


def sub_matrix_norm(
    param: Tensor, norm_fn: NormFunction, group_len: int = 1, length_normalized: bool = False, dim: int = 1
) -> Tensor:
    """Norm of the rows (``dim=1``) or columns (``dim=0``) of a matrix as it is stored.

    Raises :class:`ArgumentError` unless ``param`` has two dimensions.
    """
    if param.dim() != 2:
        raise ArgumentError(f"rows and columns need a 2D weight, got shape {tuple(param.shape)}")
    matrix = param if dim == 1 else param.t()
    return _grouped_norm(matrix, norm_fn, group_len, length_normalized, "rows" if dim == 1 else "columns")


def rows_norm(param: Tensor, norm_fn: NormFunction, group_len: int = 1, length_normalized: bool = False) -> Tensor:
    """Norm of each stored row of a matrix: ``[rows / group_len]``."""
    return sub_matrix_norm(param, norm_fn, group_len, length_normalized, dim=1)


def cols_norm(param: Tensor, norm_fn: NormFunction, group_len: int = 1, length_normalized: bool = False) -> Tensor:
    """Norm of each stored column of a matrix: ``[columns / group_len]``."""
    return sub_matrix_norm(param, norm_fn, group_len, length_normalized, dim=0)


def kernels_lp_norm(param: Tensor, p: int = 1, group_len: int = 1, length_normalized: bool = False) -> Tensor:
    """:func:`kernels_norm` with the L1 (``p=1``) or L2 (``p=2``) norm."""
    return kernels_norm(param, _lp_norm(p), group_len, length_normalized)


def channels_lp_norm(param: Tensor, p: int = 1, group_len: int = 1, length_normalized: bool = False) -> Tensor:
    """:func:`channels_norm` with the L1 (``p=1``) or L2 (``p=2``) norm."""
    return channels_norm(param, _lp_norm(p), group_len, length_normalized)


def filters_lp_norm(param: Tensor, p: int = 1, group_len: int = 1, length_normalized: bool = False) -> Tensor:
    """:func:`filters_norm` with the L1 (``p=1``) or L2 (``p=2``) norm."""
    return filters_norm(param, _lp_norm(p), group_len, length_normalized)


def rows_lp_norm(param: Tensor, p: int = 1, group_len: int = 1, length_normalized: bool = False) -> Tensor:
    """:func:`rows_norm` with the L1 (``p=1``) or L2 (``p=2``) norm."""
    return rows_norm(param, _lp_norm(p), group_len, length_normalized)


def cols_lp_norm(param: Tensor, p: int = 1, group_len: int = 1, length_normalized: bool = False) -> Tensor:
    """:func:`cols_norm` with the L1 (``p=1``) or L2 (``p=2``) norm."""
    return cols_norm(param, _lp_norm(p), group_len, length_normalized)


def generic_norm(
    param: Tensor, norm_fn: NormFunction, group_size: int, length_normalized: bool, dim: int | None
) -> Tensor:
    """``norm_fn(param, dim=dim)``, divided by ``group_size`` if ``length_normalized``.

    With ``dim=None`` the function picks its own dimension.
    """
    with torch.no_grad():
        norm = norm_fn(param) if dim is None else norm_fn(param, dim=dim)
        return norm / group_size if length_normalized else norm


def num_structs_to_prune(
    n_elems: int, group_len: int, fraction_to_prune: float, rounding_fn: Callable[[float], float]
) -> int:
    """How many of ``n_elems`` structures a fraction means, under Distiller's argument order.

    See :func:`distiller_ng.ops.masks.structures_to_prune`.
    """
    return structures_to_prune(n_elems, fraction_to_prune, group_len, rounding_fn)


def e_greedy_normal_noise(mags: Tensor, e: float) -> Tensor | float:
    """With probability ``e`` a factor from N(0, 1) for each magnitude, else 1. Drawn from torch's generator."""
    if e and float(torch.rand(())) <= e:
        return torch.randn_like(mags)
    return 1.0


def k_smallest_elems(mags: Tensor, k: int, noise: float) -> tuple[Tensor, Tensor]:
    """The ``k`` smallest magnitudes in ascending order, and all magnitudes, after the noise."""
    noisy = mags * e_greedy_normal_noise(mags, noise)
    return torch.topk(noisy, k, largest=False, sorted=True).values, noisy


def rank_channels(
    param: Tensor,
    group_len: int,
    magnitude_fn: NormFunction,
    fraction_to_partition: float,
    rounding_fn: Callable[[float], float],
    noise: float,
) -> tuple[Tensor, Tensor] | tuple[None, None]:
    """``(magnitudes of the channels to prune, ascending; magnitudes of all C_i channels)``, or ``(None, None)``.

    Magnitudes are length-normalized norms. ``group_len`` adjacent channels are ranked together: each has the magnitude
    of its group, so both results stay counted in channels.
    """
    count = structures_to_prune(param.size(1), fraction_to_partition, group_len, rounding_fn)
    if count == 0:
        return None, None
    mags = channels_norm(param, magnitude_fn, group_len, length_normalized=True)
    return k_smallest_elems(*_spread(mags, count, group_len, noise))


def rank_filters(
    param: Tensor,
    group_len: int,
    magnitude_fn: NormFunction,
    fraction_to_partition: float,
    rounding_fn: Callable[[float], float],
    noise: float,
) -> tuple[Tensor, Tensor] | tuple[None, None]:
    """``(magnitudes of the filters to prune, ascending; magnitudes of all C_o filters)``, or ``(None, None)``.

    As :func:`rank_channels`, over dimension 0.
    """
    count = structures_to_prune(param.size(0), fraction_to_partition, group_len, rounding_fn)
    if count == 0:
        return None, None
    mags = filters_norm(param, magnitude_fn, group_len, length_normalized=True)
    return k_smallest_elems(*_spread(mags, count, group_len, noise))


def _spread(mags: Tensor, count: int, group_len: int, noise: float) -> tuple[Tensor, int, float]:
    """Noise is drawn for each group, before the magnitudes are repeated: members of a group stay together."""
    noisy = mags * e_greedy_normal_noise(mags, noise)
    return noisy.repeat_interleave(group_len), count, 0.0


def _grouped_norm(
    structures: Tensor, norm_fn: NormFunction, group_len: int, length_normalized: bool, what: str
) -> Tensor:
    """Norms of ``group_len`` adjacent rows of ``[structures, elements]`` taken together."""
    total = structures.shape[0]
    if group_len < 1 or total % group_len:
        raise ArgumentError(
            f"{total} {what} cannot be grouped by {group_len}: the group size must divide them",
            argument=("group_size",),
        )
    rows = structures.reshape(total // group_len, -1)
    return generic_norm(rows, norm_fn, rows.shape[1], length_normalized, dim=1)


def _lp_norm(p: int) -> Norm:
    norms = {1: l1_norm, 2: l2_norm}
    if p not in norms:
        raise ArgumentError(f"p must be 1 or 2, got {p!r}", argument=("p",))
    return norms[p]


def _check_dims(param: Tensor, least: int, what: str) -> None:
    if param.dim() < least:
        raise ArgumentError(f"{what} need a weight of {least} or more dimensions, got shape {tuple(param.shape)}")
