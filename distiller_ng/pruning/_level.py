"""Bases of the pruners that prune to a level: a fixed one, a schedule's, or what an N:M pattern drops (layer 2)."""

from __future__ import annotations

import math
import warnings
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from distiller_ng.core.context import StepContext
from distiller_ng.core.window import PolicyWindow
from distiller_ng.errors import ArgumentError, ScheduleWarning
from distiller_ng.names import ParameterIndex
from distiller_ng.ops.mask_types import MaskType, create_masks
from distiller_ng.ops.masks import lowest_k_mask
from distiller_ng.ops.patterns import nm_mask
from distiller_ng.pruning._checks import check_map, check_number
from distiller_ng.pruning._ranking import rank_together
from distiller_ng.pruning.base import DEFAULT_TARGET, MaskGroup, Pruner, Scope
from distiller_ng.pruning.sparsity_schedules.base import ScheduleLike

__all__ = ["ElementLevelPruner", "LevelPruner"]


class LevelPruner(Pruner):
    """Prunes the share of a tensor that the level says.

    The level of a parameter is, in this order: the policy's ``levels``, ``schedule``, the constructor's own level, or
    without any of them whatever ``pattern`` drops. With a pattern, what it drops is pruned first. ``scope: global``
    makes one ranking over all targets: single layers may end above or below the level.
    """

    #: The constructor's argument that gives the level, for messages.
    level_argument: ClassVar[str] = "sparsity"

    def __init__(
        self,
        name: str,
        level: float | None,
        *,
        schedule: ScheduleLike | None,
        scope: Scope,
        pattern: str | int | None,
    ) -> None:
        super().__init__(name, schedule=schedule, scope=scope, pattern=pattern)
        self._level = None if level is None else check_number(level, (self.level_argument,), low=0, high=1)
        self._parameters: ParameterIndex | None = None
        given = self._given_levels()
        if None in given and self.schedule is None and self.pattern is None:
            raise ArgumentError(
                f"{type(self).__name__} needs {self.level_argument}, a schedule or a pattern",
                argument=(self.level_argument,),
            )
        if any(given) and self.schedule is not None:
            message = f"pruner {self.owner!r}: schedule replaces {self.level_argument}; leave one of the two out"
            warnings.warn(ScheduleWarning(message), stacklevel=4)

    def accept_levels(self, levels: Any) -> Any:
        """One sparsity for all targets, or one by target."""
        if isinstance(levels, Mapping):
            return check_map("levels", levels, low=0, high=1, example="{conv1.weight: 0.5}")
        return check_number(levels, ("levels",), low=0, high=1)

    def bind(self, parameters: ParameterIndex, *, strict: bool = True) -> list[str]:
        """As every pruner's; also remembers the model's parameters, to resolve ``levels``."""
        names = super().bind(parameters, strict=strict)
        self._parameters = parameters
        return names

    def _given_levels(self) -> list[float | None]:
        """The constructor's levels."""
        return [self._level]

    def level(self, name: str, ctx: StepContext) -> float | None:
        """The sparsity wanted now; None means what the pattern drops."""
        return self._level_at(name, ctx.progress)

    def fixed_level(self, name: str) -> float | None:
        """The constructor's level for a parameter."""
        return self._level

    def structures_of(self, name: str) -> int | None:
        """How many positions an N:M pattern sees along its dimension of a bound parameter."""
        shape = self._parameters[name].shape if self._parameters is not None else ()
        return shape[min(1, len(shape) - 1)] if shape else None

    def planned_sparsity(self, name: str, window: PolicyWindow) -> float | None:
        """The level at the window's end; None with ``scope: global``, where each layer's share is a result."""
        if self.scope == "global":
            return None
        level = self._level_at(name, 0.0 if math.isinf(window.end) else 1.0)
        if level is not None or self.pattern is None:
            return level
        size = self.structures_of(name)
        return size // self.pattern.m * (self.pattern.m - self.pattern.n) / size if size else None

    def check(self, window: PolicyWindow, parameters: ParameterIndex) -> None:
        """Warns about targets too small for the pattern where nothing else says what to prune."""
        super().check(window, parameters)
        for name in self.names:
            size = self.structures_of(name)
            if self.pattern is None or size is None or self._level_at(name, 1.0) is not None:
                continue
            if size < self.pattern.m:
                message = (
                    f"pattern {self.pattern} prunes nothing of {name!r}: it has only {size} positions in its direction"
                )
                warnings.warn(ScheduleWarning(f"pruner {self.owner!r}: {message}"), stacklevel=2)

    def _level_at(self, name: str, progress: float) -> float | None:
        override = self._override(name)
        if override is not None:
            return override
        if self.schedule is None:
            return self.fixed_level(name)
        target = self.schedule.target(progress)
        if not 0 <= target <= 1:
            raise ArgumentError(f"{self.schedule!r} asks for a sparsity of {target}", argument=("schedule",))
        return target

    def _override(self, name: str) -> float | None:
        """What ``levels`` says about a parameter: an exact name before a pattern, ``*`` last."""
        levels = self.levels
        if not isinstance(levels, Mapping):
            return None if levels is None else float(levels)
        return self._lookup(levels, name)

    def _lookup(self, levels: Mapping[str, float], name: str) -> float | None:
        parameters = self._parameters
        if parameters is not None:
            for key in levels:
                if parameters.find(key) == name:
                    return levels[key]
            for key in levels:
                if key != DEFAULT_TARGET and name in parameters.match(key, argument=("levels", key)):
                    return levels[key]
        return levels.get(DEFAULT_TARGET)

    def dense_mask(self, name: str, ctx: StepContext) -> Tensor | None:
        """All ones if this pruner masks the parameter already, else None: nothing to prune needs no mask."""
        if self.owner in ctx.masks[name].owners:
            return torch.ones_like(ctx.parameters[name], requires_grad=False)
        return None


