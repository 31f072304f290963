"""Pruning that also brings connections back (layer 2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from distiller_ng.core.context import StepContext
from distiller_ng.core.masks import RESTORED
from distiller_ng.errors import ArgumentError
from distiller_ng.pruning._checks import check_map, check_number
from distiller_ng.pruning._threshold import StatisticsPruner, elapsed_epochs
from distiller_ng.pruning.base import PRUNERS, MaskGroup, Scope, Target, targets_of_map
from distiller_ng.pruning.sparsity_schedules.base import ScheduleLike

__all__ = ["SplicingPruner"]


@PRUNERS.register("SplicingPruner", injected=("name",))
class SplicingPruner(StatisticsPruner):
    """Dynamic network surgery: prunes what is small, splices back what has grown, leaves the rest as it was.

    With mean ``m`` and (unbiased) standard deviation ``d`` of ``|W|``, measured once before the first pruning::

        low = (m + d * s) * low_thresh_mult        mask = 0     where |w| <  low
        high = (m + d * s) * hi_thresh_mult        mask = 1     where |w| >= high
                                                   unchanged    in between (1 at first)

    ``sensitivities`` maps parameters (names, ``re:`` patterns, tokens, ``*`` for all others) to ``s``. With
    ``sensitivity_multiplier`` above 0, ``s`` grows by that factor for each epoch since the window began:
    ``s * (1 + epochs * sensitivity_multiplier)``. Pruned weights must go on learning to come back: give the policy
    ``args: {mask_on_forward_only: true, keep_mask: true}``. ``schedule`` multiplies ``s``, ``scope: global`` pools the
    statistics over all targets, with ``pattern`` at most N of every M neighbours stay.

    Source: Y. Guo, A. Yao and Y. Chen, "Dynamic Network Surgery for Efficient DNNs", https://arxiv.org/abs/1608.04493.
    ``|W| = [1, 2, 3]``: m = 2, d = 1; with ``s = 0``, 0.75 and 1.25 the thresholds are 1.5 and 2.5, and the mask of
    ``[1, 2, 3]`` is ``[0, 1, 1]``; had it been 0 before, 2 would stay pruned::

        pruners:
          surgery:
            class: SplicingPruner
            low_thresh_mult: 0.9
            hi_thresh_mult: 1.1
            sensitivity_multiplier: 0.015
            sensitivities: {conv1.weight: 0.1, 're:layer.*conv.*weight': 0.6}

    Raises :class:`ArgumentError` for multipliers that are negative or in the wrong order.
    """

    def __init__(
        self,
        name: str,
        sensitivities: Mapping[str, float],
        low_thresh_mult: float,
        hi_thresh_mult: float,
        sensitivity_multiplier: float = 0,
        *,
        schedule: ScheduleLike | None = None,
        scope: Scope = "layer",
        pattern: str | int | None = None,
    ) -> None:
        super().__init__(name, schedule=schedule, scope=scope, pattern=pattern)
        # Below the mean is a useful threshold too, so sensitivities may be negative.
        self.sensitivities = check_map("sensitivities", sensitivities, example="{conv1.weight: 0.5}")
        self.low_thresh_mult = check_number(low_thresh_mult, ("low_thresh_mult",), low=0)
        self.hi_thresh_mult = check_number(hi_thresh_mult, ("hi_thresh_mult",), low=0)
        self.sensitivity_multiplier = check_number(sensitivity_multiplier, ("sensitivity_multiplier",), low=0)
        if self.hi_thresh_mult < self.low_thresh_mult:
            raise ArgumentError(
                f"hi_thresh_mult ({hi_thresh_mult}) must not be below low_thresh_mult ({low_thresh_mult})",
                argument=("hi_thresh_mult",),
            )

    def targets(self) -> Sequence[Target]:
        """The keys of ``sensitivities``."""
        return targets_of_map("sensitivities", self.sensitivities)

    def measured(self, weight: Tensor) -> Tensor:
        """Magnitudes."""
        return weight.abs()

    def threshold(self, name: str, group: MaskGroup, ctx: StepContext) -> float:
        """``m + d * s``, before the multipliers; the schedule's factor is in ``s``."""
        grown = 1.0 + elapsed_epochs(ctx) * self.sensitivity_multiplier
        sensitivity = self.sensitivities[self.target_of(name)] * grown * self.scale(ctx)
        statistics = self.statistics(name, group, ctx)
        return statistics.mean + statistics.std * sensitivity

    def compute_masks(self, group: MaskGroup, ctx: StepContext) -> Mapping[str, Tensor]:
        """The surgery function, from the mask this pruner gave before."""
        masks = {}
        for name in group.names:
            weight = ctx.weight(name)
            magnitude = weight.abs()
            threshold = self.threshold(name, group, ctx)
            owners = ctx.masks[name].owners
            before = owners.get(self.owner, owners.get(RESTORED))
            mask = torch.ones_like(weight) if before is None else before.clone()
            mask.masked_fill_(magnitude < threshold * self.low_thresh_mult, 0)
            mask.masked_fill_(magnitude >= threshold * self.hi_thresh_mult, 1)
            masks[name] = self.patterned(mask, weight)
        return masks
