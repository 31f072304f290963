"""When each policy of a schedule is active, and the sparsities and learning rates it leads to (layer 4)."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

from torch.optim import Optimizer

from distiller_ng.core.entries import Entry
from distiller_ng.core.hooks import HookDriver
from distiller_ng.core.position import TrainPosition
from distiller_ng.learning_rate.scheduled import ScheduledLR
from distiller_ng.learning_rate.table import LRTable, ShadowOptimizer
from distiller_ng.policies.learning_rate_function import LearningRateFunction
from distiller_ng.policies.learning_rate_steps import LearningRate
from distiller_ng.policies.lr import LRPolicy
from distiller_ng.policies.set_learning_rate import SetLearningRate
from distiller_ng.reports._timeline_picture import draw_timeline
from distiller_ng.reports._timeline_text import timeline_text
from distiller_ng.reports.schedule_plan import PlannedActions, schedule_plan

__all__ = ["PolicyTimeline", "ScheduleTimeline", "schedule_timeline"]

#: ``(epoch, value)``: the value holds from there to the next point.
Steps: TypeAlias = tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class PolicyTimeline:
    """One policy: ``active``, from which epoch to which (exclusive); ``sparsity`` it wants, empty where it has none."""

    name: str
    active: tuple[tuple[float, float], ...]
    sparsity: Steps = ()


@dataclass(frozen=True, slots=True)
class ScheduleTimeline:
    """Every policy, and the learning rate of the optimizer's first group. ``str()`` is a timeline for terminals.

    ``notes``: what cannot be known before training.
    """

    epochs: int
    policies: tuple[PolicyTimeline, ...]
    learning_rate: Steps = ()
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    def text(self, width: int = 60, *, ascii_only: bool = False) -> str:
        """A timeline of ``width`` columns; a column is active if the policy is in any part of it."""
        return timeline_text(self, width, ascii_only)

    def __str__(self) -> str:
        return self.text()

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Draw it as ``.svg`` or ``.png``: active epochs, sparsities, learning rate; the path.

        Raises :class:`ArgumentError` for another kind of file, and without matplotlib.
        """
        return draw_timeline(self, path)


def schedule_timeline(
    scheduler: HookDriver, steps_per_epoch: float, epochs: int | None = None, *, optimizer: Optimizer | None = None
) -> ScheduleTimeline:
    """When ``scheduler``'s policies act in a run of ``epochs`` (default: as long as its windows are).

    ``optimizer`` gives the learning rate to start from; without one there is no learning-rate curve. Nothing changes.
    Raises :class:`ArgumentError` unless ``steps_per_epoch`` is above 0. A gradual pruner from 0.05 to 0.5 in epochs 0
    to 3, halfway at epoch 1.5, wants 0.05, 0.37, 0.48 and 0.5 (cubic)::

        timeline = schedule_timeline(scheduler, len(loader), optimizer=optimizer)
        print(timeline)
        timeline.save("plan.svg")
    """
    plan = schedule_plan(scheduler, steps_per_epoch, epochs)
    rows = tuple(
        PolicyTimeline(row.name, _active(entry, plan.epochs), _sparsity(entry, row, scheduler, steps_per_epoch))
        for entry, row in zip(scheduler.entries, plan.policies, strict=True)
    )
    notes: list[str] = []
    rates = () if optimizer is None else _rates(scheduler.entries, optimizer, plan.epochs, steps_per_epoch, notes)
    return ScheduleTimeline(plan.epochs, rows, rates, tuple(notes))


def _active(entry: Entry, epochs: int) -> tuple[tuple[float, float], ...]:
    window = entry.window
    if window.is_fractional:
        end = min(window.end, float(epochs))
        return ((window.first, max(end, window.first)),) if window.first <= epochs else ()
    found: list[list[float]] = []
    for epoch in window.active_epochs(until=epochs):
        if epoch >= epochs:
            break
        if found and found[-1][1] == epoch:
            found[-1][1] = epoch + 1.0
        else:
            found.append([float(epoch), epoch + 1.0])
    return tuple((start, end) for start, end in found)


def _sparsity(entry: Entry, row: PlannedActions, scheduler: HookDriver, steps_per_epoch: float) -> Steps:
    pruner = getattr(entry.policy, "pruner", None)
    if pruner is None or not row.acts:
        return ()
    schedule = getattr(pruner, "schedule", None)
    if schedule is None:
        level = _planned(entry, scheduler)
        return () if level is None else ((row.acts[0], level),)
    acts: Iterable[float] = row.acts
    if row.every_step:
        end = min(entry.window.end, row.acts[0] + 1_000)
        acts = [row.acts[0] + number for number in range(math.ceil(end - row.acts[0]))]
    steps = math.ceil(steps_per_epoch)
    points = []
    for act in acts:
        whole = math.floor(act)
        position = TrainPosition(whole, min(round((act - whole) * steps), steps - 1), steps)
        points.append((float(act), float(schedule.target(entry.window.progress(position)))))
    if entry.window.is_fractional and math.isfinite(entry.window.end) and entry.window.end > points[-1][0]:
        points.append((float(entry.window.end), float(schedule.target(1.0))))
    return tuple(points)


def _planned(entry: Entry, scheduler: HookDriver) -> float | None:
    """The mean of what the parameters end with, by their sizes; None where that depends on the weights."""
    planned = entry.policy.planned_sparsity(entry.window, scheduler.parameters)
    if not planned or any(level is None for level in planned.values()):
        return None
    sizes = {name: scheduler.parameters[name].numel() for name in planned}
    return sum((level or 0.0) * sizes[name] for name, level in planned.items()) / sum(sizes.values())


def _rates(
    entries: Sequence[Entry], optimizer: Optimizer, epochs: int, steps_per_epoch: float, notes: list[str]
) -> Steps:
    """The first group's rate at the beginning of every epoch."""
    bases = [float(group.get("initial_lr", group["lr"])) for group in optimizer.param_groups]
    tables: dict[int, LRTable] = {}
    for number, entry in enumerate(entries):
        driver = entry.policy.lr_scheduler if isinstance(entry.policy, LRPolicy) else None
        if isinstance(driver, ScheduledLR) and driver.metric is None:
            tables[number] = LRTable(driver.definition, lambda: ShadowOptimizer.of(optimizer, bases))
        elif driver is not None or isinstance(entry.policy, LearningRateFunction | LearningRate):
            notes.append(f"{entry.name or entry.policy.describe()}: its learning rates are not in the curve")
    rate = float(optimizer.param_groups[0]["lr"])
    points = []
    for epoch in range(epochs):
        for number, entry in enumerate(entries):
            rate = _rate_of(entry, tables.get(number), epoch, steps_per_epoch, rate)
        points.append((float(epoch), rate))
    return tuple(points)


def _rate_of(entry: Entry, table: LRTable | None, epoch: int, steps_per_epoch: float, rate: float) -> float:
    """The rate at the beginning of an epoch, after one policy."""
    policy, window = entry.policy, entry.window
    if isinstance(policy, SetLearningRate):
        return policy.learning_rate if math.floor(window.first) == epoch else rate
    if table is None or not isinstance(policy, LRPolicy):
        return rate
    if not window.is_active(max(epoch - 1, 0)):
        return rate
    at = round(epoch * steps_per_epoch) if policy.unit == "step" else epoch
    return float(table.values(at)[0].get("lr", rate))
