"""From the filters or channels a pruner chose to whole dependency groups, decided once for each group (layer 2).

Filters that are added to each other, or read by the same layer, can only be removed together. Here the masks that a
pruner decided tensor by tensor become one decision for each channel of the model, and masks for everything that
belongs to it: weights, biases, scales and shifts of norms, and what the next layers read.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distiller_ng.errors import ArgumentError, GraphError, ScheduleWarning
from distiller_ng.graph.dependency import DependencyGraph
from distiller_ng.names import ParameterIndex

__all__ = ["channel_masks", "expand_to_groups", "keep_one_of_each"]

_Floats = NDArray[np.float64]
_Numbers = NDArray[np.int64]


def expand_to_groups(
    graph: DependencyGraph,
    masks: Mapping[str, Tensor],
    dim_of: Mapping[str, int],
    weights: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Masks of every parameter that belongs to the channels which ``masks`` prune along ``dim_of[name]``.

    The targeted tensors (the keys of ``masks``) vote on each channel they share: with 1 where they mask all of it, with
    the share of its entries otherwise. Channels with the most votes go, of equal ones that of smaller L1 norm (summed
    over the targeted tensors, each divided by its mean); as many as the tensor asked for that asked for fewest. A
    channel that cannot be removed is left, with a warning, and the next one goes. Every dimension keeps a channel.
    Untargeted parameters follow. ``weights`` replaces the weights the norms are taken of.

    The result has a mask for every parameter that has a share in the targeted tensors' channels, all ones where nothing
    goes, so that it replaces an earlier decision. Masks that scale what they keep (Bernoulli's) go on scaling it.

    Two coupled filters ``a`` and ``b`` of four channels, of which ``a`` masks 0 and 1 and ``b`` masks 1 and 2: channel
    1 has two votes and goes, of 0 and 2 the one with the smaller norm goes too, in both.

    Raises :class:`GraphError` for a tensor whose entries along that dimension are no channels, :class:`ArgumentError`
    for a mask without a dimension or of another shape.
    """
    parameters = ParameterIndex(graph.model)
    ballots = [_Ballot.of(graph, parameters, name, mask, dim_of, weights) for name, mask in masks.items()]
    removed: set[int] = set()
    order: dict[int, int] = {}
    for who, channels in _shared(ballots).items():
        ranked, count = _elect([ballots[i] for i in who], channels)
        removed.update(ranked[:count])
        order.update({channel: place for place, channel in enumerate(ranked)})
    removed = keep_one_of_each(graph, removed, order)
    touched = {int(channel) for ballot in ballots for channel in ballot.channels}
    expanded = channel_masks(graph, removed, touched, parameters)
    for ballot in ballots:
        known = expanded.get(ballot.name)
        dense = torch.ones_like(parameters[ballot.name], requires_grad=False)
        expanded[ballot.name] = (dense if known is None else known) * ballot.scale
    return expanded


def channel_masks(
    graph: DependencyGraph,
    removed: Iterable[int],
    touched: Iterable[int] | None = None,
    parameters: ParameterIndex | None = None,
) -> dict[str, Tensor]:
    """0/1 masks, in each parameter's shape and dtype, that zero everything that belongs to the channels ``removed``.

    Parameters that have a share in ``touched`` (default: ``removed``) get one. Buffers have no masks.
    """
    parameters = ParameterIndex(graph.model) if parameters is None else parameters
    gone = _flags(graph, removed)
    wanted = gone if touched is None else _flags(graph, touched)
    found: dict[str, Tensor] = {}
    for (tensor, dim), channels in graph.axes.items():
        name = parameters.find(tensor)
        if name is None or not wanted[channels].any():
            continue
        parameter = parameters[name]
        if name not in found:
            found[name] = torch.ones_like(parameter, requires_grad=False)
        hit = np.flatnonzero(gone[channels])
        if hit.size:
            found[name].index_fill_(dim, torch.from_numpy(hit).to(parameter.device), 0)
    return found


def keep_one_of_each(graph: DependencyGraph, removed: Iterable[int], order: Mapping[int, float]) -> set[int]:
    """``removed`` without what would empty a dimension: of that one, the channel that comes last in ``order`` stays."""
    left = set(removed)
    gone = _flags(graph, left)
    for channels in graph.axes.values():
        if gone[channels].all():
            saved = max((int(c) for c in channels), key=lambda channel: order.get(channel, -1.0))
            left.discard(saved)
            gone[saved] = False
    return left


