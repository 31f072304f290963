"""A schedule's timeline for terminals (layer 4)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from distiller_ng.errors import ArgumentError
from distiller_ng.reports._plan_rows import short_names

if TYPE_CHECKING:
    from distiller_ng.reports.schedule_timeline import PolicyTimeline, ScheduleTimeline

__all__ = ["timeline_text"]

_BLOCKS = ("█", "░", "·", "▁▂▃▄▅▆▇█")
_ASCII = ("#", "-", ".", "_.,:+*%#")
_LABEL = 26
_MARK = 30


def timeline_text(timeline: ScheduleTimeline, width: int, ascii_only: bool, notes: bool) -> str:
    """One line a policy, one more for its sparsity (0 to 1), and one for the learning rate (0 to its highest).

    Raises :class:`ArgumentError` below 10 columns.
    """
    if width < 10:
        raise ArgumentError(f"a timeline is 10 columns wide or more, got {width}", argument=("width",))
    if timeline.epochs == 0:
        return "nothing happens: the schedule has no epochs"
    bar, after, empty, levels = _ASCII if ascii_only else _BLOCKS
    columns = _Columns(timeline.epochs, width)
    names = short_names([row.name for row in timeline.policies])
    titles = [title for row in timeline.policies for title, _ in _curves(row)]
    label = min(max([len(name) for name in [*names, *titles, "learning rate"]]) + 2, _LABEL)
    lines = [f"{'epoch':<{label}} {columns.axis()}".rstrip()]
    for name, row in zip(names, timeline.policies, strict=True):
        cells = "".join(_cell(columns, number, row, (bar, after, empty)) for number in range(width))
        lines.append(f"{_cut(name, label):<{label}} {cells} {_cut(row.mark, _MARK)}".rstrip())
        for title, points in _curves(row):
            lines.append(f"{title:<{label}} {columns.curve(points, 1.0, levels)}".rstrip())
    for number, rates in enumerate((timeline.learning_rate, *timeline.other_rates)):
        if not rates:
            continue
        end = timeline.rate_unknown_from
        until = f"{rates[-1][1]:.3g}" + (", then ?" if end is not None else "")
        shown = columns.curve(rates, max(max(value for _, value in rates), 1e-30), levels, until=end)
        title = "learning rate" if number == 0 else f"  group {number + 1}"
        lines.append(f"{title:<{label}} {shown} {rates[0][1]:.3g} to {until}")
    if timeline.policies:
        lines.append(f"{'':<{label}} {bar} active  {after} its effect stays  {empty} nothing")
    return "\n".join([*lines, *(f"note: {note}" for note in (timeline.notes if notes else ()))])


def _cell(columns: _Columns, number: int, row: PolicyTimeline, signs: tuple[str, str, str]) -> str:
    bar, after, empty = signs
    if columns.touches(number, row.active):
        return bar
    begun = bool(row.active) and columns.start(number + 1) > row.active[0][0]
    return after if row.lasts and begun else empty


def _curves(row: PolicyTimeline) -> list[tuple[str, Sequence[tuple[float, float]]]]:
    """The sparsity, or else how much of a budget or threshold is applied; a constant needs no curve."""
    found: list[tuple[str, Sequence[tuple[float, float]]]] = []
    if len({value for _, value in row.sparsity}) > 1:
        found.append(("  sparsity", row.sparsity))
    for curve in row.curves:
        if curve.of in ("budget", "threshold") and len({value for _, value in curve.values}) > 1:
            found.append((f"  {curve.of} applied", curve.values))
    return found


def _cut(name: str, length: int) -> str:
    return name if len(name) <= length else f"{name[: length - 2]}.."


class _Columns:
    """Epochs spread over columns of text."""

    def __init__(self, epochs: int, width: int) -> None:
        self.epochs, self.width = epochs, width

    def start(self, column: int) -> float:
        """The epoch a column begins with."""
        return column * self.epochs / self.width

    def touches(self, column: int, active: Sequence[tuple[float, float]]) -> bool:
        """Whether the column overlaps an interval."""
        low, high = self.start(column), self.start(column + 1)
        return any(start < high - 1e-9 and (end > low + 1e-9 or start >= low) for start, end in active)

    def curve(
        self, points: Sequence[tuple[float, float]], top: float, levels: str, *, until: float | None = None
    ) -> str:
        """One character a column, by the value at its end; blank before the first point, ``?`` from ``until`` on."""
        text = ""
        limit = math.inf if until is None else until
        for column in range(self.width):
            at = self.start(column + 1) - 1e-9
            known = [value for epoch, value in points if epoch <= at]
            if self.start(column) >= limit - 1e-9:
                text += "?"
            elif not known:
                text += " "
            else:
                share = known[-1] / top if top > 0 else 0.0
                text += levels[max(0, min(int(share * len(levels)), len(levels) - 1))]
        return text

    def axis(self) -> str:
        """Numbers of epochs at the columns where they begin."""
        text = [" "] * self.width
        free = 0
        for epoch in range(self.epochs):
            column, number = -(-epoch * self.width // self.epochs), str(epoch)
            if column >= free and column + len(number) <= self.width:
                text[column : column + len(number)] = number
                free = column + len(number) + max(3, self.width // 12)
        return "".join(text)
