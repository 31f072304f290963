"""The learning rates a schedule leads to, from its own policies on a stand-in for the optimizer (layer 4)."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim import Optimizer

from distiller_ng.core.context import StepContext
from distiller_ng.core.entries import Entry
from distiller_ng.core.hooks import HookDriver
from distiller_ng.core.position import TrainPosition
from distiller_ng.learning_rate.live import as_driver
from distiller_ng.learning_rate.table import ShadowOptimizer
from distiller_ng.policies.lr import LRPolicy
from distiller_ng.policies.rates import RATE_POLICIES

__all__ = ["Rates", "learning_rates"]

_MOST_POINTS = 4_000
_TOLERANCE = 1e-9


@dataclass(frozen=True, slots=True)
class Rates:
    """``groups``: for each of the optimizer's groups ``(epoch, value)``, the value holds to the next point.

    ``unknown_from``: the epoch from which results of training decide (ReduceLROnPlateau); None if they never do.
    """

    groups: tuple[tuple[tuple[float, float], ...], ...]
    unknown_from: float | None
    notes: tuple[str, ...]


def learning_rates(scheduler: HookDriver, optimizer: Optimizer, epochs: int, steps_per_epoch: float) -> Rates:
    """What each step of a run finds in the groups of ``optimizer``, which stays as it is.

    Every epoch is looked at, and where a policy acts within epochs so many of its steps that the curve has at most
    4,000 points. From 0.1, ``ExponentialLR`` with gamma 0.5 gives ``((0, 0.1), (1, 0.05), (2, 0.025))``.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # schedulers that miss the steps of an optimizer nothing is trained with
        return _Simulation(scheduler, optimizer, steps_per_epoch).run(epochs)


class _Simulation:
    def __init__(self, scheduler: HookDriver, optimizer: Optimizer, steps_per_epoch: float) -> None:
        self.scheduler, self.length = scheduler, math.ceil(steps_per_epoch)
        self.exact = steps_per_epoch if steps_per_epoch != self.length else None
        self.shadow = _stand_in(optimizer)
        self.notes: list[str] = []
        self.unknown_from: float | None = None
        self.entries = list(self._copies(scheduler.entries, optimizer))

    def _copies(self, entries: Sequence[Entry], optimizer: Optimizer) -> Iterator[Entry]:
        """The policies that set learning rates, on the stand-in; none of the originals is touched."""
        memo: dict[int, object] = {id(optimizer): self.shadow}
        memo |= {id(p): nn.Parameter(torch.zeros(0)) for group in optimizer.param_groups for p in group["params"]}
        for entry in entries:
            if not isinstance(entry.policy, RATE_POLICIES):
                continue
            label = entry.name or entry.policy.describe()
            if isinstance(entry.policy, LRPolicy) and as_driver(entry.policy.lr_scheduler).metric is not None:
                first = next(iter(entry.window.active_epochs(until=math.ceil(entry.window.first) + 1)), 0) + 1.0
                self.unknown_from = min(first, self.unknown_from if self.unknown_from is not None else math.inf)
                self.notes.append(
                    f"{label}: lowers the learning rate when results stop improving, which nobody knows before "
                    f"training; the curve ends where the first result may count, at epoch {first:g}"
                )
                continue
            try:
                policy = copy.deepcopy(entry.policy, memo)
            except TypeError:  # schedulers that hold functions by weak references, and the like
                self.notes.append(f"{label}: its learning rates are not in the curve (its scheduler cannot be copied)")
                continue
            yield Entry(policy, entry.window, policy)

    def run(self, epochs: int) -> Rates:
        curves: list[list[tuple[float, float]]] = [[] for _ in self.shadow.param_groups]
        for epoch in range(epochs):
            active = [entry for entry in self.entries if _takes_part(entry, epoch)]
            for entry in active:
                if not entry.window.is_fractional:
                    entry.policy.on_epoch_begin(self._context(entry, epoch, 0))
            for step in self._looked_at(active, epoch, epochs):
                self._step(active, epoch, step)
                at = self._position(epoch, step).fraction
                for curve, group in zip(curves, self.shadow.param_groups, strict=True):
                    _extend(curve, at, float(group["lr"]), whole=step == 0)
            for entry in active:
                if not entry.window.is_fractional:
                    entry.policy.on_epoch_end(self._context(entry, epoch, 0))
        known = math.inf if self.unknown_from is None else self.unknown_from
        cut = tuple(tuple(point for point in curve if point[0] < known) for curve in curves)
        return Rates(cut, self.unknown_from if known < epochs else None, tuple(self.notes))

    def _step(self, active: Sequence[Entry], epoch: int, step: int) -> None:
        """Up to the moment before one optimizer step."""
        before = epoch * self.length + step - 1
        for entry in self.entries if before >= 0 else ():
            if isinstance(entry.policy, LRPolicy) and entry.policy.unit == "step":
                earlier = self._position(*divmod(before, self.length))
                if entry.window.contains(earlier):
                    entry.policy.on_minibatch_end(self._of(entry, earlier))
        for entry in active:
            if entry.window.is_stepwise:
                entry.advance_step(self._position(epoch, step), self._of, strict=self.scheduler.compat == "sparseml")
            elif entry.window.is_fractional:
                entry.advance(self._position(epoch, step), self._of)

    def _looked_at(self, active: Sequence[Entry], epoch: int, epochs: int) -> list[int]:
        """Which steps of an epoch: its first, those around which windows begin and end, and some in between."""
        within = [e for e in active if e.window.is_fractional or getattr(e.policy, "unit", "epoch") == "step"]
        if not within:
            return [0]
        stride = max(1, math.ceil(self.length * max(epochs, 1) / _MOST_POINTS))
        steps = set(range(0, self.length, stride))
        for entry in within:
            for edge in (entry.window.first, entry.window.end):
                if math.isfinite(edge) and epoch <= edge < epoch + 1:
                    steps.add(min(math.ceil((edge - epoch) * self.length - _TOLERANCE), self.length - 1))
        return sorted(steps)

    def _position(self, epoch: int, step: int) -> TrainPosition:
        return TrainPosition(epoch, step, self.length, self.exact)

    def _context(self, entry: Entry, epoch: int, step: int) -> StepContext:
        return self._of(entry, self._position(epoch, step))

    def _of(self, entry: Entry, position: TrainPosition) -> StepContext:
        held = self.scheduler
        return StepContext(
            model=held.model,
            parameters=held.parameters,
            masks=held.masks,
            window=entry.window,
            position=position,
            optimizer=self.shadow,
            compat=held.compat,
        )


def _takes_part(entry: Entry, epoch: int) -> bool:
    """Windows in fractions owe their end to the first step after it, which may be another epoch's."""
    if entry.window.is_fractional:
        return not entry.ended and entry.window.first < epoch + 1
    return entry.window.is_active(epoch)


def _stand_in(optimizer: Optimizer) -> ShadowOptimizer:
    shadow = ShadowOptimizer.of(optimizer, [float(group["lr"]) for group in optimizer.param_groups])
    for mine, theirs in zip(shadow.param_groups, optimizer.param_groups, strict=True):
        if "initial_lr" in theirs:
            mine["initial_lr"] = float(theirs["initial_lr"])
    return shadow


def _extend(curve: list[tuple[float, float]], at: float, value: float, *, whole: bool) -> None:
    """Beginnings of epochs always are points, others where something changes."""
    if whole or not curve or not math.isclose(curve[-1][1], value, rel_tol=1e-12):
        curve.append((at, value))
