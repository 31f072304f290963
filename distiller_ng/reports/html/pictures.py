"""Pictures of a run: curves, the schedule's timeline, plan against result, histograms (layer 4)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from distiller_ng.reports.html.charts import Line, figure, line_chart, ticks
from distiller_ng.reports.html.parts import count_text, details, finite, mappings, part, shape_of
from distiller_ng.reports.html.run_data import Bars, Curve, RunData
from distiller_ng.reports.html.style import SERIES

__all__ = ["activation_pictures", "against_plan", "timeline_picture", "training_charts", "weight_pictures"]

_MOST_LINES = 60  # a line a layer, behind the total
_MOST_ROWS = 30
_MOST_GROUPS = 4
_SHOWN = 12
_KINDS = ("pruning", "regularization", "learning rate", "quantization", "distillation", "thinning")


def training_charts(run: RunData) -> str:
    """Loss, accuracy, other results, learning rate and sparsity over the epochs."""
    shown = {"Loss", "Overall Loss", "Objective Loss", "Top1", "Top5", "LR", "Time"}
    others: dict[str, list[Line]] = {}
    for group, metrics in run.curves.items():
        for name, points in metrics.items():
            if name not in shown and group != "Training":
                others.setdefault(name, []).append(Line(group, points, len(others.get(name, ()))))
    charts = [
        line_chart("Loss", _pick(run, ("Overall Loss", "Loss")), y_label="loss"),
        line_chart("Top-1 accuracy", _pick(run, ("Top1",)), y_label="top-1", unit="%"),
        *(line_chart(name, lines) for name, lines in others.items()),
        line_chart("Learning rate", _rates(run), low=0.0),
        line_chart("Sparsity", _sparsity_lines(run), y_label="zeros", unit="%", low=0.0),
    ]
    return _grid(charts)


def _pick(run: RunData, names: Sequence[str]) -> list[Line]:
    """A line a group, ``Training``, ``Validation``, of the first of ``names`` that it has."""
    found: list[Line] = []
    for group, metrics in run.curves.items():
        name = next((one for one in names if one in metrics), None)
        if name is not None:
            found.append(Line(group, metrics[name], len(found) % SERIES))
    return found


def _rates(run: RunData) -> list[Line]:
    lines = [Line("used", m["LR"], 0, steps="before") for m in run.curves.values() if "LR" in m][:1]
    planned = _points(part(run.plan, "timeline").get("learning_rate"))
    return [*lines, Line("planned", planned, 1, dash=1, steps="after")] if lines and planned else lines


def _sparsity_lines(run: RunData) -> list[Line]:
    if not any(value for _, value in run.total_sparsity):
        return []
    moving = {name: curve for name, curve in run.sparsities.items() if any(value for _, value in curve)}
    names = sorted(moving, key=lambda name: -moving[name][-1][1])
    stride = max(-(-len(names) // _MOST_LINES), 1)
    each = [Line("one line a layer", _percent(moving[name]), 2, faint=True) for name in names[::stride]]
    each = each if len(moving) > 1 else []
    return [*each, Line("all weights", _percent(run.total_sparsity), 0, heavy=True)]


# -- the plan ----------------------------------------------------------------------------------------------------------


def timeline_picture(run: RunData) -> str:
    """When each policy was to act, as bars over the epochs; empty text without a plan."""
    timeline = part(run.plan, "timeline")
    rows = mappings(timeline.get("policies"))
    epochs = finite(timeline.get("epochs"))
    if not rows or not epochs:
        return ""
    shown, parts, top = rows[:_MOST_ROWS], [], 8.0
    end = max([epochs, *(x for row in shown for _, x in _points(row.get("active")))])

    def x(epoch: float) -> float:
        return 10 + min(max(epoch, 0.0), end) / end * 380

    bottom = top + 34 * len(shown)
    for value in ticks(0.0, end, 6):
        parts.append(f'<line class="gridline" x1="{x(value):.1f}" x2="{x(value):.1f}" y1="{top}" y2="{bottom:.0f}"/>')
        parts.append(f'<text text-anchor="middle" x="{x(value):.1f}" y="{bottom + 16:.0f}">{value:g}</text>')
    for row in shown:
        parts.append(_policy_row(row, top, x, end))
        top += 34
    parts.append(f'<text text-anchor="middle" x="200" y="{bottom + 34:.0f}">epoch</text>')
    said = "; ".join(f"{row.get('name')}: {_spans(row)}" for row in shown)
    more = f'<p class="soft small">and {len(rows) - len(shown)} more policies</p>' if len(rows) > len(shown) else ""
    return figure("What the schedule does when", "".join(parts), said, more, height=bottom + 42)


def _policy_row(row: Mapping[str, Any], top: float, x: Any, end: float) -> str:
    name, kind, mark = (str(row.get(key) or "") for key in ("name", "kind", "mark"))
    colour = _KINDS.index(kind) % SERIES if kind in _KINDS else SERIES - 1
    text = _cut(name if not kind or kind in name else f"{name} ({kind})", 34)
    parts = [f'<text class="strong" x="10" y="{top + 12:.0f}">{escape(text)}</text>']
    if mark:
        parts.append(f'<text text-anchor="end" x="390" y="{top + 12:.0f}">{escape(_cut(mark, 24))}</text>')
    active = _points(row.get("active"))
    for start, stop in active:
        width = max(x(stop) - x(start), 3.0)
        place = f'x="{x(start):.1f}" y="{top + 17:.0f}" height="9" rx="2"'
        parts.append(f'<rect class="fill c{colour}" {place} width="{width:.1f}"/>')
    if row.get("lasts") and active and active[-1][1] < end:
        start = x(active[-1][1])
        parts.append(
            f'<rect class="fill c{colour} late" x="{start:.1f}" y="{top + 20:.0f}" width="{x(end) - start:.1f}" '
            'height="3"/>'
        )
    return "".join(parts)


def _spans(row: Mapping[str, Any]) -> str:
    return ", ".join(f"epochs {start:g} to {stop:g}" for start, stop in _points(row.get("active"))) or "never"


def against_plan(run: RunData) -> str:
    """Planned and achieved sparsity over the epochs, for each group of parameters with a plan of its own."""
    sizes = {str(row.get("name")): math.prod(shape_of(row)) for row in mappings(run.summary.get("layers"))}
    lines: list[Line] = []
    for policy in mappings(part(run.plan, "plan").get("policies")):
        for curve in mappings(policy.get("curves")):
            planned = _points(curve.get("values"))
            names = curve.get("parameters")
            achieved = _mean(run, [str(name) for name in names] if isinstance(names, list) else [], sizes)
            if curve.get("of") == "sparsity" and planned and achieved and len(lines) < 2 * _MOST_GROUPS:
                number, name = len(lines), _cut(str(policy.get("name")), 30)
                held = [*planned, (max(achieved[-1][0], planned[-1][0]), planned[-1][1])]
                by_epoch = all(x == int(x) for x, _ in planned)
                lines.append(Line(f"{name}, achieved", _percent(achieved), number, steps="before" if by_epoch else ""))
                lines.append(Line(f"{name}, planned", _percent(held), number + 1, dash=1, steps="after"))
    return line_chart("Sparsity, planned and achieved", lines, y_label="zeros", unit="%", low=0.0)


def _mean(run: RunData, names: Sequence[str], sizes: Mapping[str, int]) -> Curve:
    """Sparsity of several parameters together."""
    known = [name for name in names if name in run.sparsities]
    total = sum(sizes.get(name, 1) for name in known)
    if not known or not total:
        return []
    epochs = [x for x, _ in run.sparsities[known[0]]]
    by_epoch = [dict(run.sparsities[name]) for name in known]
    weights = [sizes.get(name, 1) for name in known]
    return [(x, sum(w * found.get(x, 0.0) for w, found in zip(weights, by_epoch, strict=True)) / total) for x in epochs]


# -- histograms --------------------------------------------------------------------------------------------------------


def weight_pictures(run: RunData, most: int) -> str:
    """Values of every layer's weights at the end (filled) and at the beginning (line), of ``most`` layers."""
    before, after = run.weights.get("before", {}), run.weights.get("after", {})
    names = list(after or before)
    pictures = [_histogram(name, (after or before)[name], before.get(name) if after else None) for name in names[:most]]
    if not pictures:
        return ""
    what = "Filled: at the end; line: at the beginning." if before and after else "At the beginning of the run."
    return (
        f'<p class="soft small">{what} Zeros are not drawn, their share is written.</p>{_folded(pictures, len(names))}'
    )