class _Ballot:
    """What one targeted tensor says about each of its channels that can be removed."""

    def __init__(self, name: str, channels: _Numbers, votes: _Floats, norms: _Floats, scale: float) -> None:
        self.name, self.scale = name, scale
        self.channels, index, counts = np.unique(channels, return_inverse=True, return_counts=True)
        self.votes: _Floats = np.bincount(index, weights=votes) / counts
        summed: _Floats = np.bincount(index, weights=norms).astype(np.float64)
        mean = float(summed.mean()) if summed.size else 0.0
        self.norms: _Floats = summed / mean if mean > 0 else summed
        #: How many were asked for that cannot be removed; others go instead.
        self.refused = 0

    @classmethod
    def of(
        cls,
        graph: DependencyGraph,
        parameters: ParameterIndex,
        name: str,
        mask: Tensor,
        dim_of: Mapping[str, int],
        weights: Mapping[str, Tensor] | None,
    ) -> _Ballot:
        if name not in dim_of:
            raise ArgumentError(f"dim_of says no dimension for {name!r}", argument=("dim_of", name))
        found = parameters.find(name)  # tied parameters have their first name in the graph
        channels, dim = graph.channels_of(found or name, dim_of[name]), dim_of[name]
        if found is None:
            raise GraphError(f"{name!r} is a buffer, which no pruner masks")
        if mask.shape != parameters[found].shape:
            message = (
                f"mask for {name!r} has shape {list(mask.shape)}, the parameter's is {list(parameters[found].shape)}"
            )
            raise ArgumentError(message, argument=("masks", name))
        given = None if weights is None else weights.get(name)
        weight = parameters[found].detach() if given is None else given.detach()
        others = [d for d in range(mask.dim()) if d != dim]
        votes = (mask == 0).all(dim=others) if others else mask == 0
        magnitudes = weight.abs().double()
        norms = magnitudes.sum(dim=others) if others else magnitudes
        largest = float(mask.max()) if mask.numel() else 1.0
        free = graph.removable(found, dim)
        asked = votes.cpu().numpy()
        ballot = cls(
            found, channels[free], asked[free] * 1.0, norms.cpu().numpy()[free], largest if largest > 0 else 1.0
        )
        ballot.refused = int(asked[~free].sum())
        if ballot.refused:
            why = graph.why_frozen(channels[~free][asked[~free]].tolist())
            message = f"channels of {name!r} (dimension {dim}) cannot be removed and stay: {why}"
            warnings.warn(ScheduleWarning(message), stacklevel=4)
        return ballot

    def of_channels(self, channels: _Numbers) -> tuple[_Floats, _Floats]:
        """Votes and norms of these channels, which it has."""
        at = np.searchsorted(self.channels, channels)
        return self.votes[at], self.norms[at]


def _shared(ballots: list[_Ballot]) -> dict[tuple[int, ...], _Numbers]:
    """Channels by which ballots have them: each set of channels is decided by the same ballots."""
    owners: dict[int, list[int]] = {}
    for position, ballot in enumerate(ballots):
        for channel in ballot.channels.tolist():
            owners.setdefault(channel, []).append(position)
    parts: dict[tuple[int, ...], list[int]] = {}
    for channel, who in owners.items():
        parts.setdefault(tuple(who), []).append(channel)
    return {who: np.asarray(sorted(channels), np.int64) for who, channels in parts.items()}


def _elect(ballots: list[_Ballot], channels: _Numbers) -> tuple[list[int], int]:
    """The channels in the order they go, and how many do."""
    results = [ballot.of_channels(channels) for ballot in ballots]
    # Rounding errors of a sum of shares must not cost a channel.
    asked = [int(votes.sum() + 1e-6) + ballot.refused for ballot, (votes, _) in zip(ballots, results)]
    for ballot in ballots:
        ballot.refused = 0  # made good here
    votes = np.sum([votes for votes, _ in results], axis=0)
    norms = np.sum([norms for _, norms in results], axis=0)
    ranked: list[int] = channels[np.lexsort((channels, norms, -votes))].tolist()
    return ranked, min(asked)


def _flags(graph: DependencyGraph, channels: Iterable[int]) -> NDArray[np.bool_]:
    """One flag for each channel number of the graph, set for ``channels``."""
    size = 1 + max((int(numbers.max()) for numbers in graph.axes.values()), default=0)
    flags = np.zeros(size, dtype=np.bool_)
    flags[list(channels)] = True
    return flags
