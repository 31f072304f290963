"""What a reader of a report should be warned of (layer 4)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from html import escape
from typing import Any

from distiller_ng.reports.html.figures import NOISE, accuracies, is_less_better
from distiller_ng.reports.html.measured import measured
from distiller_ng.reports.html.parts import finite, mappings, percent_text, shape_of
from distiller_ng.reports.html.run_data import Curve, RunData

__all__ = ["Finding", "findings", "is_off_plan", "warnings_box"]

_DROP = 1.0  # percentage points of top-1
_WORSE = 0.05  # of another result
_OFF = 0.02  # of sparsity
_DIVERGED = "the loss was not a finite number"  # how a recorder's own note begins


@dataclass(frozen=True, slots=True)
class Finding:
    """One warning; ``is_serious``: the result is not what was asked for."""

    text: str
    is_serious: bool = False


def findings(run: RunData) -> list[Finding]:
    """Everything to be warned of, the most serious first, each once."""
    found = [*_of_the_run(run), *_of_accuracy(run), *_of_the_plan(run)]
    found += [Finding(text) for text in _told(run)]
    unique: dict[str, Finding] = {}
    for one in found:
        unique.setdefault(one.text, one)
    return sorted(unique.values(), key=lambda one: not one.is_serious)


def warnings_box(found: Iterable[Finding], level: int, anchor: str) -> str:
    """The warnings, to stand at the top of a run; empty text without any."""
    kinds = {True: ' class="serious"', False: ""}
    items = "".join(f"<li{kinds[one.is_serious]}>{escape(one.text)}</li>" for one in found)
    if not items:
        return ""
    return (
        f'<section class="warnings" aria-labelledby="{anchor}"><h{level} id="{anchor}">Warnings</h{level}>'
        f"<ul>{items}</ul></section>"
    )


def is_off_plan(row: Mapping[str, Any]) -> bool:
    """Whether a parameter's sparsity is not what was planned, as far as its size allows.

    A tensor of 100 values reaches 85 % when it is within 2 points, or within one and a half of its values; one of which
    whole filters are zero, within one filter.
    """
    planned, achieved = finite(row.get("planned")), finite(row.get("achieved"))
    if planned is None or achieved is None:
        return False
    shape = [size for size in shape_of(row) if size]
    tolerance = max(_OFF, 1.5 / max(math.prod(shape), 1))
    if len(shape) > 1 and 0 <= achieved <= 1:
        filters = achieved * shape[0]
        if abs(filters - round(filters)) < 1e-6:
            tolerance = max(tolerance, 1.0 / shape[0])
    return abs(planned - achieved) > tolerance + 1e-9


def _of_the_run(run: RunData) -> Iterable[Finding]:
    if not run.is_finished:
        done = run.summary.get("epochs_done")
        last = max((int(x) for curve in run.curves.values() for points in curve.values() for x, _ in points), default=0)
        count = done if isinstance(done, int) else last
        after = f"after {count} epoch{'s' * (count != 1)}" if count else "in its first epoch"
        status = run.summary.get("status")
        why = f" ({status})" if isinstance(status, str) and status.startswith("stopped") else ""
        yield Finding(f"This run did not finish: what is shown is its state {after}{why}.", True)
    for group, metrics in run.curves.items():
        for name, points in metrics.items():
            epoch = _breaks(points)
            if epoch is not None and "oss" in name:
                yield Finding(f"{group}: {name} was not a finite number, first in epoch {math.ceil(epoch) - 1}.", True)
                break


def _breaks(points: Curve) -> float | None:
    """Where a curve is no finite number first."""
    return next((x for x, y in points if not math.isfinite(y)), None)


def _of_accuracy(run: RunData) -> Iterable[Finding]:
    name, before, after = accuracies(run)
    if before is not None and after is not None and name.startswith("Top") and before - after > _DROP:
        yield Finding(f"{name} fell by {before - after:.2f} points, from {before:.2f} % to {after:.2f} %.", True)
    elif before is not None and after is not None and not name.startswith("Top"):
        less = is_less_better(name)
        worse = after - before if less else before - after
        if less is not None and worse > _WORSE * abs(before):
            yield Finding(f"{name} {'rose' if less else 'fell'} from {before:.4g} to {after:.4g}.", True)
    rows = measured(run)
    reference = next((row for row in rows if row.top1 is not None), None)
    for row in rows[1:]:
        if reference and reference.top1 is not None and row.top1 is not None and reference.top1 - row.top1 > _DROP:
            text = f"{row.name} has {reference.top1 - row.top1:.2f} points of top-1 less than {reference.name}."
            yield Finding(text, True)
        slower = {batch: factor for batch, factor in row.speedup.items() if 0 < factor < 1 - NOISE}
        for batch, factor in slower.items():
            yield Finding(f"{row.name} is slower than {rows[0].name} at batch {batch}: {1 / factor:.2f}x the time.")


def _of_the_plan(run: RunData) -> Iterable[Finding]:
    rows = mappings(run.summary.get("parameters"))
    off = [row for row in rows if is_off_plan(row)]
    if not off:
        return
    worst = max(off, key=lambda row: abs(float(row["planned"]) - float(row["achieved"])))
    yield Finding(
        f"{len(off)} of {len(rows)} pruned parameters are not as sparse as planned; the furthest off is "
        f"{worst.get('name')}: {percent_text(float(worst['planned']))} planned, "
        f"{percent_text(float(worst['achieved']))} achieved.",
        True,
    )


def _told(run: RunData) -> Iterable[str]:
    """What the schedule, the quantizer, the export and the benchmark said."""
    plan = run.plan.get("plan")
    export = run.quantization.get("export")
    lists = [
        run.summary.get("warnings"),
        plan.get("notes") if isinstance(plan, Mapping) else None,
        run.quantization.get("notes"),
        export.get("notes") if isinstance(export, Mapping) else None,
    ]
    seen = any("oss" in name and _breaks(curve) for group in run.curves.values() for name, curve in group.items())
    for texts in lists:
        if isinstance(texts, list):
            known = (str(text) for text in texts if text)
            yield from (text for text in known if not (seen and text.startswith(_DIVERGED)))
    yield from dict.fromkeys(row.note for row in measured(run) if row.note)
