"""What a policy wants of its parameters over the epochs: sparsities, and shares of budgets and thresholds (layer 4)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from distiller_ng.core.context import StepContext
from distiller_ng.core.entries import Entry
from distiller_ng.core.hooks import HookDriver
from distiller_ng.core.position import TrainPosition
from distiller_ng.policies.pruning import PruningPolicy
from distiller_ng.pruning._level import LevelPruner
from distiller_ng.pruning._threshold import ThresholdPruner
from distiller_ng.pruning.acdc import ACDCPruner
from distiller_ng.pruning.group_pruner import GroupPruner
from distiller_ng.pruning.rigl import RigLPruner

__all__ = ["Curve", "CurveOf", "Steps", "curves_of", "value_at"]

#: ``(epoch, value)``: the value holds from there to the next point.
Steps: TypeAlias = tuple[tuple[float, float], ...]
#: What 0 to 1 means: zeros among the weights, channels gone, or how much of a budget or threshold is applied.
CurveOf: TypeAlias = Literal["sparsity", "channels", "budget", "threshold"]

_MOST_POINTS = 400


@dataclass(frozen=True, slots=True)
class Curve:
    """``values`` hold for each of ``parameters``; for all of them together with ``together`` (one ranking of all)."""

    of: CurveOf
    parameters: tuple[str, ...]
    values: Steps
    together: bool = False


def value_at(values: Steps, epoch: float) -> float | None:
    """The value at an epoch; None before the first point.

    >>> value_at(((2.0, 0.1), (4.0, 0.5)), 3)
    0.1
    """
    known = [value for at, value in values if at <= epoch + 1e-9]
    return known[-1] if known else None


def curves_of(entry: Entry, scheduler: HookDriver, acts: Sequence[float], steps: float) -> tuple[Curve, ...]:
    """One curve for all parameters of equal values; none where the weights, or draws, decide.

    ``acts`` are the epochs at which the policy acts.
    """
    if not acts:
        return ()
    if not isinstance(entry.policy, PruningPolicy):
        planned = entry.policy.planned_sparsity(entry.window, scheduler.parameters)
        return _together({name: ((acts[0], level),) for name, level in planned.items() if level is not None})
    return _of_pruner(entry, entry.policy, scheduler, (acts, steps))


def _of_pruner(
    entry: Entry, policy: PruningPolicy, scheduler: HookDriver, when: tuple[Sequence[float], float]
) -> tuple[Curve, ...]:
    pruner, names = policy.pruner, tuple(policy.pruner.names)
    positions = _positions(entry, *when)
    is_budget = isinstance(pruner, GroupPruner) and pruner.target is not None
    if is_budget or isinstance(pruner, ThresholdPruner):
        if pruner.schedule is None:
            return ()
        of: CurveOf = "budget" if is_budget else "threshold"
        targets = tuple((at, pruner.schedule.target(entry.window.progress(place))) for at, place in positions)
        return (Curve(of, names, targets),)
    planned = policy.planned_sparsity(entry.window, scheduler.parameters)
    is_global = pruner.scope == "global" and not isinstance(pruner, RigLPruner)
    known = {name: level for name, level in planned.items() if level is not None}
    if not isinstance(pruner, LevelPruner) or not (known or is_global or isinstance(pruner, GroupPruner)):
        return _together({name: ((when[0][0], level),) for name, level in known.items()})
    found: dict[str, Steps] = {}
    with policy.own_levels():
        for name in names[:1] if is_global else names:
            values = tuple(
                (at, level)
                for at, place in positions
                if (level := _level(pruner, name, _context(entry, scheduler, place), known.get(name))) is not None
            )
            if values:
                found[name] = _ended(values, entry, policy)
    if is_global:
        channels = isinstance(pruner, GroupPruner) or any(pruner.structure_dim(name) is not None for name in names)
        return tuple(Curve("channels" if channels else "sparsity", names, values, True) for values in found.values())
    return _together(found, "channels" if isinstance(pruner, GroupPruner) else "sparsity")


def _level(pruner: LevelPruner, name: str, ctx: StepContext, planned: float | None) -> float | None:
    if isinstance(pruner, ACDCPruner) and not pruner.is_compressed(ctx.window, ctx.position):
        return 0.0
    if isinstance(pruner, RigLPruner):
        return planned
    level = pruner.level(name, ctx)
    return planned if level is None else level


def _ended(values: Steps, entry: Entry, policy: PruningPolicy) -> Steps:
    """What is given back when the window closes is dense again."""
    end = entry.window.end
    released = policy.pruner.releases_at_window_end or not policy.args.leave_enabled
    return (*values, (float(end), 0.0)) if released and math.isfinite(end) else values


def _positions(entry: Entry, acts: Sequence[float], steps: float) -> list[tuple[float, TrainPosition]]:
    """Where the policy acts, its window's end included if that is an act of its own; thinned out if they are many."""
    window, length = entry.window, math.ceil(steps)
    moments: Iterable[float] = acts
    if len(acts) > _MOST_POINTS:
        moments = [*acts[:: math.ceil(len(acts) / _MOST_POINTS)], acts[-1]]
    found = []
    for act in dict.fromkeys(moments):
        whole = math.floor(act)
        found.append((float(act), TrainPosition(whole, min(round((act - whole) * length), length - 1), length)))
    if window.is_fractional and math.isfinite(window.end) and window.end >= acts[-1]:
        whole = math.floor(window.end)
        found = [(at, place) for at, place in found if at < window.end]
        # The last value belongs to the end itself, whichever step that falls into.
        found.append((float(window.end), TrainPosition(whole, round((window.end - whole) * 10**6), 10**6)))
    return found


def _context(entry: Entry, scheduler: HookDriver, position: TrainPosition) -> StepContext:
    given: Any = {"model": scheduler.model, "parameters": scheduler.parameters, "masks": scheduler.masks}
    return StepContext(window=entry.window, position=position, compat=scheduler.compat, **given)


def _together(found: dict[str, Steps], of: CurveOf = "sparsity") -> tuple[Curve, ...]:
    names: dict[Steps, list[str]] = {}
    for name, values in found.items():
        names.setdefault(values, []).append(name)
    return tuple(Curve(of, tuple(together), values) for values, together in names.items())
