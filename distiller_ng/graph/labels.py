"""Labels: which channel each position of a tensor belongs to (layer 1).

Every output channel of every layer gets a number. Operators carry the numbers along: a concatenation puts them one
behind the other, a view folds them into its shape, an addition says that two numbers mean the same channel. 0 stands
for "belongs to no channel", 1 (:data:`FIXED`) for "can never be removed".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["FIXED", "NONE", "LabelArray", "Labels", "aligned", "compact", "known"]


LabelArray = NDArray[np.int64]

NONE = 0
FIXED = 1


@dataclass(frozen=True, slots=True)
class Labels:
    """The labels of one tensor.

    ``array`` has as many dimensions as the tensor; one of size 1 where the tensor's is larger says that labels do not
    vary along it. ``zero``: whether a channel whose parameters are all zero holds zeros here. ``made``: the tensor was
    made in forward from sizes alone (``torch.zeros``), so its extents follow the code's.
    """

    array: LabelArray
    shape: tuple[int, ...]
    zero: bool = False
    made: bool = False

    @classmethod
    def none(cls, shape: Sequence[int], *, zero: bool = False, made: bool = False) -> Labels:
        """A tensor without channels."""
        return cls(np.zeros((1,) * len(shape), np.int64), tuple(shape), zero, made)

    def varies(self, dim: int) -> bool:
        """Whether labels differ along ``dim``."""
        return bool(self.array.shape[dim] > 1)

    @property
    def varying(self) -> list[int]:
        """Every dimension along which labels differ."""
        return [dim for dim, size in enumerate(self.array.shape) if size > 1]

    def vector(self, dim: int) -> LabelArray | None:
        """The labels along ``dim`` where they vary along nothing else; None where they do not vary."""
        return self.array.reshape(-1) if self.varies(dim) else None

    def expanded(self, dims: Sequence[int]) -> LabelArray:
        """``array`` at full size along ``dims``."""
        sizes = [self.shape[d] if d in dims else size for d, size in enumerate(self.array.shape)]
        return np.broadcast_to(self.array, sizes)


def compact(array: LabelArray) -> LabelArray:
    """``array`` with every dimension along which nothing differs cut to size 1."""
    for dim in range(array.ndim):
        if array.shape[dim] > 1:
            first = np.take(array, [0], axis=dim)
            if (array == first).all():
                array = first
    return array


def known(labels: LabelArray) -> LabelArray:
    """Positions that belong to no channel, inside a tensor that has channels, can never be removed."""
    return np.where(labels == 0, FIXED, labels)


def aligned(labels: Labels, rank: int) -> Labels:
    """With dimensions of size 1 in front, as broadcasting adds them."""
    missing = rank - len(labels.shape)
    if missing <= 0:
        return labels
    array = labels.array.reshape((1,) * missing + labels.array.shape)
    return Labels(array, (1,) * missing + labels.shape, labels.zero, labels.made)