class ElementLevelPruner(LevelPruner):
    """Prunes single weights, or groups of them (``mask_type``), of lowest score; equal ones by index.

    Exactly ``rounding(level * n)`` of ``n`` go; by default ``int`` of it, and the score is the magnitude.
    """

    mask_type: MaskType = MaskType()
    #: Whether :meth:`scores` are signed values of which the magnitudes are ranked.
    ranks_magnitudes: ClassVar[bool] = True

    @abstractmethod
    def targets(self) -> Any:
        """What the user named."""

    def scores(self, name: str, ctx: StepContext) -> Tensor:
        """What is ranked, in the parameter's shape: the lowest go."""
        return ctx.weight(name)

    def rounding(self, number: float) -> int:
        """From a share of the weights to a number of them."""
        return int(number)

    def compute_masks(self, group: MaskGroup, ctx: StepContext) -> Mapping[str, Tensor]:
        """Each tensor alone, or one ranking over all of them."""
        levels = {name: self.level(name, ctx) for name in group.names}
        masks = self._global_masks(levels, ctx) if self.scope == "global" else None
        if masks is None:
            masks = {name: self._layer_mask(name, level, ctx) for name, level in levels.items()}
        return {name: mask for name, mask in masks.items() if mask is not None}

    def _magnitudes(self, scores: Tensor) -> Tensor:
        return scores.abs() if self.ranks_magnitudes else scores

    def _layer_mask(self, name: str, level: float | None, ctx: StepContext) -> Tensor | None:
        scores = self.scores(name, ctx)
        if level is None:
            return None if self.pattern is None else nm_mask(self._magnitudes(scores), self.pattern)
        k = self.rounding(level * scores.numel())
        if k == 0:
            return self.dense_mask(name, ctx)
        if self.pattern is not None:
            return lowest_k_mask(self._magnitudes(scores), k, pattern=self.pattern)
        return self._create([scores], [level])[0]

    def _global_masks(self, levels: Mapping[str, float | None], ctx: StepContext) -> dict[str, Tensor | None] | None:
        """None where there is nothing to rank together."""
        ranked = {name: level for name, level in levels.items() if level}
        scores = [self.scores(name, ctx) for name in ranked]
        k = self._global_count(ranked, scores)
        if k == 0:
            return None
        if self.pattern is None:
            found = self._create(scores, list(ranked.values()))
        else:
            found = rank_together([self._magnitudes(score) for score in scores], k, pattern=self.pattern)
        masks = {name: self._layer_mask(name, level, ctx) for name, level in levels.items() if name not in ranked}
        masks.update(zip(ranked, found))
        return masks

    def _create(self, scores: list[Tensor], levels: list[float]) -> list[Tensor]:
        together = self.scope == "global"
        options = {"together": together, "rounding": self.rounding, "absolute": self.ranks_magnitudes}
        return create_masks(scores, levels, self.mask_type, **options)  # type: ignore[arg-type]

    def _global_count(self, levels: Mapping[str, float], scores: list[Tensor]) -> int:
        """How many weights the levels mean in all, each level counted once over all its tensors."""
        totals: dict[float, int] = {}
        for level, score in zip(levels.values(), scores):
            totals[level] = totals.get(level, 0) + score.numel()
        return self.rounding(math.fsum(level * total for level, total in totals.items()))
