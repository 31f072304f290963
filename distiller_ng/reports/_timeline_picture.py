"""A schedule's timeline as a picture (layer 4)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distiller_ng.errors import ArgumentError
from distiller_ng.ops.files import replacing
from distiller_ng.ops.optional import require

if TYPE_CHECKING:
    from distiller_ng.reports.schedule_timeline import ScheduleTimeline

__all__ = ["draw_timeline"]

_FORMATS = (".svg", ".png")


def draw_timeline(timeline: ScheduleTimeline, path: str | os.PathLike[str]) -> Path:
    """Bars of active epochs, and below them sparsities and learning rate over the same epochs."""
    target = Path(path)
    if target.suffix.lower() not in _FORMATS:
        raise ArgumentError(f"a timeline is drawn as .svg or .png, got {target.name!r}", argument=("path",))
    figure_class = require("matplotlib.figure", "plots", "drawing a timeline").Figure
    curves = [row for row in timeline.policies if row.sparsity]
    heights = [max(1.0, 0.35 * len(timeline.policies)), *([2.0] if curves else [])]
    heights += [1.6] if timeline.learning_rate else []
    figure = figure_class(figsize=(10, sum(heights) + 1.0), layout="constrained")
    axes = figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    _draw_bars(axes[0], timeline)
    if curves:
        for number, row in enumerate(curves):
            _draw_steps(axes[1], row.sparsity, timeline.epochs, row.name, number)
        axes[1].set(ylabel="sparsity", ylim=(-0.03, 1.03))
        axes[1].legend(loc="lower right", fontsize="small")
    if timeline.learning_rate:
        _draw_steps(axes[-1], timeline.learning_rate, timeline.epochs, "learning rate", 0)
        axes[-1].set(ylabel="learning rate")
    for axis in axes:
        axis.grid(alpha=0.3, axis="x")
    axes[-1].set(xlabel="epoch", xlim=(0, max(timeline.epochs, 1)))
    with replacing(target) as file:
        figure.savefig(file, format=target.suffix.lower()[1:], dpi=110)
    return target


def _draw_bars(axes: Any, timeline: ScheduleTimeline) -> None:
    names = [row.name for row in timeline.policies]
    for number, row in enumerate(timeline.policies):
        # One-shot actions would be invisible without a width of their own.
        least = max(timeline.epochs, 1) / 200
        bars = [(start, max(end - start, least)) for start, end in row.active]
        axes.broken_barh(bars, (number - 0.35, 0.7), facecolor=f"C{number % 10}")
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)


def _draw_steps(axes: Any, points: Any, epochs: int, label: str, number: int) -> None:
    """Values that hold until the next one, to the end of the run."""
    known = [point for point in points if point[0] <= epochs]
    xs = [x for x, _ in known] + [float(epochs)]
    ys = [y for _, y in known] + ([known[-1][1]] if known else [0.0])
    axes.step(xs, ys, where="post", label=label, color=f"C{number % 10}", marker="." if len(xs) <= 60 else None)
