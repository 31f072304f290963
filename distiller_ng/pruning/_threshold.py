"""Bases of the pruners that compare magnitudes with a threshold (layer 2)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from distiller_ng.core.context import StepContext
from distiller_ng.ops.masks import create_mask_threshold_criterion
from distiller_ng.ops.patterns import nm_mask
from distiller_ng.pruning.base import MaskGroup, Pruner, Scope
from distiller_ng.pruning.sparsity_schedules.base import ScheduleLike

__all__ = ["Statistics", "StatisticsPruner", "ThresholdPruner", "elapsed_epochs"]

# Under this key the statistics pooled over all targets are kept; no parameter has an empty name.
_POOLED = ""


class ThresholdPruner(Pruner):
    """Keeps the weights with ``|w| > threshold``.

    ``schedule`` multiplies the threshold by its target: with ``Linear`` from 0 to 1 it grows from nothing to its full
    value over the window. With ``pattern`` at most N of every M neighbours stay besides. The threshold is the same
    whatever the ``scope``, unless it comes from statistics of the weights: those are then pooled over all targets.
    """

    @abstractmethod
    def threshold(self, name: str, group: MaskGroup, ctx: StepContext) -> float:
        """The threshold of one parameter, before the schedule's factor."""

    def scale(self, ctx: StepContext) -> float:
        """The schedule's factor now, 1 without a schedule."""
        return 1.0 if self.schedule is None else self.schedule.target(ctx.progress)

    def compute_masks(self, group: MaskGroup, ctx: StepContext) -> Mapping[str, Tensor]:
        """Each weight against its parameter's threshold."""
        scale = self.scale(ctx)
        masks = {}
        for name in group.names:
            weight = ctx.weight(name)
            threshold = self.threshold(name, group, ctx) * scale
            masks[name] = self.patterned(create_mask_threshold_criterion(weight, threshold), weight)
        return masks

    def patterned(self, mask: Tensor, weight: Tensor) -> Tensor:
        """``mask`` with at most N of M kept, where a pattern is given."""
        return mask if self.pattern is None else mask.mul_(nm_mask(weight.abs(), self.pattern))


@dataclass(frozen=True, slots=True)
class Statistics:
    """Mean and (unbiased) standard deviation of some values."""

    mean: float
    std: float


class StatisticsPruner(ThresholdPruner):
    """Takes its threshold from statistics of the weights, measured once, at first use, and kept from then on."""

    def __init__(self, name: str, *, schedule: ScheduleLike | None, scope: Scope, pattern: str | int | None) -> None:
        super().__init__(name, schedule=schedule, scope=scope, pattern=pattern)
        self._statistics: dict[str, Statistics] = {}

    @abstractmethod
    def measured(self, weight: Tensor) -> Tensor:
        """The values whose statistics count: the weights, or their magnitudes."""

    def statistics(self, name: str, group: MaskGroup, ctx: StepContext) -> Statistics:
        """Of this parameter, or with ``scope: global`` of all in the group together."""
        key, names = (_POOLED, group.names) if self.scope == "global" else (name, (name,))
        if key not in self._statistics:
            self._statistics[key] = _statistics([self.measured(ctx.weight(other)) for other in names])
        return self._statistics[key]

    def state_dict(self) -> dict[str, Any]:
        """The statistics measured so far."""
        return {"statistics": {name: [s.mean, s.std] for name, s in self._statistics.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`state_dict`."""
        self._statistics = {str(name): Statistics(*saved) for name, saved in state["statistics"].items()}


def elapsed_epochs(ctx: StepContext) -> float:
    """Epochs since the window began: whole for whole windows, the exact position for fractional ones."""
    now = ctx.position.fraction if ctx.window.is_fractional else ctx.epoch
    return now - ctx.window.start


def _statistics(tensors: list[Tensor]) -> Statistics:
    device = tensors[0].device
    values = torch.cat([t.reshape(-1).to(device=device, dtype=torch.float64) for t in tensors])
    # One value has no deviation; NaN would prune everything, as no weight exceeds it.
    return Statistics(float(values.mean()), float(values.std()) if values.numel() > 1 else 0.0)
