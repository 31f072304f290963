"""What a loaded schedule or recipe will do: values, parameters and the epochs of every action (layer 4)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from distiller_ng.core.entries import Entry
from distiller_ng.core.hooks import HookDriver
from distiller_ng.errors import ArgumentError, listed

__all__ = ["PlannedActions", "SchedulePlan", "schedule_plan"]

_COMPONENTS = ("pruner", "regularizer", "quantizer", "distiller")
_SHOWN = 8


@dataclass(frozen=True, slots=True)
class PlannedActions:
    """One policy: ``acts`` are the epochs in which it acts (``every_step``: too many to list, only the first).

    ``parameters`` it names on the model with ``weights`` values in them altogether; ``settings`` are resolved values.
    """

    name: str
    window: str
    settings: Mapping[str, Any]
    parameters: tuple[str, ...]
    weights: int
    acts: tuple[float, ...]
    every_step: bool = False

    def __str__(self) -> str:
        lines = [f"{self.name}: {self.window}"]
        if self.settings:
            lines.append("    " + ", ".join(f"{key}={value}" for key, value in self.settings.items()))
        if self.parameters:
            names = listed(self.parameters, limit=_SHOWN)
            lines.append(f"    {len(self.parameters)} parameters, {self.weights:,} weights: {names}")
        if self.every_step:
            lines.append("    acts before every optimizer step")
        elif self.acts:
            epochs = listed([f"{epoch:g}" for epoch in self.acts], limit=12)
            lines.append(f"    acts {len(self.acts)} times, at epochs {epochs}")
        else:
            lines.append("    does not act in this run")
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class SchedulePlan:
    """Every policy in the order in which they act; ``notes`` are what was taken with a warning. ``str()`` is text."""

    epochs: int
    steps_per_epoch: float
    policies: tuple[PlannedActions, ...]
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        head = f"{self.epochs} epochs of {self.steps_per_epoch:g} optimizer steps"
        return "\n".join([head, *map(str, self.policies), *(f"note: {note}" for note in self.notes)])


def schedule_plan(scheduler: HookDriver, steps_per_epoch: float, epochs: int | None = None) -> SchedulePlan:
    """What ``scheduler`` will do in a run of ``epochs`` (default: as long as its windows are).

    Raises :class:`ArgumentError` unless ``steps_per_epoch`` is above 0. Example: a gradual pruner from epoch 0 to 4
    with a frequency of 1 acts 5 times, at epochs 0, 1, 2, 3 and 4::

        scheduler = distiller.file_config(model, optimizer, "recipe.md")
        print(schedule_plan(scheduler, len(loader)))
    """
    if isinstance(steps_per_epoch, bool) or not steps_per_epoch > 0:
        raise ArgumentError(f"steps_per_epoch is above 0, got {steps_per_epoch!r}", argument=("steps_per_epoch",))
    length = scheduler.max_epochs if epochs is None else epochs
    rows = tuple(_row(entry, scheduler, steps_per_epoch, length) for entry in scheduler.entries)
    return SchedulePlan(length, steps_per_epoch, rows, tuple(scheduler.notes))


def _row(entry: Entry, scheduler: HookDriver, steps_per_epoch: float, epochs: int) -> PlannedActions:
    window = entry.window
    every_step = window.is_stepwise and window.frequency == -1
    if window.is_stepwise:
        acts = window.planned(steps_per_epoch, until=epochs, limit=1 if every_step else 10_000)
    else:
        acts = [float(epoch) for epoch in window.active_epochs(until=epochs)]
    names = _names(entry, scheduler)
    weights = sum(scheduler.parameters[name].numel() for name in names)
    label = entry.name or entry.policy.describe()
    shown = every_step and bool(acts)
    return PlannedActions(label, str(window), dict(entry.settings), names, weights, tuple(acts), shown)


def _names(entry: Entry, scheduler: HookDriver) -> tuple[str, ...]:
    """The parameters a policy names, by its component or by its plan."""
    component = next((found for key in _COMPONENTS if (found := getattr(entry.policy, key, None)) is not None), None)
    for known in (getattr(component, "names", ()), getattr(entry.policy, "names", ())):
        if isinstance(known, list | tuple) and known and all(name in scheduler.parameters for name in known):
            return tuple(known)
    return tuple(entry.policy.planned_sparsity(entry.window, scheduler.parameters))
