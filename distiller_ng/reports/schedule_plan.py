"""What a loaded schedule or recipe will do: values, parameters, epochs and effects of every policy (layer 4)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from distiller_ng.core.entries import Entry
from distiller_ng.core.hooks import HookDriver
from distiller_ng.errors import ArgumentError
from distiller_ng.graph.inputs import ExampleInputs
from distiller_ng.reports._plan_curves import Curve, curves_of
from distiller_ng.reports._plan_rows import Kind, LayerBits, kind_of, layer_bits, told
from distiller_ng.reports._plan_sizes import PredictedSize, predict_sizes
from distiller_ng.reports._plan_text import details_text, notes_text, policies_text, sizes_text

__all__ = ["Curve", "LayerBits", "PlannedActions", "PredictedSize", "SchedulePlan", "notes_text", "schedule_plan"]

_COMPONENTS = ("pruner", "regularizer", "quantizer", "distiller")


@dataclass(frozen=True, slots=True)
class PlannedActions:
    """One policy: ``acts`` are the epochs in which it acts (``every_step``: too many to list, only the first).

    ``parameters`` it names on the model with ``weights`` values in them altogether; ``settings`` are resolved values.
    ``spans``: from which epoch to which (exclusive) it is active. ``kind``, ``effect`` and ``mark`` (that in a
    few characters) are for people. ``curves``: the sparsity it wants of each group of parameters, over the
    epochs. ``layers``: the bits a quantizer gives.
    """

    name: str
    window: str
    settings: Mapping[str, Any]
    parameters: tuple[str, ...]
    weights: int
    acts: tuple[float, ...]
    every_step: bool = False
    kind: Kind = "other"
    class_name: str = ""
    effect: str = ""
    mark: str = ""
    spans: tuple[tuple[float, float], ...] = ()
    curves: tuple[Curve, ...] = ()
    layers: tuple[LayerBits, ...] = ()


@dataclass(frozen=True, slots=True)
class SchedulePlan:
    """Every policy in the order in which they act. ``str()`` is text: tables, details, notes.

    ``sizes``: what the model will cost after each step, the model as it is first; empty unless it was asked for.
    ``notes``: what was taken with a warning, and what cannot be known before training.
    """

    epochs: int
    steps_per_epoch: float
    policies: tuple[PlannedActions, ...]
    notes: tuple[str, ...] = ()
    sizes: tuple[PredictedSize, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    def table(self) -> str:
        """Policy, what, epochs, effect: one line each, and predicted sizes where there are any."""
        return "\n\n".join(filter(None, (policies_text(self), sizes_text(self))))

    def details(self) -> str:
        """Resolved values, named parameters and all acts of every policy."""
        return details_text(self)

    def __str__(self) -> str:
        return "\n\n".join(filter(None, (self.table(), self.details(), notes_text(self.notes))))


def schedule_plan(
    scheduler: HookDriver,
    steps_per_epoch: float,
    epochs: int | None = None,
    *,
    predict: bool = False,
    original: nn.Module | None = None,
    example_inputs: ExampleInputs | None = None,
) -> SchedulePlan:
    """What ``scheduler`` will do in a run of ``epochs`` (default: as long as its windows are).

    ``predict``: also what the model will cost after each step (``sizes``); structured pruning and removal are tried on
    copies for that. ``original``: the model as it was before the schedule was loaded, where a quantizer changed it
    (default: the scheduler's own). ``example_inputs``: what the model is called with, where the scheduler was not told.
    Nothing of the scheduler or the model changes.

    Raises :class:`ArgumentError` unless ``steps_per_epoch`` is above 0. Example: a gradual pruner from epoch 0 to 4
    with a frequency of 1 acts 5 times, at epochs 0, 1, 2, 3 and 4::

        scheduler = distiller.file_config(model, optimizer, "recipe.md", example_inputs=(images,))
        print(schedule_plan(scheduler, len(loader), predict=True))
    """
    if isinstance(steps_per_epoch, bool) or not steps_per_epoch > 0:
        raise ArgumentError(f"steps_per_epoch is above 0, got {steps_per_epoch!r}", argument=("steps_per_epoch",))
    length = scheduler.max_epochs if epochs is None else epochs
    rows = tuple(_row(entry, scheduler, steps_per_epoch, length) for entry in scheduler.entries)
    notes = tuple(scheduler.notes)
    if not predict:
        return SchedulePlan(length, steps_per_epoch, rows, notes)
    planned = [(entry, row.acts, row.curves) for entry, row in zip(scheduler.entries, rows, strict=True)]
    model = scheduler.model if original is None else original
    found = predict_sizes(scheduler, model, length, planned, example_inputs or scheduler.graph.example_inputs)
    return SchedulePlan(length, steps_per_epoch, rows, (*notes, *found.notes), found.rows)


def _row(entry: Entry, scheduler: HookDriver, steps_per_epoch: float, epochs: int) -> PlannedActions:
    window = entry.window
    every_step = window.is_stepwise and window.frequency == -1
    if window.is_fractional:
        acts = window.planned(steps_per_epoch, until=epochs, limit=1 if every_step else 10_000)
    else:
        acts = [float(epoch) for epoch in window.active_epochs(until=epochs) if epoch < epochs]
    names = _names(entry, scheduler)
    weights = sum(scheduler.parameters[name].numel() for name in names)
    moments = _spread(acts[0], min(window.end, epochs)) if every_step and acts else acts
    curves = curves_of(entry, scheduler, moments, steps_per_epoch)
    kind = kind_of(entry, curves)
    words = told(entry, kind, curves, weights)
    return PlannedActions(
        entry.name or entry.policy.describe(),
        str(window),
        dict(entry.settings),
        names,
        weights,
        tuple(acts),
        every_step and bool(acts),
        kind,
        words.class_name,
        words.effect,
        words.mark,
        _spans(entry, epochs),
        curves,
        layer_bits(entry),
    )


def _spread(first: float, end: float) -> list[float]:
    """Moments of a window that acts in every step: ten an epoch, at most 400."""
    count = max(1, min(400, math.ceil(10 * (end - first))))
    return [first + number * (end - first) / count for number in range(count)]


def _spans(entry: Entry, epochs: int) -> tuple[tuple[float, float], ...]:
    window = entry.window
    if window.is_fractional:
        end = min(window.end, float(epochs))
        return ((window.first, max(end, window.first)),) if window.first < epochs else ()
    found: list[list[float]] = []
    for epoch in window.active_epochs(until=epochs):
        if epoch >= epochs:
            break
        if found and found[-1][1] == epoch:
            found[-1][1] = epoch + 1.0
        else:
            found.append([float(epoch), epoch + 1.0])
    return tuple((start, end) for start, end in found)


def _names(entry: Entry, scheduler: HookDriver) -> tuple[str, ...]:
    """The parameters a policy names, by its component or by its plan."""
    component = next((found for key in _COMPONENTS if (found := getattr(entry.policy, key, None)) is not None), None)
    for known in (getattr(component, "names", ()), getattr(entry.policy, "names", ())):
        if isinstance(known, list | tuple) and known and all(name in scheduler.parameters for name in known):
            return tuple(known)
    return tuple(entry.policy.planned_sparsity(entry.window, scheduler.parameters))