def activation_pictures(run: RunData, most: int) -> str:
    """Values of the outputs of ``most`` layers."""
    shown = list(run.activations.items())[:most]
    return _folded([_histogram(name, bars, None) for name, bars in shown], len(run.activations))


def _histogram(name: str, bars: Bars, before: Bars | None) -> str:
    low = min(bars.low, before.low) if before else bars.low
    high = max(bars.high, before.high) if before else bars.high
    total = sum(bars.counts) + bars.zeros
    drawing = f'<path class="fill c0" d="{_outline(bars, low, high)}Z"/>'
    if before is not None:
        drawing += f'<path class="outline" d="{_outline(before, low, high)}"/>'
    if low < 0 < high:
        zero = 160 * -low / (high - low)
        drawing += f'<line class="gridline" x1="{zero:.1f}" x2="{zero:.1f}" y1="0" y2="70"/>'
    share = f", {100 * bars.zeros / total:.0f} % zeros" if bars.zeros and total else ""
    said = f"{low:.3g} to {high:.3g}{share}"
    return (
        f'<figure><figcaption>{escape(name)}<span>{said}</span></figcaption><svg viewBox="0 0 160 70" role="img" '
        f'aria-label="{escape(name, quote=True)}"><title>{escape(name)}</title><desc>Histogram of '
        f"{count_text(total)} values, {said}</desc>{drawing}</svg></figure>"
    )


