"""Base of the pruners that rank whole structures and prune the lowest (layer 2)."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal, TypeAlias

import torch
from torch import Tensor

from distiller_ng.core.context import StepContext
from distiller_ng.errors import ArgumentError, TargetError
from distiller_ng.names import ParameterIndex
from distiller_ng.ops.masks import lowest_k_mask, structures_to_prune
from distiller_ng.ops.patterns import nm_mask
from distiller_ng.pruning._checks import check_weights
from distiller_ng.pruning._level import LevelPruner
from distiller_ng.pruning._ranking import rank_together
from distiller_ng.pruning._structures import FILTER_GROUPS, Structures
from distiller_ng.pruning.base import MaskGroup, Scope, Target, targets_of_list
from distiller_ng.pruning.sparsity_schedules.base import ScheduleLike

__all__ = ["FilterScorePruner", "GroupDependency", "Rounding", "StructurePruner", "rounding_function"]

#: ``Leader``: the first target decides, all others get its map.
GroupDependency: TypeAlias = Literal["Leader"]
#: How a fractional number of structures becomes a whole one; Python code may pass a function.
Rounding: TypeAlias = Literal["floor", "ceil", "round"] | Callable[[float], float]
_ROUNDINGS: dict[str, Callable[[float], float]] = {"floor": math.floor, "ceil": math.ceil, "round": round}


class StructurePruner(LevelPruner):
    """Ranks structures (filters, channels, rows, blocks) and prunes the lowest, up to the level.

    Each tensor is ranked alone; with ``group_dependency: Leader`` the first target is ranked and all others get the
    same map (needed where residual connections add their outputs); with ``scope: global`` the structures of all
    targets are ranked together, and every tensor keeps its best one. ``pattern``: of M
    consecutive structures those that N:M drops are pruned first. Subclasses give the scores.
    """

    level_argument: ClassVar[str] = "desired_sparsity"
    #: Whether the leader's map is kept until the level changes, as Distiller does.
    keeps_leader_map: ClassVar[bool] = True
    #: Whether a mask is given even when nothing is pruned: replicas must agree on which masks there are, and these
    #: pruners may differ between them.
    always_masks: ClassVar[bool] = False

    def __init__(
        self,
        name: str,
        structures: Structures,
        level: float | None,
        weights: str | Sequence[str],
        group_dependency: GroupDependency | None,
        *,
        rounding_fn: Rounding = "floor",
        schedule: ScheduleLike | None,
        scope: Scope,
        pattern: str | int | None,
    ) -> None:
        super().__init__(name, level, schedule=schedule, scope=scope, pattern=pattern)
        self.structures = structures
        self.weights = check_weights(weights)
        self.rounding_fn = rounding_function(rounding_fn)
        if group_dependency not in (None, "Leader"):
            message = f"group_dependency is 'Leader' or left out, got {group_dependency!r}"
            raise ArgumentError(message, argument=("group_dependency",))
        if group_dependency is not None and scope == "global":
            message = (
                "group_dependency: Leader and scope: global contradict each other: one map for all, or one ranking"
            )
            raise ArgumentError(message, argument=("scope",))
        self.group_dependency = group_dependency
        self._leader: tuple[float | None, Tensor | None] | None = None  # (level, its map; None = nothing to prune)

    # -- targets ----------------------------------------------------------------------------------------------------

    def targets(self) -> Sequence[Target]:
        """``weights``."""
        return targets_of_list("weights", self.weights)

    def check_parameter(self, name: str, parameter: Tensor, target: Target) -> None:
        """The parameter must have such structures."""
        problem = self.structures.problem_with(parameter)
        if problem is not None:
            raise TargetError(f"{type(self).__name__} cannot prune {name!r}: {problem}", argument=target.argument)

    def bind(self, parameters: ParameterIndex, *, strict: bool = True) -> list[str]:
        """As every pruner's; members of a Leader group must have as many structures as their leader."""
        if self.group_dependency is not None:
            parameters.match(self.targets()[0].text, argument=self.targets()[0].argument)
        names = super().bind(parameters, strict=strict)
        if self.group_dependency is not None:
            leader = self.structures.count(parameters[names[0]])
            for name in names[1:]:
                count = self.structures.count(parameters[name])
                if count != leader:
                    raise TargetError(
                        f"{name!r} has {count} {self.structures.group_type} and cannot follow its leader {names[0]!r}, "
                        f"which has {leader}",
                        argument=self._bound[name].argument,
                    )
        return names

    def groups(self, parameters: ParameterIndex) -> Sequence[MaskGroup]:
        """All targets together for a leader or a global ranking, else each alone."""
        if self.group_dependency is not None:
            return [MaskGroup(tuple(self.names))] if self.names else []
        return super().groups(parameters)

    def structure_dim(self, name: str) -> int | None:
        """Filters are dimension 0, channels 1; rows and blocks are nothing that could be removed."""
        if self.structures.group_type in FILTER_GROUPS:
            return 0
        return 1 if self.structures.group_type == "Channels" else None

    def level(self, name: str, ctx: StepContext) -> float | None:
        """The level, relative to how many structures the tensor had before any were physically removed."""
        level, dim = super().level(name, ctx), self.structure_dim(name)
        gone = 0 if dim is None or not level else ctx.removed(name, dim)
        if level is None or not gone:
            return level
        left = self.structures.count(ctx.parameters[name])
        count = structures_to_prune(left + gone, level, self.structures.group_size, self.rounding_fn) - gone
        slack = -0.25 if self.rounding_fn is math.ceil else 0.25  # whatever rounds it finds the count again
        return min((count + slack) / left, 1.0) if count > 0 else 0.0

    def structures_of(self, name: str) -> int | None:
        """How many groups of structures a pattern sees."""
        if self._parameters is None:
            return None
        return self.structures.count(self._parameters[name]) // self.structures.group_size

    # -- masks ------------------------------------------------------------------------------------------------------

    @abstractmethod
    def scores(self, name: str, ctx: StepContext) -> Tensor | None:
        """``[structures / group_size]``, the lowest are pruned; None where nothing can be decided now."""

    def comparable(self, scores: Tensor) -> Tensor:
        """The scores of one tensor as they enter a ranking over several (``scope: global``)."""
        return scores

    def choose(self, scores: Tensor, level: float) -> Tensor | None:
        """Which groups to keep, 1 or 0 for each score; None when nothing is to be pruned."""
        size = self.structures.group_size
        count = structures_to_prune(scores.numel() * size, level, size, self.rounding_fn) // size
        return lowest_k_mask(scores, count, pattern=self.pattern) if count else None

    def compute_masks(self, group: MaskGroup, ctx: StepContext) -> Mapping[str, Tensor]:
        """One map for each tensor of the group, expanded to masks."""
        if self.group_dependency is not None:
            maps = self._maps_of_leader(group.names, ctx)
        elif self.scope == "global":
            maps = self._global_maps(group.names, ctx)
        else:
            maps = self._map_of_each(group.names, ctx)
        masks: dict[str, Tensor] = {}
        for name, binary_map in maps.items():
            keep = None if binary_map is None else binary_map.repeat_interleave(self.structures.group_size)
            mask = self.dense_mask(name, ctx) if keep is None else self.structures.expand(ctx.parameters[name], keep)
            if mask is not None:
                masks[name] = mask
        return masks

    def dense_mask(self, name: str, ctx: StepContext) -> Tensor | None:
        """All ones where a mask is needed though nothing is pruned, else None."""
        if self.always_masks:
            return torch.ones_like(ctx.parameters[name], requires_grad=False)
        return super().dense_mask(name, ctx)

    def _map_of_each(self, names: Sequence[str], ctx: StepContext) -> dict[str, Tensor | None]:
        """The map of every tensor that can be decided now; None for one that stays dense."""
        maps: dict[str, Tensor | None] = {}
        for name in names:
            scores = self.scores(name, ctx)
            if scores is not None:
                maps[name] = self._keep(scores, self.level(name, ctx))
        return maps

    def _keep(self, scores: Tensor, level: float | None) -> Tensor | None:
        if level is None:
            return None if self.pattern is None else nm_mask(scores, self.pattern)
        return self.choose(scores, level) if level > 0 else None

    def _maps_of_leader(self, names: Sequence[str], ctx: StepContext) -> dict[str, Tensor | None]:
        """The first tensor's map for all, decided again only when the level has changed."""
        level = self.level(names[0], ctx)
        if not self._leader_map_holds(level, ctx.parameters[names[0]]):
            scores = self.scores(names[0], ctx)
            if scores is None:
                return {}
            self._leader = (level, self._keep(scores, level))
        return dict.fromkeys(names, None if self._leader is None else self._leader[1])

    def _leader_map_holds(self, level: float | None, leader: Tensor) -> bool:
        if self._leader is None or level != self._leader[0] or not self.keeps_leader_map:
            return False
        known = self._leader[1]  # of another length once filters were removed from the model
        return known is None or known.numel() * self.structures.group_size == self.structures.count(leader)

    def _global_maps(self, names: Sequence[str], ctx: StepContext) -> dict[str, Tensor | None]:
        """One ranking over the structures of all tensors, each of which keeps its best."""
        scored = {name: scores for name in names if (scores := self.scores(name, ctx)) is not None}
        level = self._common_level(scored, ctx)
        if level is None:
            return {name: self._keep(scores, None) for name, scores in scored.items()}
        size = self.structures.group_size
        total = sum(scores.numel() for scores in scored.values())
        count = structures_to_prune(total * size, level, size, self.rounding_fn) // size
        count = min(count, total - len(scored))
        if count == 0:
            return dict.fromkeys(scored)
        found = rank_together(
            [self.comparable(scores) for scores in scored.values()],
            count,
            pattern=self.pattern,
            protected=[scores.argmax().reshape(1) for scores in scored.values()],
        )
        return dict(zip(scored, found))

    def _common_level(self, scored: Mapping[str, Tensor], ctx: StepContext) -> float | None:
        """The level of all tensors together: their own levels, weighted by how many structures they have."""
        levels = {name: self.level(name, ctx) for name in scored}
        if len(set(levels.values())) <= 1:
            return next(iter(levels.values()), None)
        total = sum(scores.numel() for scores in scored.values())
        return math.fsum((levels[name] or 0.0) * scores.numel() / total for name, scores in scored.items())

    # -- state ------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The leader's map and the level it was decided for."""
        leader = self._leader
        return {"leader": None if leader is None else {"level": leader[0], "map": leader[1]}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`state_dict`."""
        leader = state["leader"]
        self._leader = None if leader is None else (leader["level"], leader["map"])


class FilterScorePruner(StructurePruner):
    """Ranks filters by a score of their own; exactly ``int(level * filters)`` are pruned, equal ones by index."""

    def __init__(
        self,
        name: str,
        group_type: str,
        level: float | None,
        weights: str | Sequence[str],
        group_dependency: GroupDependency | None,
        *,
        schedule: ScheduleLike | None,
        scope: Scope,
        pattern: str | int | None,
    ) -> None:
        if group_type not in FILTER_GROUPS:
            message = f"{type(self).__name__} prunes filters: group_type is '3D' or 'Filters', got {group_type!r}"
            raise ArgumentError(message, argument=("group_type",))
        structures = Structures.of(group_type)
        super().__init__(
            name, structures, level, weights, group_dependency, schedule=schedule, scope=scope, pattern=pattern
        )


def rounding_function(rounding: Rounding) -> Callable[[float], float]:
    """The function a rounding means; raises :class:`ArgumentError` for anything else."""
    function = _ROUNDINGS.get(rounding) if isinstance(rounding, str) else rounding
    if not callable(function):
        message = f"rounding_fn is floor, ceil, round or a function, got {rounding!r}"
        raise ArgumentError(message, argument=("rounding_fn",))
    return function
