"""What is pruned together: single weights, blocks, N:M patterns, filters or channels (layer 1)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor

from distiller_ng.errors import ArgumentError
from distiller_ng.ops.masks import lowest_k_mask, lowest_k_masks
from distiller_ng.ops.patterns import NMPattern, nm_mask

__all__ = ["MaskKind", "MaskType", "MaskTypeLike", "create_masks"]

MaskKind: TypeAlias = Literal["unstructured", "block", "pattern", "filter", "channel"]

#: What users may write: ``unstructured``, ``block4``, ``filter``, ``channel``, ``"2:4"``, ``[1, 4]``.
MaskTypeLike: TypeAlias = "str | int | Sequence[int] | MaskType"

_NAMES: dict[str, tuple[MaskKind, tuple[int, int]]] = {
    "unstructured": ("unstructured", (1, 1)),
    "block4": ("block", (1, 4)),
    "4block": ("block", (1, 4)),
    "filter": ("filter", (1, 1)),
    "channel": ("channel", (1, 1)),
}
_PATTERN_TOLERANCE = 0.01  # how far from 1 - N / M a level may lie that means the pattern
_EXAMPLES = "unstructured, block4, filter, channel, '2:4' (N:M, in quotes) or a block such as [1, 4]"


@dataclass(frozen=True, slots=True)
class MaskType:
    """One way to group the weights of a tensor; whole groups are kept or pruned.

    ``block`` is ``[a, b]``: ``a`` neighbours along the outputs (dimension 0) by ``b`` along the inputs (dimension 1),
    at one position of a convolution's kernel; -1 is the whole dimension. Where a size does not divide, the last block
    is a smaller one. A block's score is the mean of its members', that of a filter or channel their L2 norm. A tensor
    of one dimension counts as one row of inputs. ``pattern`` keeps N of M neighbours along the inputs, of linear layers
    and of convolutions.

    >>> MaskType.parse("4block")
    MaskType(kind='block', block=(1, 4), pattern=None)
    >>> MaskType.parse([1, 2]).group_scores(torch.tensor([[1.0, 3.0, 5.0, 5.0]]))
    tensor([2., 5.])
    """

    kind: MaskKind = "unstructured"
    block: tuple[int, int] = (1, 1)
    pattern: NMPattern | None = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(MaskKind) or (self.kind == "pattern") != (self.pattern is not None):
            raise ArgumentError(f"mask_type is {_EXAMPLES}; got {self!r}", argument=("mask_type",))

    @classmethod
    def parse(cls, value: MaskTypeLike) -> MaskType:
        """What a schedule says; raises :class:`ArgumentError` at ``mask_type`` for anything else.

        ``tensorrt`` is 2:4, and so is the integer 124, which YAML 1.1 reads without the quotes. ``[a, b, 1, 1]``, with
        ones for a kernel, is ``[a, b]``.
        """
        if isinstance(value, MaskType):
            return value
        if isinstance(value, str):
            known = _NAMES.get(value.strip().lower())
            if known is not None:
                return cls(*known)
            if value.strip().lower() == "tensorrt":
                return cls("pattern", pattern=NMPattern(2, 4))
        if isinstance(value, Sequence) and not isinstance(value, str):
            return cls("block", _block(value))
        if isinstance(value, str | int) and (":" in str(value) or not isinstance(value, str)):
            try:
                return cls("pattern", pattern=NMPattern.parse(value))
            except ArgumentError as error:
                raise ArgumentError(f"mask_type: {error}", argument=("mask_type",)) from None
        raise ArgumentError(f"mask_type is {_EXAMPLES}; got {value!r}", argument=("mask_type",))

    @property
    def is_unstructured(self) -> bool:
        """Whether every weight is a group of its own."""
        return self.kind == "unstructured" or (self.kind == "block" and self.block == (1, 1))

    @property
    def structure_dim(self) -> int | None:
        """0 for filters, 1 for channels, None for the others."""
        return {"filter": 0, "channel": 1}.get(self.kind)

    @property
    def sparsity(self) -> float | None:
        """What a pattern prunes; None for the others, which prune any share."""
        return None if self.pattern is None else self.pattern.sparsity

    def written(self) -> str | list[int]:
        """How a schedule writes it: ``"block4"``, ``[2, 2]``, ``"2:4"``."""
        if self.kind == "block":
            return "block4" if self.block == (1, 4) else list(self.block)
        return str(self.pattern) if self.pattern is not None else self.kind

    def fits(self, shape: Sequence[int]) -> bool:
        """Whether groups of this type divide a tensor of ``shape`` without a rest."""
        rows, columns, _ = _matrix(shape)
        if self.kind == "block":
            return rows % self._sizes(shape)[0] == 0 and columns % self._sizes(shape)[1] == 0
        return self.pattern is None or columns % self.pattern.m == 0

    def leaves_alone(self, shape: Sequence[int]) -> bool:
        """Whether a tensor has nothing to choose from: one filter or channel (of a depthwise convolution) only."""
        dim = self.structure_dim
        return dim is not None and (len(shape) <= dim or shape[dim] == 1)

    def group_scores(self, scores: Tensor) -> Tensor:
        """One score a group, ``[groups]``. A pattern's weights, and single ones, are their own."""
        dim = self.structure_dim
        if dim is not None:
            wide = scores.float() if scores.element_size() < 4 else scores
            norms: Tensor = torch.linalg.vector_norm(wide.movedim(dim, 0).flatten(1), dim=1)
            return norms
        if self.kind != "block" or self.is_unstructured:
            return scores.reshape(-1)
        wide = scores.float() if scores.element_size() < 4 else scores
        sums = self._blocks(wide).sum(dim=(1, 3))
        if self.fits(scores.shape):
            return (sums / math.prod(self._sizes(scores.shape))).reshape(-1)
        members = self._blocks(torch.ones_like(wide)).sum(dim=(1, 3))
        return (sums / members).reshape(-1)

    def expand(self, kept: Tensor, like: Tensor) -> Tensor:
        """A mask of ``like``'s shape and dtype: each group's entry of ``kept`` ``[groups]`` at all its weights."""
        dim = self.structure_dim
        kept = kept.to(like.dtype)
        if dim is not None:
            shape = [1] * like.dim()
            shape[dim] = -1
            return kept.reshape(shape).expand_as(like).contiguous()
        if self.kind != "block" or self.is_unstructured:
            return kept.reshape(like.shape)
        rows, columns, kernel = _matrix(like.shape)
        a, b = self._sizes(like.shape)
        grid = kept.reshape(-(-rows // a), 1, -(-columns // b), 1, kernel)
        whole = grid.expand(-1, a, -1, b, -1).reshape(grid.shape[0] * a, grid.shape[2] * b, kernel)
        return whole[:rows, :columns].reshape(like.shape).contiguous()

    def _sizes(self, shape: Sequence[int]) -> tuple[int, int]:
        rows, columns, _ = _matrix(shape)
        return (rows if self.block[0] == -1 else self.block[0], columns if self.block[1] == -1 else self.block[1])

    def _blocks(self, values: Tensor) -> Tensor:
        """``[rows / a, a, columns / b, b, kernel]``, filled up with zeros."""
        rows, columns, kernel = _matrix(values.shape)
        a, b = self._sizes(values.shape)
        matrix = values.reshape(rows, columns, kernel)
        missing = (-rows % a, -columns % b)
        if any(missing):
            matrix = torch.nn.functional.pad(matrix, (0, 0, 0, missing[1], 0, missing[0]))
        return matrix.reshape(matrix.shape[0] // a, a, matrix.shape[1] // b, b, kernel)


def create_masks(
    scores: Sequence[Tensor],
    levels: Sequence[float],
    mask_type: MaskTypeLike = "unstructured",
    *,
    together: bool = False,
    rounding: Callable[[float], float] = round,
    absolute: bool = False,
) -> list[Tensor]:
    """Masks that prune exactly ``rounding(level * groups)`` groups, those of lowest score; equal ones by index.

    ``scores`` are tensors in the weights' shapes (``absolute``: signed weights, of which magnitudes are ranked),
    ``levels`` one sparsity 0..1 each. ``together`` makes one ranking over all of them. A pattern whose level is
    ``1 - N / M`` (within 0.01) prunes exactly the pattern; below it, first what the pattern will prune. Masks have
    their scores' shape and dtype.

    >>> create_masks([torch.tensor([[1.0, 1.0, 9.0, 1.0]])], [0.5], [1, 2])
    [tensor([[0., 0., 1., 1.]])]

    Raises :class:`ArgumentError` for a level outside 0..1, one that a pattern cannot reach, or NaN among the scores.
    """
    kind = MaskType.parse(mask_type)
    for level in levels:
        if not 0 <= level <= 1:
            raise ArgumentError(f"a sparsity lies between 0 and 1, got {level}", argument=("sparsity",))
    if kind.pattern is not None:
        return _pattern_masks(scores, levels, kind.pattern, together, rounding, absolute)
    ranked = [score for score in scores if not kind.leaves_alone(score.shape)]
    wanted = [level for score, level in zip(scores, levels, strict=True) if not kind.leaves_alone(score.shape)]
    if kind.is_unstructured:
        found = _lowest(ranked, wanted, together, rounding, absolute)
    else:
        groups = [kind.group_scores(score.abs() if absolute else score) for score in ranked]
        kept = _lowest(groups, wanted, together, rounding, False)
        found = [kind.expand(mask, score) for mask, score in zip(kept, ranked, strict=True)]
    masks = iter(found)
    return [torch.ones_like(score) if kind.leaves_alone(score.shape) else next(masks) for score in scores]


def _lowest(
    scores: Sequence[Tensor],
    levels: Sequence[float],
    together: bool,
    rounding: Callable[[float], float],
    absolute: bool,
) -> list[Tensor]:
    if not together:
        return [
            lowest_k_masks([score], int(rounding(level * score.numel())), absolute=absolute)[0]
            for score, level in zip(scores, levels, strict=True)
        ]
    return lowest_k_masks(scores, _count(scores, levels, rounding), absolute=absolute) if scores else []


def _count(scores: Sequence[Tensor], levels: Sequence[float], rounding: Callable[[float], float]) -> int:
    """How many groups the levels mean in all, each level counted once over all its tensors."""
    totals: dict[float, int] = {}
    for level, score in zip(levels, scores, strict=True):
        totals[level] = totals.get(level, 0) + score.numel()
    return int(rounding(math.fsum(level * total for level, total in totals.items())))


def _pattern_masks(
    scores: Sequence[Tensor],
    levels: Sequence[float],
    pattern: NMPattern,
    together: bool,
    rounding: Callable[[float], float],
    absolute: bool,
) -> list[Tensor]:
    final = pattern.sparsity
    for level in levels:
        if level > final + _PATTERN_TOLERANCE:
            message = f"a {pattern} pattern prunes {final:g}, it cannot reach a sparsity of {level:g}"
            raise ArgumentError(f"{message}: write {final:g}", argument=("final_sparsity",))
    ranked = [score.abs() if absolute else score for score in scores]
    if all(level >= final - _PATTERN_TOLERANCE for level in levels):
        return [nm_mask(score, pattern) for score in ranked]
    if not together:
        return [
            nm_mask(score, pattern)
            if level >= final - _PATTERN_TOLERANCE
            else lowest_k_mask(score, int(rounding(level * score.numel())), pattern=pattern)
            for score, level in zip(ranked, levels, strict=True)
        ]
    # What the pattern will prune competes alone: the others' scores are above everything.
    competing = [score.masked_fill(nm_mask(score, pattern) != 0, math.inf).reshape(-1) for score in ranked]
    room = sum(int((flat != math.inf).sum()) for flat in competing)
    keep = lowest_k_masks([torch.cat(competing)], min(_count(scores, levels, rounding), room), absolute=False)[0]
    cuts = [0]
    for flat in competing:
        cuts.append(cuts[-1] + flat.numel())
    parts = [keep[start:stop] for start, stop in pairwise(cuts)]
    return [part.reshape(score.shape).clone() for part, score in zip(parts, ranked, strict=True)]


def _matrix(shape: Sequence[int]) -> tuple[int, int, int]:
    """``(outputs, inputs, kernel positions)`` of a weight's shape."""
    if len(shape) < 2:
        return 1, math.prod(shape), 1
    return shape[0], shape[1], math.prod(shape[2:])


def _block(value: Sequence[Any]) -> tuple[int, int]:
    sizes = list(value)
    while len(sizes) > 2 and sizes[-1] == 1:
        sizes.pop()
    whole = all(isinstance(size, int) and not isinstance(size, bool) for size in sizes)
    if len(sizes) != 2 or not whole or any(size < 1 and size != -1 for size in sizes):
        raise ArgumentError(
            f"mask_type: a block is [outputs, inputs], two whole numbers from 1 (-1: all of them); got {list(value)!r}",
            argument=("mask_type",),
        )
    return sizes[0], sizes[1]
