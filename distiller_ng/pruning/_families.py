"""Channels that make up the same layers: the unit within which their scores compare (layer 2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from distiller_ng.graph.dependency import DependencyGraph

__all__ = ["Family", "FamilyMember", "Floats", "families_of"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class FamilyMember:
    """One dimension of one parameter or buffer that all channels of a family have a share in.

    ``index``: for each entry along the dimension its channel's place in the family, -1 for channels of other families.
    """

    tensor: str
    dim: int
    feeds: bool
    index: NDArray[np.int64]

    def totals(self, values: Floats, size: int) -> Floats:
        """Sums of ``values`` (one for each entry along the dimension) for each of the family's ``size`` channels."""
        mine = self.index >= 0
        return np.bincount(self.index[mine], weights=values[mine], minlength=size).astype(np.float64)

    def places(self, size: int) -> list[NDArray[np.int64]]:
        """The entries of each of the family's ``size`` channels."""
        order = np.argsort(self.index, kind="stable")
        cuts = np.searchsorted(self.index[order], np.arange(size + 1))
        return [order[start:stop] for start, stop in pairwise(cuts.tolist())]


@dataclass(frozen=True, eq=False)
class Family:
    """Removable channels with a share in exactly the same dimensions of the same tensors.

    The channels a residual stage adds up are one family; those of each branch of a concatenation are one each. ``key``
    names the dimensions and stays the same when channels are removed from the model.
    """

    key: str
    channels: NDArray[np.int64]
    members: tuple[FamilyMember, ...]

    def __len__(self) -> int:
        return int(self.channels.size)

    @cached_property
    def name(self) -> str:
        """For messages: the first weight that makes its channels."""
        return next((m.tensor for m in self.members if m.feeds), self.members[0].tensor)


def families_of(graph: DependencyGraph) -> list[Family]:
    """Every removable channel of a model, by family, in the order of their first channels."""
    axes = list(graph.axes.items())
    shares: dict[int, list[int]] = {}
    for position, (_, numbers) in enumerate(axes):
        for channel in np.unique(numbers).tolist():
            shares.setdefault(channel, []).append(position)
    found: dict[tuple[int, ...], list[int]] = {}
    for channel in sorted(shares.keys() - graph.frozen):
        found.setdefault(tuple(shares[channel]), []).append(channel)
    return [_family(graph, [axes[i][0] for i in where], channels) for where, channels in found.items()]


def _family(graph: DependencyGraph, axes: Sequence[tuple[str, int]], channels: Sequence[int]) -> Family:
    numbers = np.asarray(channels, np.int64)
    members = []
    for tensor, dim in axes:
        own = graph.axes[(tensor, dim)]
        place = np.searchsorted(numbers, own)
        known = numbers[np.minimum(place, numbers.size - 1)] == own
        members.append(FamilyMember(tensor, dim, graph.feeds(tensor, dim), np.where(known, place, -1)))
    return Family("|".join(f"{tensor}:{dim}" for tensor, dim in axes), numbers, tuple(members))
