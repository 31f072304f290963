"""A schedule's timeline as a picture (layer 4)."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distiller_ng.errors import ArgumentError, listed
from distiller_ng.ops.files import replacing
from distiller_ng.ops.optional import require
from distiller_ng.reports._plan_rows import short_names

if TYPE_CHECKING:
    from distiller_ng.reports.schedule_timeline import ScheduleTimeline

__all__ = ["draw_timeline"]

_FORMATS = (".svg", ".png")
#: One color a kind, distinguishable for color-blind readers (after Okabe and Ito).
_COLORS = {
    "pruning": "#0072B2",
    "thinning": "#56B4E9",
    "regularization": "#CC79A7",
    "learning rate": "#8C8C8C",
    "quantization": "#D55E00",
    "distillation": "#009E73",
    "other": "#B8B8B8",
}
_LINES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#4D4D4D")
_MOST_CURVES = 7
_SIZES = (("parameters", "parameters"), ("nonzero", "non-zero"), ("macs", "MACs"), ("size_bytes", "size"))

_Panel = Callable[[Any, "ScheduleTimeline"], None]


def draw_timeline(timeline: ScheduleTimeline, path: str | os.PathLike[str]) -> Path:
    """Bars of active epochs, and below them sparsities, sizes and learning rate over the same epochs."""
    target = Path(path)
    if target.suffix.lower() not in _FORMATS:
        raise ArgumentError(f"a timeline is drawn as .svg or .png, got {target.name!r}", argument=("path",))
    figure_class = require("matplotlib.figure", "plots", "drawing a timeline").Figure
    panels: list[tuple[float, _Panel]] = [(max(1.0, 0.42 * len(timeline.policies)), _draw_bars)]
    if any(row.curves for row in timeline.policies):
        panels.append((2.0, _draw_curves))
    if len(timeline.sizes) > 1:
        panels.append((2.0, _draw_sizes))
    if timeline.learning_rate or timeline.rate_unknown_from is not None:
        panels.append((1.7, _draw_rates))
    heights = [height for height, _ in panels]
    figure = figure_class(figsize=(10, sum(heights) + 1.0), layout="constrained")
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for axis, (_, draw) in zip(axes, panels, strict=True):
        draw(axis, timeline)
        axis.grid(alpha=0.3, axis="x")
        axis.spines[["top", "right"]].set_visible(False)
    axes[-1].set(xlabel="epoch", xlim=(0, max(timeline.epochs, 1)))
    with replacing(target) as file:
        figure.savefig(file, format=target.suffix.lower()[1:], dpi=110)
    return target


def _draw_bars(axes: Any, timeline: ScheduleTimeline) -> None:
    """Active epochs in full color, lighter where the effect stays; each with what it does."""
    epochs = max(timeline.epochs, 1)
    names = short_names([row.name for row in timeline.policies])
    for number, row in enumerate(timeline.policies):
        color = _COLORS[row.kind]
        if row.lasts and row.active:
            first = row.active[0][0]
            axes.broken_barh([(first, epochs - first)], (number - 0.35, 0.7), facecolor=color, alpha=0.25)
        # One-shot actions would be invisible without a width of their own.
        bars = [(start, max(end - start, epochs / 200)) for start, end in row.active]
        axes.broken_barh(bars, (number - 0.35, 0.7), facecolor=color)
        label = f"{row.kind}: {row.mark}" if row.mark else row.kind
        if row.active:
            start, side = row.active[0][0] + epochs / 150, "left"
            if start > 0.7 * epochs:  # no room for words up to the edge: they end there
                start, side = epochs - epochs / 150, "right"
            box = {"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.75}
            axes.text(start, number, label, ha=side, va="center", fontsize="small", color="black", bbox=box)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)


def _draw_curves(axes: Any, timeline: ScheduleTimeline) -> None:
    """One line for each group of parameters that is to have the same sparsity."""
    curves = [(row.name, curve) for row in timeline.policies for curve in row.curves]
    names = dict(zip([name for name, _ in curves], short_names([name for name, _ in curves])))
    for number, (name, curve) in enumerate(curves[:_MOST_CURVES]):
        what = {"sparsity": "", "channels": " (of channels)"}.get(curve.of, f" (share of the {curve.of})")
        parts = listed([one.removesuffix(".weight") for one in curve.parameters], limit=3)
        label = f"{names[name]}{what}: {parts}"
        _draw_steps(axes, curve.values, timeline.epochs, label, _LINES[number % len(_LINES)])
    more = f", {len(curves) - _MOST_CURVES} more not drawn" if len(curves) > _MOST_CURVES else ""
    axes.set(ylabel="sparsity", ylim=(-0.03, 1.03))
    _legend(axes, 2, title=more.lstrip(", ") or None, title_fontsize="x-small")


def _draw_sizes(axes: Any, timeline: ScheduleTimeline) -> None:
    """What is left after each step, in percent of the model as it is; what is not known is not drawn."""
    first = timeline.sizes[0]
    for number, (name, label) in enumerate(_SIZES):
        base = getattr(first, name)
        if not base:
            continue
        known = []
        for row in timeline.sizes:
            value = getattr(row, name)
            if value is None:
                break
            known.append((row.epoch, 100 * value / base))
        end = timeline.epochs if len(known) == len(timeline.sizes) else timeline.sizes[len(known)].epoch
        ending = "" if len(known) == len(timeline.sizes) else f" (not known from epoch {end:g} on)"
        _draw_steps(axes, known, end, label + ending, _LINES[number])
    axes.set(ylabel="% of now", ylim=(-3, 108))
    _legend(axes, 4)


def _draw_rates(axes: Any, timeline: ScheduleTimeline) -> None:
    """One line for each group of the optimizer whose rates differ; shaded where results of training decide."""
    unknown = timeline.rate_unknown_from
    end = timeline.epochs if unknown is None else unknown
    for number, points in enumerate((timeline.learning_rate, *timeline.other_rates)):
        label = "learning rate" if number == 0 else f"group {number + 1}"
        if points:
            _draw_steps(axes, points, end, label, _LINES[number % len(_LINES)])
    if unknown is not None:
        axes.axvspan(unknown, timeline.epochs, color="#8C8C8C", alpha=0.25, hatch="//", linewidth=0)
        middle = (unknown + timeline.epochs) / 2
        said = {"ha": "center", "va": "center", "fontsize": "small", "transform": axes.get_xaxis_transform()}
        axes.text(middle, 0.5, "decided by results of training", **said)
    axes.set(ylabel="learning rate")
    if timeline.other_rates:
        axes.legend(loc="best", fontsize="x-small")


def _legend(axes: Any, columns: int, **options: Any) -> None:
    """Above the panel, where no line can be behind it."""
    where = {"loc": "lower left", "bbox_to_anchor": (0, 1), "borderaxespad": 0.2}
    axes.legend(fontsize="x-small", ncols=columns, frameon=False, **where, **options)


def _draw_steps(axes: Any, points: Sequence[tuple[float, float]], end: float, label: str, color: str) -> None:
    """Values that hold until the next one, to the end of the run."""
    known = [point for point in points if point[0] <= end]
    if not known:
        return
    xs = [x for x, _ in known] + [float(end)]
    ys = [y for _, y in known] + [known[-1][1]]
    axes.step(xs, ys, where="post", label=label, color=color, marker="." if len(xs) <= 60 else None)
