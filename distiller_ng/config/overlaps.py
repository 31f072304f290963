"""Policies that get in each other's way: in the same epochs, or after a layer was replaced (layer 4)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from distiller_ng.config.policies import MAX_EPOCH, PlannedPolicy
from distiller_ng.config.problems import Report
from distiller_ng.core.window import PolicyWindow
from distiller_ng.errors import listed
from distiller_ng.names import ParameterIndex

__all__ = ["common_epochs", "refuse_use_of_replaced", "warn_about_overlaps"]

_SHOWN = 3


def warn_about_overlaps(policies: Sequence[PlannedPolicy], report: Report) -> None:
    """Warn where two pruner policies decide about one parameter in one epoch, or two LR policies set the same epoch."""
    for first, second in itertools.combinations(policies, 2):
        if first.kind is not second.kind or not (first.kind.writes_masks or first.kind.writes_lr):
            continue
        epochs = common_epochs(first.window, second.window)
        if not epochs:
            continue
        names = f"{first.kind.noun}s {first.spec.instance_name!r} and {second.spec.instance_name!r}"
        when = f"in the same epoch{'s' if len(epochs) > 1 else ''} ({_epochs(epochs, first, second)})"
        if first.kind.writes_lr:
            report.warn(second.spec.path, f"{names} both set the learning rate {when}: the later policy wins")
            continue
        theirs = set(getattr(second.component, "names", ()))
        shared = [name for name in getattr(first.component, "names", ()) if name in theirs]
        if shared:
            effect = "one decides after the other" if first.component is second.component else "their masks multiply"
            written = listed(map(repr, shared), limit=_SHOWN)
            report.warn(second.spec.path, f"{names} both write {written} {when}; {effect}")


def refuse_use_of_replaced(policies: Sequence[PlannedPolicy], parameters: ParameterIndex, report: Report) -> None:
    """Note a problem for each policy that acts on a weight after another one replaced its layer.

    And for each quantizer beside it: it puts its own layers in when the schedule is loaded, before any epoch.
    """
    for one in policies:
        removed = getattr(one.policy, "removed_parameters", None)
        if not callable(removed):
            continue
        for quantizer in (other for other in policies if other.kind.section == "quantizers"):
            report.error(
                quantizer.spec.path,
                f"quantizer {quantizer.spec.instance_name!r} prepares its layers when the schedule is loaded, before "
                f"{one.kind.noun} {one.spec.instance_name!r} replaces linear layers in epoch {one.window.first:g}: "
                f"write two schedules, one with {one.spec.instance_name!r} and one with the quantizer, and start the "
                "second from the first one's checkpoint",
            )
        gone = set(removed(parameters))
        for other in policies:
            last = other.window.last_epoch
            used = [name for name in getattr(other.component, "names", ()) if name in gone]
            if other is not one and used and (last is None or last >= math.floor(one.window.first)):
                shown = listed(map(repr, used), limit=_SHOWN)
                report.error(
                    other.spec.path,
                    f"{other.kind.noun} {other.spec.instance_name!r} acts on {shown} in or after epoch "
                    f"{one.window.first:g}, when {one.kind.noun} {one.spec.instance_name!r} replaces them: end "
                    "its policy before, or leave the weights out",
                )


def common_epochs(first: PolicyWindow, second: PolicyWindow) -> Sequence[int]:
    """The epochs in which both windows are active, in order; of windows that never end, those of one period.

    >>> common_epochs(PolicyWindow.from_range(0, 7, 2), PolicyWindow.from_range(0, 10, 3))
    range(0, 7, 6)
    """
    if first.epochs is not None or second.epochs is not None:
        listed_one, other = (first, second) if first.epochs is not None else (second, first)
        return [epoch for epoch in listed_one.epochs or () if other.is_active(epoch)]
    period = math.lcm(_period(first), _period(second))
    start = math.floor(max(first.start, second.start))
    end = math.ceil(min(first.end, second.end, MAX_EPOCH))
    found = next(
        (e for e in range(start, min(start + period, end)) if first.is_active(e) and second.is_active(e)), None
    )
    return range(found, end, period) if found is not None else ()


def _period(window: PolicyWindow) -> int:
    return 1 if window.is_fractional else int(window.frequency or 1)


def _epochs(epochs: Sequence[int], first: PlannedPolicy, second: PlannedPolicy) -> str:
    shown = ", ".join(str(epoch) for epoch in epochs[:_SHOWN])
    if len(epochs) <= _SHOWN:
        return shown
    endless = math.isinf(min(first.window.end, second.window.end))
    return f"{shown}, ..." if endless else f"{shown}, ..., {epochs[-1]}"
