"""Pruning of the smallest structures to a random level (layer 2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from distiller_ng.core.context import StepContext
from distiller_ng.core.window import PolicyWindow
from distiller_ng.errors import ArgumentError
from distiller_ng.pruning._checks import check_number
from distiller_ng.pruning._ranked import GroupDependency
from distiller_ng.pruning._structures import RankedGroup
from distiller_ng.pruning.base import PRUNERS, MaskGroup, Scope
from distiller_ng.pruning.lp_ranked import L1RankedStructureParameterPruner
from distiller_ng.pruning.sparsity_schedules.base import ScheduleLike

__all__ = ["RandomLevelStructureParameterPruner"]


@PRUNERS.register("RandomLevelStructureParameterPruner", injected=("name",))
class RandomLevelStructureParameterPruner(L1RankedStructureParameterPruner):
    """Ranks structures by mean absolute value and prunes the lowest, to a level drawn anew for every tensor and call.

    The level is uniform in ``sparsity_range: [low, high]``, from torch's global generator; a Leader group and
    ``scope: global`` draw one level for all. Meant as a regularizer in training, with the policy's ``args``
    ``mini_batch_pruning_frequency`` and ``discard_masks_at_minibatch_end``. ``schedule`` replaces the drawn level by
    its own; the other arguments are those of :class:`LpRankedStructureParameterPruner`.

    With a range of ``[0.25, 0.75]`` a tensor of four filters loses one (a draw below 0.5) or two::

        pruners:
          drop_some:
            class: RandomLevelStructureParameterPruner
            group_type: Filters
            sparsity_range: [0.1, 0.2]
            weights: [layer1.0.conv1.weight]

    Raises :class:`ArgumentError` unless ``0 <= low <= high <= 1``.
    """

    level_argument: ClassVar[str] = "sparsity_range"
    keeps_leader_map: ClassVar[bool] = False
    always_masks: ClassVar[bool] = True

    def __init__(
        self,
        name: str,
        group_type: RankedGroup,
        sparsity_range: tuple[float, float] | None = None,
        weights: str | Sequence[str] = (),
        group_dependency: GroupDependency | None = None,
        kwargs: Mapping[str, Sequence[int]] | None = None,
        *,
        schedule: ScheduleLike | None = None,
        scope: Scope = "layer",
        pattern: str | int | None = None,
    ) -> None:
        self.sparsity_range = None if sparsity_range is None else _check_range(sparsity_range)
        arguments = (group_type, None, weights, group_dependency, kwargs)
        super().__init__(name, *arguments, schedule=schedule, scope=scope, pattern=pattern)
        self._drawn: float | None = None  # one level for all targets of a group

    def _given_levels(self) -> list[float | None]:
        return [None if self.sparsity_range is None else self.sparsity_range[1]]

    def level(self, name: str, ctx: StepContext) -> float | None:
        """A new draw, or what the schedule says."""
        fixed = super().level(name, ctx)
        if fixed is not None or self.sparsity_range is None:
            return fixed
        return self._drawn if self._drawn is not None else self._draw()

    def compute_masks(self, group: MaskGroup, ctx: StepContext) -> Mapping[str, Tensor]:
        """As every structure pruner's, with one draw for targets decided together."""
        together = self.group_dependency is not None or self.scope == "global"
        self._drawn = self._draw() if together else None
        return super().compute_masks(group, ctx)

    def planned_sparsity(self, name: str, window: PolicyWindow) -> float | None:
        """None: the draw decides."""
        return super().planned_sparsity(name, window) if self.schedule is not None else None

    def _draw(self) -> float | None:
        if self.sparsity_range is None:
            return None
        low, high = self.sparsity_range
        return low + (high - low) * float(torch.rand(()))


def _check_range(sparsity_range: Sequence[float]) -> tuple[float, float]:
    argument = ("sparsity_range",)
    if isinstance(sparsity_range, str) or not isinstance(sparsity_range, Sequence) or len(sparsity_range) != 2:
        raise ArgumentError(f"sparsity_range must be [low, high], got {sparsity_range!r}", argument=argument)
    low, high = (check_number(value, (*argument, i), low=0, high=1) for i, value in enumerate(sparsity_range))
    if low > high:
        raise ArgumentError(f"sparsity_range must be [low, high], got [{low:g}, {high:g}]", argument=argument)
    return low, high
