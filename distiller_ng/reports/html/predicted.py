"""What a model was to cost after each step of its schedule, and what it costs (layer 4)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from html import escape
from typing import Any

from distiller_ng.reports.html.parts import bytes_text, count_text, finite, heading, mappings, part, percent_text, table
from distiller_ng.reports.html.run_data import RunData

__all__ = ["predicted_sizes"]

_COLUMNS: Mapping[str, tuple[str, Callable[[float], str]]] = {
    "parameters": ("Parameters", count_text),
    "nonzero": ("Not zero", count_text),
    "macs": ("MACs", count_text),
    "size_bytes": ("Size", bytes_text),
}
_UNKNOWN = "?"


def predicted_sizes(run: RunData, level: int) -> str:
    """A table of the sizes that were predicted before training, and those of the trained model below; empty text
    where nothing was predicted."""
    steps = mappings(part(run.plan, "plan").get("sizes"))
    if not steps:
        return ""
    rows = [_row(step, steps[0]) for step in steps]
    achieved = part(part(run.summary, "model"), "after")
    if achieved:
        values = {**achieved, "size_bytes": achieved.get("bytes_at_bits", achieved.get("bytes"))}
        when = "measured at the end" if run.is_finished else "measured, not finished"
        rows.append([when, *_cells(values, steps[0], missing="")])
    columns = ["After", *(title for title, _ in _COLUMNS.values())]
    made = table(columns, rows, label="Predicted and measured sizes", numbers=range(1, len(columns)))
    return heading(level, "Predicted and measured sizes") + made + _notes(run)


def _row(step: Mapping[str, Any], first: Mapping[str, Any]) -> list[Any]:
    epoch, cause = finite(step.get("epoch")), str(step.get("cause") or "")
    when = "" if epoch is None or step is first else f", epoch {epoch:g}"
    return [cause + when, *_cells(step, first, missing=_UNKNOWN)]


def _cells(values: Mapping[str, Any], first: Mapping[str, Any], *, missing: str) -> list[str]:
    """Each with its share of what there was first; ``~``: training decides the last digits."""
    loose, cells = values.get("approximate"), []
    for key, (_, text) in _COLUMNS.items():
        value, whole = finite(values.get(key)), finite(first.get(key))
        if value is None:
            cells.append(missing if whole is not None else "")
            continue
        about = "~" if isinstance(loose, list) and key in loose else ""
        share = f" ({percent_text(value / whole, 0)})" if whole and values is not first else ""
        cells.append(about + text(value) + share)
    return cells


def _notes(run: RunData) -> str:
    notes = run.plan.get("size_notes")
    items = [str(note) for note in notes if note] if isinstance(notes, list) else []
    return "".join(f'<p class="soft small">{escape(note)}</p>' for note in items)
