"""A schedule's timeline for terminals (layer 4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from distiller_ng.errors import ArgumentError

if TYPE_CHECKING:
    from distiller_ng.reports.schedule_timeline import ScheduleTimeline

__all__ = ["timeline_text"]

_BLOCKS = ("█", "·", "▁▂▃▄▅▆▇█")
_ASCII = ("#", ".", "_.-~=+*#")
_LABEL = 32


def timeline_text(timeline: ScheduleTimeline, width: int, ascii_only: bool) -> str:
    """One line a policy, one more for its sparsity (0 to 1), and one for the learning rate (0 to its highest)."""
    if width < 10:
        raise ArgumentError(f"a timeline is 10 columns wide or more, got {width}", argument=("width",))
    if timeline.epochs == 0:
        return "nothing happens: the schedule has no epochs"
    bar, empty, levels = _ASCII if ascii_only else _BLOCKS
    columns = _Columns(timeline.epochs, width)
    names = [row.name for row in timeline.policies]
    label = min(max([len(name) for name in [*names, "learning rate"]]) + 2, _LABEL)
    lines = [f"{'epoch':<{label}} {columns.axis()}"]
    for row in timeline.policies:
        cells = "".join(bar if columns.touches(number, row.active) else empty for number in range(width))
        lines.append(f"{_cut(row.name, label):<{label}} {cells}")
        if row.sparsity:
            values = f"{row.sparsity[0][1]:.2f} to {row.sparsity[-1][1]:.2f}"
            lines.append(f"{'  sparsity':<{label}} {columns.curve(row.sparsity, 1.0, levels)} {values}")
    if timeline.learning_rate:
        rates = [rate for _, rate in timeline.learning_rate]
        values = f"{rates[0]:.3g} to {rates[-1]:.3g}"
        curve = columns.curve(timeline.learning_rate, max(rates), levels)
        lines.append(f"{'learning rate':<{label}} {curve} {values}")
    return "\n".join([*lines, *(f"note: {note}" for note in timeline.notes)])


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

    def curve(self, points: Sequence[tuple[float, float]], top: float, levels: str) -> str:
        """One character a column, by the value at its end; blank before the first point."""
        text = ""
        for column in range(self.width):
            at = self.start(column + 1) - 1e-9
            known = [value for epoch, value in points if epoch <= at]
            if not known:
                text += " "
            else:
                share = known[-1] / top if top > 0 else 0.0
                text += levels[min(int(share * len(levels)), len(levels) - 1)]
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
