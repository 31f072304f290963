"""Which channels the zeros in a model's weights ask to remove (layer 2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from distiller_ng.core.masker import ParameterMasker
from distiller_ng.errors import GraphError
from distiller_ng.graph.dependency import DependencyGraph
from distiller_ng.thinning.cutting import tensors_of

__all__ = ["Structures", "Wish", "silent_channels", "wishes"]

#: ``filters``: outputs of layers whose weights are zero; ``channels``: inputs that a layer multiplies by zeros.
Structures: TypeAlias = Literal["filters", "channels"]
Axis: TypeAlias = tuple[str, int]


@dataclass(slots=True)
class Wish:
    """What the zeros ask for.

    ``zeros``: for each weight dimension that has some, whether each index is zero throughout. ``channels``: what all
    coupled weights that have zeros agree on. ``notes``: where they do not agree, or cannot be followed.
    """

    zeros: dict[Axis, NDArray[np.bool_]] = field(default_factory=dict)
    channels: set[int] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)

    @property
    def asked_by(self) -> tuple[str, ...]:
        """The weights that have zero structures."""
        return tuple(dict.fromkeys(tensor for tensor, _ in self.zeros))


def wishes(graph: DependencyGraph, masks: Mapping[str, ParameterMasker] | None, structures: Structures) -> Wish:
    """Read the zeros of every weight of at least two dimensions (masks that are not applied yet count).

    Coupled weights that have zero structures must agree on a channel for it to go; weights without any follow. Raises
    :class:`GraphError` where every structure of a weight is zero.
    """
    wish = Wish()
    tensors = tensors_of(graph.model)
    votes: dict[int, int] = {}
    voters: dict[int, int] = {}
    for (name, dim), numbers in graph.axes.items():
        tensor = tensors[name]
        if (
            tensor.dim() < 2
            or not isinstance(tensor, nn.Parameter)
            or graph.feeds(name, dim) != (structures == "filters")
        ):
            continue
        zero = _zero_entries(tensor, _mask(masks, name), dim)
        if not zero.any():
            continue
        removable = graph.removable(name, dim)
        if zero.all() and removable.any():
            raise GraphError(
                f"all {structures} of {name!r} are zero, and a layer cannot be removed whole: that is not allowed. "
                "Prune it less"
            )
        _note_frozen(graph, wish, name, (zero & ~removable, numbers), structures)
        if (zero & removable).any():
            wish.zeros[(name, dim)] = zero & removable
            _vote(numbers, zero & removable, votes, voters)
    wish.channels = {channel for channel, count in votes.items() if count == voters[channel]}
    _note_conflicts(graph, wish)
    return wish


def silent_channels(graph: DependencyGraph, masks: Mapping[str, ParameterMasker] | None) -> set[int]:
    """Channels that come from zero filters only: what is left of them is biases and shifts, the same on every input."""
    tensors = tensors_of(graph.model)
    seen: set[int] = set()
    loud: set[int] = set()
    for (name, dim), numbers in graph.axes.items():
        tensor = tensors[name]
        if isinstance(tensor, nn.Parameter) and tensor.dim() > 1 and graph.feeds(name, dim):
            zero = _zero_entries(tensor, _mask(masks, name), dim)
            seen.update(numbers.tolist())
            loud.update(numbers[~zero].tolist())
    return seen - loud


def _mask(masks: Mapping[str, ParameterMasker] | None, name: str) -> Tensor | None:
    masker = masks.get(name) if masks is not None else None
    return None if masker is None else masker.mask


def _zero_entries(tensor: Tensor, mask: Tensor | None, dim: int) -> NDArray[np.bool_]:
    weight = tensor.detach() if mask is None else tensor.detach() * (mask != 0).to(tensor.device)
    return np.asarray((weight != 0).movedim(dim, 0).flatten(1).any(1).logical_not().cpu().numpy())


def _vote(numbers: NDArray[np.int64], zero: NDArray[np.bool_], votes: dict[int, int], voters: dict[int, int]) -> None:
    """One vote for each channel all of whose entries are zero here."""
    channels, place = np.unique(numbers, return_inverse=True)
    whole = np.bincount(place, weights=zero) == np.bincount(place)
    for channel, agrees in zip(channels.tolist(), whole.tolist(), strict=True):
        voters[channel] = voters.get(channel, 0) + 1
        votes[channel] = votes.get(channel, 0) + int(agrees)


def _note_frozen(
    graph: DependencyGraph,
    wish: Wish,
    name: str,
    found: tuple[NDArray[np.bool_], NDArray[np.int64]],
    structures: Structures,
) -> None:
    stuck, numbers = found
    if stuck.any():
        why = graph.why_frozen(set(numbers[stuck].tolist()))
        wish.notes.append(f"{int(stuck.sum())} zero {structures} of {name!r} stay: {why}")


def _note_conflicts(graph: DependencyGraph, wish: Wish) -> None:
    """Zero structures that stay because coupled weights have none at their place."""
    for (name, dim), zero in wish.zeros.items():
        numbers = graph.channels_of(name, dim)
        left = sorted(set(numbers[zero].tolist()) - wish.channels)
        if left:
            others = [t for t, d in wish.zeros if t != name and np.isin(graph.axes[(t, d)], left).any()]
            coupled = f" with {', '.join(repr(t) for t in dict.fromkeys(others))}" if others else ""
            wish.notes.append(
                f"{len(left)} zero structures of {name!r} stay: it is coupled{coupled}, which has other zeros. Prune "
                "coupled layers together (mask_group: true, or group_dependency: Leader)"
            )
