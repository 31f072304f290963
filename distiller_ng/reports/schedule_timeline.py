"""When each policy of a schedule is active, and the sparsities and learning rates it leads to (layer 4)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch.optim import Optimizer

from distiller_ng.core.hooks import HookDriver
from distiller_ng.reports._plan_curves import Curve, Steps, value_at
from distiller_ng.reports._plan_rows import Kind
from distiller_ng.reports._plan_sizes import PredictedSize
from distiller_ng.reports._timeline_picture import draw_timeline
from distiller_ng.reports._timeline_rates import learning_rates
from distiller_ng.reports._timeline_text import timeline_text
from distiller_ng.reports.schedule_plan import PlannedActions, SchedulePlan, schedule_plan

__all__ = ["PolicyTimeline", "ScheduleTimeline", "schedule_timeline"]

#: These leave something behind when their window is over: zeros, fewer bits, a smaller model.
_LASTING = ("pruning", "quantization", "thinning")


@dataclass(frozen=True, slots=True)
class PolicyTimeline:
    """One policy: ``active``, from which epoch to which (exclusive); ``sparsity`` it wants, empty where it has none.

    ``sparsity`` is the mean of ``curves`` by the parameters' sizes. ``kind`` and ``mark`` say what it does; ``lasts``:
    its effect stays after the last active epoch.
    """

    name: str
    active: tuple[tuple[float, float], ...]
    sparsity: Steps = ()
    kind: Kind = "other"
    mark: str = ""
    lasts: bool = False
    curves: tuple[Curve, ...] = ()


@dataclass(frozen=True, slots=True)
class ScheduleTimeline:
    """Every policy, and the learning rate of the optimizer's first group. ``str()`` is a timeline for terminals.

    ``other_rates``: those of further groups, where they differ. ``rate_unknown_from``: the epoch from which results of
    training decide about the learning rate. ``sizes``: as in the plan. ``notes``: what cannot be known before training.
    """

    epochs: int
    policies: tuple[PolicyTimeline, ...]
    learning_rate: Steps = ()
    notes: tuple[str, ...] = ()
    other_rates: tuple[Steps, ...] = ()
    rate_unknown_from: float | None = None
    sizes: tuple[PredictedSize, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    def text(self, width: int = 60, *, ascii_only: bool = False, notes: bool = True) -> str:
        """A timeline of ``width`` columns; a column is active if the policy is in any part of it."""
        return timeline_text(self, width, ascii_only, notes)

    def __str__(self) -> str:
        return self.text()

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Draw it as ``.svg`` or ``.png``: active epochs, sparsities, learning rate, sizes; the path.

        Raises :class:`ArgumentError` for another kind of file, and without matplotlib.
        """
        return draw_timeline(self, path)


def schedule_timeline(
    scheduler: HookDriver,
    steps_per_epoch: float,
    epochs: int | None = None,
    *,
    optimizer: Optimizer | None = None,
    plan: SchedulePlan | None = None,
) -> ScheduleTimeline:
    """When ``scheduler``'s policies act in a run of ``epochs`` (default: as long as its windows are).

    ``optimizer`` gives the learning rates to start from; without one there is no learning-rate curve. Rates are what
    the schedule's own policies set on a stand-in, step by step where they act in steps. ``plan``: of the same run, if
    it is there already (its predicted sizes are drawn, too). Nothing changes.
    Raises :class:`ArgumentError` unless ``steps_per_epoch`` is above 0. A gradual pruner from 0.05 to 0.5 in epochs 0
    to 3, halfway at epoch 1.5, wants 0.05, 0.37, 0.48 and 0.5 (cubic)::

        timeline = schedule_timeline(scheduler, len(loader), optimizer=optimizer)
        print(timeline)
        timeline.save("plan.svg")
    """
    known = schedule_plan(scheduler, steps_per_epoch, epochs) if plan is None else plan
    rows = tuple(_line(row, scheduler) for row in known.policies)
    if optimizer is None:
        return ScheduleTimeline(known.epochs, rows, sizes=known.sizes)
    rates = learning_rates(scheduler, optimizer, known.epochs, steps_per_epoch)
    first, *others = rates.groups
    return ScheduleTimeline(
        known.epochs,
        rows,
        first,
        rates.notes,
        tuple(dict.fromkeys(curve for curve in others if curve != first)),
        rates.unknown_from,
        known.sizes,
    )


def _line(row: PlannedActions, scheduler: HookDriver) -> PolicyTimeline:
    wanted = [curve for curve in row.curves if curve.of in ("sparsity", "channels")]
    sizes = [sum(scheduler.parameters[name].numel() for name in curve.parameters) for curve in wanted]
    lasts = row.kind in _LASTING
    return PolicyTimeline(row.name, row.spans, _mean(wanted, sizes), row.kind, row.mark, lasts, row.curves)


def _mean(curves: Sequence[Curve], sizes: Sequence[int]) -> Steps:
    """What all parameters want together; before its first point a curve is 0."""
    if len(curves) <= 1:
        return curves[0].values if curves else ()
    total = max(sum(sizes), 1)
    moments = sorted({at for curve in curves for at, _ in curve.values})
    return tuple(
        (at, sum((value_at(c.values, at) or 0.0) * size for c, size in zip(curves, sizes, strict=True)) / total)
        for at in moments
    )
