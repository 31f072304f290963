"""Which exit answered how much, of a model with early exits (layer 4)."""

from __future__ import annotations

from html import escape
from typing import Any

from distiller_ng.reports.html.parts import count_text, finite, mappings, part, percent_text, table
from distiller_ng.reports.html.run_data import RunData

__all__ = ["exits_table"]

_COLUMNS = ("Answered by", "Samples", "Top-1 of these", "Top-1 if it answered all", "MACs")


def exits_table(run: RunData, level: int) -> str:
    """A row an exit, and what they save together; empty text for a model without. It has no headings for ``level``."""
    found = part(run.summary, "early_exit")
    rows = mappings(found.get("rows"))
    if not rows:
        return ""
    cells: list[list[Any]] = []
    for number, row in enumerate(rows):
        share, macs = finite(row.get("share")), finite(row.get("macs"))
        name = f"exit {number}" if number < len(rows) - 1 else "the end"
        scores = [None if (one := finite(row.get(key))) is None else f"{one:.2f} %" for key in ("top1", "top1_alone")]
        known = None if share is None else percent_text(share)
        cells.append([name, known, *scores, None if macs is None else count_text(macs)])
    made = table(_COLUMNS, cells, label="Early exits", numbers=range(1, len(_COLUMNS)))
    return made + _together(finite(found.get("top1")), finite(found.get("macs")), finite(found.get("plain_macs")))


def _together(top1: float | None, macs: float | None, plain: float | None) -> str:
    said = [] if top1 is None else [f"Together: top-1 {top1:.2f} %."]
    if macs is not None and plain:
        change = 1 - macs / plain
        words = f"{percent_text(abs(change))} {'less' if change >= 0 else 'more'}"
        said.append(f"MACs of a sample on average: {count_text(macs)}, {words} than {count_text(plain)} without exits.")
    return f'<p class="small">{escape(" ".join(said))}</p>' if said else ""
