"""Dropping of filters by independent draws (layer 2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from distiller_ng.core.context import StepContext
from distiller_ng.core.window import PolicyWindow
from distiller_ng.ops.masks import lowest_k_mask
from distiller_ng.ops.patterns import nm_mask
from distiller_ng.pruning._ranked import FilterScorePruner, GroupDependency
from distiller_ng.pruning._structures import FilterGroup
from distiller_ng.pruning.base import PRUNERS, MaskGroup, Scope
from distiller_ng.pruning.sparsity_schedules.base import ScheduleLike

__all__ = ["BernoulliFilterPruner"]


@PRUNERS.register("BernoulliFilterPruner", injected=("name",))
class BernoulliFilterPruner(FilterScorePruner):
    """Drops each filter with probability ``desired_sparsity`` and scales the others up, as dropout does.

    The mask of a kept filter is ``filters / kept filters`` (so it is not binary), which keeps the expected output. The
    draws come from torch's global generator, anew at every call; if all filters of a tensor would go, one drawn at
    random stays. Meant as a regularizer in training, with the policy's ``args`` ``mini_batch_pruning_frequency``,
    ``discard_masks_at_minibatch_end`` and ``mask_on_forward_only``. ``group_dependency: Leader``: one draw for all
    targets; ``scope: global``: one scaling factor for all; ``pattern``: as many filters as were drawn, those that a
    random N:M choice drops first; ``schedule`` replaces ``desired_sparsity``.

    Four filters of which the second is dropped get the masks 4/3, 0, 4/3, 4/3::

        pruners:
          drop_filter:
            class: BernoulliFilterPruner
            group_type: Filters
            desired_sparsity: 0.1
            weights: [layer1.0.conv1.weight]
        policies:
          - pruner:
              instance_name: drop_filter
              args: {mini_batch_pruning_frequency: 16, discard_masks_at_minibatch_end: true, mask_on_forward_only: true}
            starting_epoch: 0
            ending_epoch: 60
            frequency: 1
    """

    binary_masks: ClassVar[bool] = False
    keeps_leader_map: ClassVar[bool] = False
    always_masks: ClassVar[bool] = True

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

    def scores(self, name: str, ctx: StepContext) -> Tensor:
        """Random numbers; only the choice inside a pattern needs them."""
        return torch.rand(ctx.parameters[name].shape[0])

    def planned_sparsity(self, name: str, window: PolicyWindow) -> float | None:
        """None: the draws decide."""
        return None

    def compute_masks(self, group: MaskGroup, ctx: StepContext) -> Mapping[str, Tensor]:
        """A draw for each tensor (for the leader alone, where there is one), scaled."""
        if self.group_dependency is not None:
            maps = dict.fromkeys(group.names, self._draw(group.names[0], ctx))
        else:
            maps = {name: self._draw(name, ctx) for name in group.names}
        kept = {name: float(keep.mean()) for name, keep in maps.items()}
        if self.scope == "global":
            total = sum(keep.numel() for keep in maps.values())
            kept = dict.fromkeys(maps, sum(float(keep.sum()) for keep in maps.values()) / total)
        return {name: self.structures.expand(ctx.parameters[name], keep / kept[name]) for name, keep in maps.items()}

    def _draw(self, name: str, ctx: StepContext) -> Tensor:
        """1 or 0 for each filter, at least one 1."""
        filters = ctx.parameters[name].shape[0]
        level = self.level(name, ctx)
        if level is None:
            return torch.ones(filters) if self.pattern is None else nm_mask(self.scores(name, ctx), self.pattern)
        keep = torch.bernoulli(torch.full((filters,), 1.0 - level))
        if self.pattern is not None:
            keep = lowest_k_mask(self.scores(name, ctx), filters - int(keep.sum()), pattern=self.pattern)
        if not bool(keep.any()):
            keep[torch.randint(filters, ())] = 1.0
        return keep
