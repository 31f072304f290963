"""Sums of products of dimensions that lose channels: what a cost is made of (layer 1)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from distiller_ng.errors import ArgumentError, listed
from distiller_ng.graph.labels import LabelArray

__all__ = ["SumOfProducts", "Term"]


@dataclass(frozen=True, slots=True, eq=False)
class Term:
    """``constant`` times the number of channels left along each of ``dimensions`` (channel numbers, one an index).

    ``layer`` says whose cost it is: a module's name, or a parameter's.
    """

    layer: str
    constant: int
    dimensions: tuple[LabelArray, ...] = ()


class SumOfProducts:
    """Terms prepared so that a search can evaluate them hundreds of times, each in time linear in the channels.

    Two layers of 4 and 3 channels, of which number 2 goes:

    >>> total = SumOfProducts([Term("a", 10, (np.array([2, 3, 4, 5]),)), Term("b", 1, (np.array([6, 7, 8]),))], 9)
    >>> total.values({2}).tolist()
    [30.0, 3.0]
    """

    def __init__(self, terms: Sequence[Term], channels: int) -> None:
        self.layers = [term.layer for term in terms]
        self._channels = channels
        self._constants = np.array([term.constant for term in terms], np.float64)
        arrays: dict[int, tuple[int, LabelArray]] = {}
        for term in terms:
            for array in term.dimensions:
                arrays.setdefault(id(array), (len(arrays), array))
        found = [array for _, array in arrays.values()]
        self._sizes = np.array([array.size for array in found] + [1], np.int64)
        self._numbers = np.concatenate(found) if found else np.zeros(0, np.int64)
        self._starts = np.cumsum([0, *(array.size for array in found[:-1])]) if found else np.zeros(0, np.int64)
        widest = max((len(term.dimensions) for term in terms), default=0)
        # Terms with fewer dimensions are filled up with the last size, which is 1.
        self._factors = np.full((len(terms), widest), len(found), np.int64)
        for row, term in enumerate(terms):
            for column, array in enumerate(term.dimensions):
                self._factors[row, column] = arrays[id(array)][0]

    def values(self, removed: Collection[int] = frozenset()) -> NDArray[np.float64]:
        """The value of each term once the channels of these numbers are gone.

        Raises :class:`ArgumentError` for numbers the graph does not have.
        """
        left = self._sizes
        if len(removed) and self._numbers.size:
            gone = self._gone(removed)
            lost = np.add.reduceat(gone[self._numbers].astype(np.int64), self._starts)
            left = self._sizes - np.append(lost, 0)
        values: NDArray[np.float64] = self._constants * left[self._factors].prod(axis=1, dtype=np.float64)
        return values

    def _gone(self, removed: Collection[int]) -> NDArray[np.bool_]:
        numbers = np.fromiter(removed, np.int64, len(removed))
        wrong = numbers[(numbers < 0) | (numbers >= self._channels)]
        if wrong.size:
            raise ArgumentError(
                f"the graph has no channels {listed(str(n) for n in wrong.tolist())}; channel numbers are those of "
                "graph.channels_of(tensor, dim)",
                argument=("removed",),
            )
        gone = np.zeros(self._channels, bool)
        gone[numbers] = True
        return gone
