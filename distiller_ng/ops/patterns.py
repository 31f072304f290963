"""N:M patterns: at most N values are kept of every M neighbours along the input dimension (layer 1)."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import Tensor

from distiller_ng.errors import ArgumentError

__all__ = ["NMPattern", "nm_mask"]

_TEXT = re.compile(r"\s*(\d+)\s*:\s*(\d+)\s*")
_SEXAGESIMAL_BASE = 60  # YAML 1.1 reads an unquoted 2:4 as the base-60 number 2 * 60 + 4
_PAIRWISE_LIMIT = 8  # up to this M, counting M*(M-1)/2 comparisons beats sorting every group (160 ms against 820 ms)


@dataclass(frozen=True, slots=True)
class NMPattern:
    """``n`` weights are kept of every ``m`` consecutive ones.

    Source: A. Zhou et al., "Learning N:M Fine-grained Structured Sparse Neural Networks From Scratch",
    https://arxiv.org/abs/2102.04010; 2:4 is the pattern that sparse tensor cores run.

    >>> NMPattern.parse("2:4").sparsity
    0.5
    """

    n: int
    m: int

    def __post_init__(self) -> None:
        if not 0 < self.n < self.m:
            raise ArgumentError(f"pattern {self.n}:{self.m} keeps nothing or everything: write N:M with 0 < N < M")

    @classmethod
    def parse(cls, value: str | int | NMPattern) -> NMPattern:
        """A pattern from what a schedule says: ``"2:4"``, or the integer 124 that YAML 1.1 reads without the quotes.

        Raises :class:`ArgumentError` for anything else.
        """
        if isinstance(value, NMPattern):
            return value
        if isinstance(value, int) and not isinstance(value, bool):
            n, m = divmod(value, _SEXAGESIMAL_BASE)
            if 0 < n < m:
                return cls(n, m)
            raise ArgumentError(f"pattern must be text such as '2:4' (N kept of every M), in quotes; got {value}")
        match = _TEXT.fullmatch(value) if isinstance(value, str) else None
        if match is None:
            raise ArgumentError(f"pattern must look like '2:4' (N kept of every M), got {value!r}")
        return cls(int(match[1]), int(match[2]))

    @property
    def sparsity(self) -> float:
        """The fraction of zeros the pattern makes: ``1 - n / m``."""
        return 1.0 - self.n / self.m

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"


def nm_mask(scores: Tensor, pattern: NMPattern) -> Tensor:
    """Keep the N highest of every M consecutive scores along the input dimension.

    ``scores`` is ``[C_o, C_i]`` (Linear: groups run along ``in_features``), ``[C_o, C_i, *kernel]`` (convolutions:
    groups run along ``C_i`` at one kernel position) or ``[n]``. When M does not divide that dimension, the last
    ``size % M`` positions belong to no group and are kept. Among equal scores the lower index goes first. Returns 1
    (keep) or 0 in the dtype of ``scores`` (float32 for integers and bool).

    >>> nm_mask(torch.tensor([[0.1, 0.4, 0.3, 0.2, 0.9]]), NMPattern(2, 4))
    tensor([[0., 1., 1., 0., 1.]])

    Raises :class:`ArgumentError` for a scalar or for NaN.
    """
    if scores.dim() == 0:
        raise ArgumentError(f"a {pattern} pattern needs a tensor with an input dimension, got a scalar")
    if bool(torch.isnan(scores).any()):
        raise ArgumentError(f"cannot apply a {pattern} pattern to scores with NaN: did the training diverge?")
    dtype = scores.dtype if scores.is_floating_point() else torch.float32
    mask = torch.ones(scores.shape, dtype=dtype, device=scores.device)
    dim = min(1, scores.dim() - 1)
    groups = scores.shape[dim] // pattern.m
    if groups == 0:
        return mask
    whole = groups * pattern.m
    shape = (*scores.shape[:dim], groups, pattern.m, *scores.shape[dim + 1 :])
    ranks = _ranks(scores.detach().narrow(dim, 0, whole).reshape(shape).movedim(dim + 1, 0))
    kept = mask.narrow(dim, 0, whole).view(shape).movedim(dim + 1, 0)  # a view of the mask
    for position in range(pattern.m):
        kept[position].copy_(ranks[position] >= pattern.m - pattern.n)
    return mask


def _ranks(grouped: Tensor) -> Tensor:
    """Rank of each value among the values along dimension 0, lowest first, equal ones by index."""
    size = grouped.shape[0]
    if size > _PAIRWISE_LIMIT:
        return grouped.argsort(dim=0, stable=True).argsort(dim=0)
    columns = [column.contiguous() for column in grouped]
    ranks = torch.zeros(grouped.shape, dtype=torch.uint8, device=grouped.device)
    for later in range(size):
        for earlier in range(later):
            earlier_is_lower = columns[earlier] <= columns[later]
            ranks[later] += earlier_is_lower
            ranks[earlier] += ~earlier_is_lower
    return ranks
