"""Pruning one matrix so that its products with given inputs change least (layer 1)."""

from __future__ import annotations

import torch
from torch import Tensor

from distiller_ng.errors import ArgumentError

__all__ = ["inverse_factor", "sparsegpt"]


def sparsegpt(
    weight: Tensor,
    hessian: Tensor,
    *,
    k: int | None = None,
    groups: tuple[int, int, list[int]] | None = None,
    pruned: Tensor | None = None,
    damp: float = 0.01,
    block_size: int = 128,
) -> tuple[Tensor, Tensor]:
    """Prune ``weight`` ``[rows, columns]`` and update what is left: ``(new weight, mask)``, mask 1 = keep.

    ``hessian`` ``[columns, columns]`` is ``sum x x^T`` of the inputs ``x``. Columns are decided from left to right:
    with ``U`` the upper Cholesky factor of the inverse of ``H + damp * mean(diag H) * I``, pruning ``w_j`` costs
    ``w_j^2 / U_jj^2``, and is made up for by ``w_i -= w_j / U_jj * U_ji`` for all ``i >= j``. Exactly ``k`` weights
    go, of each ``block_size`` columns their share; or, with ``groups = (n, m, starts)``, all but ``n`` of the ``m``
    columns from each start. ``pruned`` (bool) go first. Columns whose inputs are all 0 have weights of 0 afterwards.

    Source: E. Frantar and D. Alistarh, "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot",
    https://arxiv.org/abs/2301.00774. With inputs that are always equal, ``H = [[1, 1], [1, 1]]``, pruning one of the
    weights ``[1, 2]`` doubles as moving it to the other:

    >>> hessian = torch.ones(2, 2, dtype=torch.float64)
    >>> new, mask = sparsegpt(torch.tensor([[1.0, 2.0]]).double(), hessian, k=1, damp=1e-9)
    >>> mask.tolist(), [round(float(w), 3) for w in new[0]]
    ([[0.0, 1.0]], [0.0, 3.0])
    """
    if (k is None) == (groups is None):
        raise ArgumentError("sparsegpt prunes k weights, or by groups: give one of the two")
    columns = weight.shape[1]
    new, mask = weight.clone(), torch.ones_like(weight)
    silent = hessian.diagonal() == 0
    new[:, silent] = 0
    upper = inverse_factor(hessian, damp).to(weight.dtype)
    diagonal = upper.diagonal()
    starts = set() if groups is None else set(groups[2])
    taken, first = 0, 0
    while first < columns:
        last = _block_end(first, block_size, columns, groups)
        part, inner = new[:, first:last], upper[first:last, first:last]
        if k is not None:
            share = round(k * last / columns) - taken
            taken += share
            mask[:, first:last] = _lowest(_costs(part, diagonal[first:last], pruned, first), share)
        errors = torch.zeros_like(part)
        for j in range(last - first):
            column = first + j
            if column in starts and groups is not None:
                _choose_(mask, part[:, j : j + groups[1]], diagonal, column, groups, pruned)
            gone = mask[:, column] == 0
            errors[:, j] = torch.where(gone, part[:, j] / diagonal[column], 0)
            part[:, j:] -= errors[:, j : j + 1] * inner[j : j + 1, j:]
            part[:, j].masked_fill_(gone, 0)
        new[:, last:] -= errors @ upper[first:last, last:]
        first = last
    return new.masked_fill_(mask == 0, 0), mask


def inverse_factor(hessian: Tensor, damp: float) -> Tensor:
    """Upper triangular ``U`` in float64 with ``U^T U = (H + damp * mean(diag H) * I)^-1``.

    Columns of zeros count as independent. The damping grows tenfold while rounding leaves no Cholesky factor. Raises
    :class:`ArgumentError` when the inputs were not finite.
    """
    matrix = hessian.double().clone()
    if not bool(torch.isfinite(matrix).all()):
        raise ArgumentError("the inputs of a layer are not finite: did the training diverge?")
    diagonal = matrix.diagonal()
    diagonal[diagonal == 0] = 1
    mean, step = float(diagonal.mean()), max(damp, 1e-12)
    diagonal += step * mean
    while True:
        lower, failed = torch.linalg.cholesky_ex(matrix)
        if int(failed) == 0:
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
        if int(failed) == 0:
            found: Tensor = upper
            return found
        diagonal += 9 * step * mean
        step *= 10


def _block_end(first: int, size: int, columns: int, groups: tuple[int, int, list[int]] | None) -> int:
    """Where a block of columns ends that begins at ``first``: after ``size``, and never inside a group."""
    end = min(first + size, columns)
    if groups is not None:
        end = max([end, *(start + groups[1] for start in groups[2] if start < end)])
    return end


def _costs(part: Tensor, diagonal: Tensor, pruned: Tensor | None, first: int) -> Tensor:
    costs = part.square() / diagonal.square()
    return costs if pruned is None else costs.masked_fill(pruned[:, first : first + part.shape[1]], -1)


def _lowest(costs: Tensor, k: int) -> Tensor:
    mask = torch.ones(costs.numel(), dtype=costs.dtype, device=costs.device)
    mask[costs.reshape(-1).argsort(stable=True)[:k]] = 0
    return mask.view_as(costs)


def _choose_(
    mask: Tensor,
    part: Tensor,
    diagonal: Tensor,
    column: int,
    groups: tuple[int, int, list[int]],
    pruned: Tensor | None,
) -> None:
    """Decide the group that begins at ``column``, from the weights as they are by now."""
    n, m, _ = groups
    costs = _costs(part, diagonal[column : column + m], pruned, column)
    chosen = costs.argsort(dim=1, stable=True)[:, : m - n]
    mask[:, column : column + m].scatter_(1, chosen, 0)
