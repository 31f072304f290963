"""Pruning of randomly chosen filters, to compare other pruners with (layer 2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from distiller_ng.core.context import StepContext
from distiller_ng.pruning._ranked import FilterScorePruner, GroupDependency
from distiller_ng.pruning._structures import FilterGroup
from distiller_ng.pruning.base import PRUNERS, Scope
from distiller_ng.pruning.sparsity_schedules.base import ScheduleLike

__all__ = ["RandomRankedFilterPruner"]


@PRUNERS.register("RandomRankedFilterPruner", injected=("name",))
class RandomRankedFilterPruner(FilterScorePruner):
    """Prunes ``int(desired_sparsity * filters)`` filters of each target, drawn anew at every call.

    The draws come from torch's global generator. Useful as a baseline: what a ranking gains is what it gains over this
    one. ``group_dependency``, ``schedule``, ``scope``, ``pattern``: see :class:`StructurePruner`. At 0.5 two of four
    filters go, each pair as likely as any other::

        pruners:
          baseline:
            class: RandomRankedFilterPruner
            group_type: Filters
            desired_sparsity: 0.5
            weights: [layer1.0.conv1.weight]
    """

    keeps_leader_map: ClassVar[bool] = False

    def __init__(
        self,
        name: str,
        group_type: FilterGroup,
        desired_sparsity: float | None = None,
        weights: str | Sequence[str] = (),
        group_dependency: GroupDependency | None = None,
        *,
        schedule: ScheduleLike | None = None,
        scope: Scope = "layer",
        pattern: str | int | None = None,
    ) -> None:
        arguments = (group_type, desired_sparsity, weights, group_dependency)
        super().__init__(name, *arguments, schedule=schedule, scope=scope, pattern=pattern)

    def scores(self, name: str, ctx: StepContext) -> Tensor | None:
        """A random order."""
        filters = ctx.parameters[name].shape[0]
        # Ranks rather than uniform numbers: those may tie, and ties would favour the first filters. Divided, so that
        # every filter of every tensor has the same chance under scope: global.
        return torch.randperm(filters).float().add_(torch.rand(())).div_(filters).to(ctx.parameters[name].device)
