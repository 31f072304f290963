"""Which labels mean one channel, and why some can never be removed (layer 1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from distiller_ng.graph.labels import FIXED, LabelArray, Labels

__all__ = ["Choice", "Coupling", "Pairs", "rows_of"]

#: Labels that are equal, position by position.
Pairs: TypeAlias = tuple[LabelArray, LabelArray]


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """A place where channels can only go in rows or in columns: a view that splits them, a grouped convolution.

    ``options``: the pairs of labels each possibility makes equal. Nothing needs choosing where one of them holds
    already; else the one that leaves most channels of ``array`` removable is taken, the first of equals.
    """

    array: LabelArray
    options: tuple[Pairs, ...]
    reason: str


@dataclass(slots=True)
class Coupling:
    """Collects equal labels while the graph is walked, then settles every choice."""

    size: int = FIXED + 1
    reasons: list[tuple[int, str]] = field(default_factory=list)
    roots: LabelArray = field(default_factory=lambda: np.arange(FIXED + 1, dtype=np.int64))
    _pairs: list[Pairs] = field(default_factory=list)
    _choices: list[Choice] = field(default_factory=list)

    def fresh(self, count: int) -> LabelArray:
        """New labels, one for each of ``count`` channels."""
        labels = np.arange(self.size, self.size + count, dtype=np.int64)
        self.size += count
        return labels

    def union(self, left: LabelArray, right: LabelArray) -> None:
        """``left[i]`` and ``right[i]`` are one channel."""
        a, b = left.reshape(-1), right.reshape(-1)
        different = a != b
        if different.any():
            self._pairs.append((a[different], b[different]))

    def fix(self, labels: LabelArray, reason: str) -> None:
        """These channels can never be removed."""
        found = _channels(labels)
        if found.size:
            self.union(found, np.full_like(found, FIXED))
            self.explain(found, reason)

    def explain(self, labels: LabelArray, reason: str) -> None:
        """Remember why these channels are restricted, for messages."""
        self.reasons += [(int(label), reason) for label in _channels(labels)[:1]]

    def tie(self, labels: Labels, dims: Sequence[int], reason: str) -> Labels:
        """Entries along ``dims`` can only go together; labels no longer vary there."""
        array = labels.array
        for dim in dims:
            if array.shape[dim] > 1:
                first = np.take(array, [0], axis=dim)
                self.union(np.broadcast_to(first, array.shape), array)
                self.explain(array, reason)
                array = first
        return labels if array is labels.array else Labels(array, labels.shape, labels.zero, labels.made)

    def choose(self, choice: Choice) -> None:
        """Decide this once everything else is known."""
        self._choices.append(choice)

    def resolve(self) -> None:
        """Settle every choice; afterwards ``roots[label]`` names the channel of each label."""
        pending = self._choices
        while True:
            self._components()
            pending, changed = self._settle(pending)
            if not changed:
                return

    def _components(self) -> None:
        left = np.concatenate([pair[0] for pair in self._pairs]) if self._pairs else np.zeros(0, np.int64)
        right = np.concatenate([pair[1] for pair in self._pairs]) if self._pairs else np.zeros(0, np.int64)
        self._pairs = [(left, right)]
        self.roots = _merged(left, right, self.size)

    def _settle(self, pending: list[Choice]) -> tuple[list[Choice], bool]:
        """Take an option of every open choice whose channels no other choice of this round has touched."""
        left: list[Choice] = []
        touched: set[int] = set()
        for choice in pending:
            if any((self.roots[a] == self.roots[b]).all() for a, b in choice.options):
                continue  # labels only ever merge, so it stays settled
            mine = set(np.unique(self.roots[choice.array]).tolist()) - {int(self.roots[0]), int(self.roots[FIXED])}
            if mine & touched:
                left.append(choice)
                continue
            best = max(choice.options, key=lambda pairs: self._removable_after(choice.array, pairs))
            self.union(*best)
            self.explain(choice.array, choice.reason)
            touched |= mine
        return left, bool(touched)

    def _removable_after(self, array: LabelArray, pairs: Pairs) -> int:
        """How many channels of ``array`` stay removable if ``pairs`` are equal; 0 if they become one."""
        roots = self.roots[array].reshape(-1)
        left, right = self.roots[pairs[0]].reshape(-1), self.roots[pairs[1]].reshape(-1)
        fixed = self.roots[[FIXED]]
        names, index = np.unique(np.concatenate([roots, left, right, fixed]), return_inverse=True)
        n, m = roots.size, left.size
        merged = _merged(index[n : n + m], index[n + m : n + 2 * m], names.size)
        found = set(merged[index[:n]].tolist()) - {int(merged[index[-1]])}
        return len(found) if len(found) > 1 else 0


def _channels(labels: LabelArray) -> LabelArray:
    flat = labels.reshape(-1)
    return flat[flat > FIXED]


def _merged(left: LabelArray, right: LabelArray, size: int) -> LabelArray:
    graph = coo_array((np.ones(left.size, np.int8), (left, right)), shape=(size, size))
    _, roots = connected_components(graph, directed=False)
    return np.asarray(roots, np.int64)


def rows_of(array: LabelArray, dims: Sequence[int]) -> tuple[Pairs, ...]:
    """The options of a choice between rows along each of ``dims``: the labels equal if only that one may lose any."""
    options: list[Pairs] = []
    for kept in dims:
        tied = array
        for dim in dims:
            if dim != kept:
                tied = np.take(tied, [0], axis=dim)
        options.append((np.broadcast_to(tied, array.shape).reshape(-1), array.reshape(-1)))
    return tuple(options)
