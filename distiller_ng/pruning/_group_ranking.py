"""Which families of channels a user's targets mean, and in what order their channels go (layer 2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from distiller_ng.core.context import StepContext
from distiller_ng.errors import GraphError, listed
from distiller_ng.graph.dependency import DependencyGraph
from distiller_ng.names import ParameterIndex
from distiller_ng.ops.patterns import NMPattern, nm_mask
from distiller_ng.pruning._budget import Ranked
from distiller_ng.pruning._families import Family, FamilyMember, families_of
from distiller_ng.pruning.base import Target
from distiller_ng.pruning.importance.base import Importance

__all__ = ["Targeted", "original_width", "ranking_of", "scorable", "targeted_families"]

_MASKED, _DROPPED, _OTHERS = 0, 1, 2  # tiers: masked before, dropped by the pattern, all others


@dataclass(frozen=True, slots=True)
class Targeted:
    """A family of channels, and the targeted parameters that mean it; ``member`` is the first one's dimension.

    ``exact``: one of them was named exactly.
    """

    family: Family
    names: tuple[str, ...]
    member: FamilyMember
    exact: bool

    @property
    def name(self) -> str:
        """The first parameter."""
        return self.names[0]


def targeted_families(
    graph: DependencyGraph, targets: Mapping[str, Target], parameters: ParameterIndex, *, reads: bool
) -> list[Targeted]:
    """The families whose channels the targeted parameters make (or with ``reads``, read).

    Raises :class:`GraphError` for a parameter named exactly that has no channel which can be removed, and if no target
    has one.
    """
    wanted: dict[str, set[int]] = {}
    refused: list[str] = []
    for name, target in targets.items():
        dims = [dim for tensor, dim in graph.axes if parameters.find(tensor) == name]
        dims = [dim for dim in dims if graph.feeds(name, dim) != reads]
        if any(graph.removable(name, dim).any() for dim in dims):
            wanted[name] = set(dims)
            continue
        exact = parameters.find(target.text) is not None
        if exact and not dims:
            graph.channels_of(name, 0 if reads and parameters[name].dim() < 2 else int(reads))
        why = graph.why_frozen(graph.channels_of(name, dims[0]).tolist()) if dims else "it has no such channels"
        if exact:
            raise GraphError(f"{name!r} cannot be pruned: {why}. Leave it out of the targets (weights: [...])")
        refused.append(f"{name} ({why})")
    if not wanted:
        raise GraphError(f"no targeted weight has channels that can be removed: {listed(refused, limit=3)}")
    found = []
    for family in families_of(graph):
        own = [m for m in family.members if m.dim in wanted.get(parameters.find(m.tensor) or "", ())]
        if own:
            names = tuple(dict.fromkeys(str(parameters.find(m.tensor)) for m in own))
            exact = any(parameters.find(targets[name].text) is not None for name in names)
            found.append(Targeted(family, names, own[0], exact))
    return found


def scorable(targeted: Sequence[Targeted], importance: Importance, graph: DependencyGraph) -> list[Targeted]:
    """Those the importance can score; raises :class:`GraphError` for one named exactly, or if there are none."""
    problems = [importance.problem_with(item.family, graph) for item in targeted]
    for item, problem in zip(targeted, problems, strict=True):
        if problem is not None and (item.exact or all(problems)):
            raise GraphError(problem)
    return [item for item, problem in zip(targeted, problems, strict=True) if problem is None]


def original_width(item: Targeted, known: int, ctx: StepContext) -> int:
    """How many channels a family had at first: as far as is known, and as far as the record of removals tells."""
    family, member = item.family, item.member
    present = len(family)
    removed = 0
    if (member.index >= 0).all():
        removed = ctx.removed(item.name, member.dim) * present // member.index.size
    return max(known, present + removed)


def ranking_of(
    item: Targeted, scores: Mapping[int, float], masked: Tensor | None, pattern: NMPattern | None
) -> list[Ranked]:
    """The channels of a family in the order they go; equal ones by number."""
    family, member = item.family, item.member
    tiers = np.full(len(family), _OTHERS)
    places = member.places(len(family))
    if pattern is not None:
        order = np.argsort([where[0] for where in places])
        ordered = torch.tensor([scores[int(family.channels[i])] for i in order], dtype=torch.float64)
        tiers[order[(nm_mask(ordered, pattern) == 0).numpy()]] = _DROPPED
    if masked is not None:
        others = [d for d in range(masked.dim()) if d != member.dim]
        dead = ((masked == 0).all(dim=others) if others else masked == 0).cpu().numpy()
        tiers[[bool(dead[where].all()) for where in places]] = _MASKED
    found = [
        Ranked(channel, int(tier), scores[channel])
        for channel, tier in zip(family.channels.tolist(), tiers, strict=True)
    ]
    return sorted(found, key=lambda ranked: (ranked.tier, ranked.score, ranked.channel))