def _outline(bars: Bars, low: float, high: float) -> str:
    """A path over the tops of the bars."""
    span, most = (high - low) or 1.0, max(bars.counts) or 1.0
    width = (bars.high - bars.low) / len(bars.counts)
    path = f"M{160 * (bars.low - low) / span:.1f} 70"
    for number, count in enumerate(bars.counts):
        right = 160 * (bars.low + (number + 1) * width - low) / span
        path += f"V{70 - 64 * count / most:.1f}H{right:.1f}"
    return f"{path}V70"


def _folded(pictures: Sequence[str], total: int) -> str:
    """The first ones, the others to unfold; how many of the ``total`` there are no pictures of."""
    if not pictures:
        return ""
    shown, hidden = pictures[:_SHOWN], pictures[_SHOWN:]
    rest = total - len(pictures)
    left = f'<p class="soft small">{rest} more layers are not drawn.</p>' if rest else ""
    more = details(f"{len(hidden)} more layers", f'<div class="minis">{"".join(hidden)}</div>{left}' if hidden else "")
    return f'<div class="minis">{"".join(shown)}</div>{more}'


# -- shared ------------------------------------------------------------------------------------------------------------


def _grid(charts: Sequence[str]) -> str:
    drawn = "".join(chart for chart in charts if chart)
    return f'<div class="charts">{drawn}</div>' if drawn else ""


def _percent(points: Curve) -> Curve:
    return [(x, 100 * y) for x, y in points]


def _points(value: Any) -> Curve:
    """Pairs of numbers from a file; anything else is left out."""
    pairs = value if isinstance(value, list) else []
    found = []
    for pair in pairs:
        if isinstance(pair, list) and len(pair) == 2 and all(finite(one) is not None for one in pair):
            found.append((float(pair[0]), float(pair[1])))
    return found


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
