"""A schedule's plan for terminals: tables of at most 120 columns (layer 4)."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from distiller_ng.errors import listed
from distiller_ng.reports._plan_rows import short_names

if TYPE_CHECKING:
    from distiller_ng.reports.schedule_plan import PlannedActions, SchedulePlan

__all__ = ["details_text", "notes_text", "policies_text", "sizes_text"]

_WIDTH = 120
_LARGEST = (24, 14, 18)  # columns of Policy, What and Epochs; the effect has the rest
_SHOWN = 8


def policies_text(plan: SchedulePlan) -> str:
    """Policy, what, epochs and effect; long effects go on in the next line."""
    names = short_names([row.name for row in plan.policies])
    rows = [(name, row.kind, _when(row), _effect(row)) for name, row in zip(names, plan.policies, strict=True)]
    steps = f"{plan.steps_per_epoch:g} optimizer step{'' if plan.steps_per_epoch == 1 else 's'}"
    return f"{plan.epochs} epochs of {steps}\n\n" + _wrapped(("Policy", "What", "Epochs", "Effect"), rows)


def sizes_text(plan: SchedulePlan) -> str:
    """Parameters, non-zeros, MACs and size after each step that changes them; empty where nothing was predicted."""
    if not plan.sizes:
        return ""
    first = plan.sizes[0]
    if len(plan.sizes) == 1:
        macs = f"{first.macs:,} MACs" if first.macs is not None else "MACs not known"
        size = _bytes(first.size_bytes or 0)
        return f"Predicted size: as it is, {first.parameters:,} parameters, {macs}, {size}; no policy changes that"
    cells: list[tuple[str, ...]] = [("From epoch", "After", "Parameters", "Non-zero", "MACs", "Size")]
    for number, row in enumerate(plan.sizes):
        values = [
            _with_share(getattr(row, name), getattr(first, name), name, name in row.approximate, number == 0)
            for name in ("parameters", "nonzero", "macs", "size_bytes")
        ]
        causes = ", ".join(short_names(row.cause.split(", ")))
        cells.append(("start" if number == 0 else f"{row.epoch:g}", _cut(causes, 34), *values))
    widths = [max(len(line[column]) for line in cells) for column in range(6)]
    lines = [
        "  ".join(text.ljust(w) if i == 1 else text.rjust(w) for i, (text, w) in enumerate(zip(line, widths))).rstrip()
        for line in cells
    ]
    rule = "  ".join("-" * width for width in widths)
    return "\n".join(["Predicted size", lines[0], rule, *lines[1:]])


def details_text(plan: SchedulePlan) -> str:
    """Of every policy its resolved values, the parameters it names and the epochs of its acts."""
    return "\n".join(map(_details, plan.policies))


def notes_text(notes: Sequence[str]) -> str:
    """Notes in lines of at most 120 columns."""
    lines = (textwrap.wrap(f"note: {note}", _WIDTH, subsequent_indent="      ") for note in notes)
    return "\n".join(line for lines_of_one in lines for line in lines_of_one)


def _details(row: PlannedActions) -> str:
    lines = [f"{row.name}: {row.window}"]
    if row.settings:
        lines.append("    " + ", ".join(f"{key}={value}" for key, value in row.settings.items()))
    if row.parameters:
        names = listed(row.parameters, limit=_SHOWN)
        lines.append(f"    {len(row.parameters)} parameters, {row.weights:,} weights: {names}")
    for layer in row.layers:
        bits = {"weights": layer.weights, "bias": layer.bias, "activations": layer.activations}
        lines.append(f"    {layer.layer}: " + ", ".join(f"{n} {b} bits" for n, b in bits.items() if b is not None))
    if row.every_step:
        lines.append("    acts before every optimizer step")
    elif row.acts:
        epochs = listed([f"{epoch:g}" for epoch in row.acts], limit=12)
        lines.append(f"    acts {len(row.acts)} times, at epochs {epochs}")
    else:
        lines.append("    does not act in this run")
    return "\n".join(lines)


def _effect(row: PlannedActions) -> str:
    if row.kind in ("learning rate", "regularization", "other"):
        return f"{row.class_name}: {row.effect}" if row.effect else row.class_name
    return f"{row.effect} ({row.class_name})"


def _when(row: PlannedActions) -> str:
    """Epochs a person would name: the last one included."""
    if not row.spans:
        return "not in this run"
    if len(row.spans) > 3 and len({later - earlier for earlier, later in pairwise(row.acts)}) == 1:
        return f"{row.acts[0]:g} to {row.acts[-1]:g}, every {row.acts[1] - row.acts[0]:g}"
    parts = []
    for start, end in row.spans[:3]:
        last = end - 1 if float(start).is_integer() and float(end).is_integer() and end > start else end
        parts.append(f"{start:g}" if last <= start else f"{start:g} to {last:g}")
    more = ", ..." if len(row.spans) > 3 else ""
    return ", ".join(parts) + more


def _wrapped(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    natural = [max(len(line[i]) for line in [columns, *rows]) for i in range(3)]
    widths = [min(size, most) for size, most in zip(natural, _LARGEST, strict=True)]
    widths.append(_WIDTH - sum(widths) - 6)
    lines = ["  ".join(text.ljust(width) for text, width in zip(columns, widths, strict=True)).rstrip()]
    longest = max((len(row[3]) for row in rows), default=0)
    lines.append("  ".join("-" * width for width in [*widths[:3], min(widths[3], max(longest, 6))]))
    for row in rows:
        cells = [textwrap.wrap(text, width) or [""] for text, width in zip(row, widths, strict=True)]
        for number in range(max(map(len, cells))):
            parts = [(c[number] if number < len(c) else "").ljust(w) for c, w in zip(cells, widths, strict=True)]
            lines.append("  ".join(parts).rstrip())
    return "\n".join(lines)


def _with_share(value: int | None, first: int | None, name: str, loose: bool, is_first: bool) -> str:
    if value is None:
        return "?"
    text = _bytes(value) if name == "size_bytes" else f"{value:,}"
    share = "" if is_first or not first else f" ({100 * value / first:.3g} %)"
    return ("~" if loose else "") + text + share


def _bytes(count: int) -> str:
    """``1536 -> "1.5 KiB"``."""
    value = count / 1024
    for unit in ("KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            return f"{value:.4g} {unit}"
        value /= 1024
    return str(count)


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 2]}.."
