"""Line charts and scatter plots as inline SVG that follows the page's colours (layer 4)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

from distiller_ng.reports.html.run_data import Curve
from distiller_ng.reports.html.style import SERIES

__all__ = ["Frame", "Line", "Point", "figure", "legend", "line_chart", "scatter_chart", "ticks"]

_WIDTH, _HEIGHT = 400, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 14, 14, 40
_DASHES = ("", "7 4", "2 3")
_MOST_POINTS, _MOST_FAINT = 400, 100  # more cannot be told apart


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a chart. ``colour`` counts from 0; ``dash``: 0 solid, 1 dashed, 2 dotted; ``faint`` ones have no key.

    ``steps``: a value holds until the next one (``"after"``), or from the one before (``"before"``).
    """

    name: str
    points: Curve
    colour: int = 0
    dash: int = 0
    faint: bool = False
    heavy: bool = False
    steps: Literal["", "after", "before"] = ""


@dataclass(frozen=True, slots=True)
class Point:
    """One model in a scatter plot; ``text`` says its values; ``colour`` counts from 0, ``mark`` stands in it.

    Without these they follow from its place among the others.
    """

    label: str
    x: float
    y: float
    text: str = ""
    colour: int | None = None
    mark: str = ""


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round numbers within ``low .. high``: multiples of 1, 2 or 5 times a power of ten.

    >>> ticks(0.0, 1.0)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    if high <= low:
        return [low]
    rough = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [float(f"{number * step:.12g}") for number in range(first, last + 1)]


def line_chart(
    title: str,
    lines: Sequence[Line] | Mapping[str, Curve],
    *,
    x_label: str = "epoch",
    y_label: str = "",
    unit: str = "",
    low: float | None = None,
    high: float | None = None,
) -> str:
    """A figure with these lines; empty text when there is nothing to draw. Values that are not finite break a line.

    ``unit`` follows the numbers of the y axis; ``low`` and ``high`` are ends it has at least.
    """
    given = (
        [Line(name, points, n % SERIES, n // SERIES % len(_DASHES)) for n, (name, points) in enumerate(lines.items())]
        if isinstance(lines, Mapping)
        else list(lines)
    )
    shown = [line for line in given if any(_is_finite(point) for point in line.points)]
    if not shown:
        return ""
    flat = [point for line in shown for point in _from_the_left(line) if _is_finite(point)]
    frame = Frame(flat, low=low, high=high, unit=unit)
    drawn = [frame.axes(x_label, y_label, unit), *(_drawn(line, frame) for line in shown)]
    return figure(title, "".join(drawn), _described(shown, unit, x_label), legend(shown))


def scatter_chart(
    title: str, points: Sequence[Point], *, x_label: str, y_label: str, unit: str = "", less_is_better: bool = False
) -> str:
    """A figure with one numbered mark a model, their names below; those that no other beats in both are joined.

    Lower ``x`` and higher ``y`` are better (lower ``y`` with ``less_is_better``). Empty text for fewer than two.
    """
    known = [point for point in points if math.isfinite(point.x) and math.isfinite(point.y)]
    if len(known) < 2:
        return ""
    frame = Frame([(point.x, point.y) for point in known], margin=0.12, unit=unit)
    front = _front(known, -1 if less_is_better else 1)
    path = " ".join(f"{frame.x(point.x):.1f},{frame.y(point.y):.1f}" for point in front)
    parts = [frame.axes(x_label, y_label, unit), f'<polyline class="front" points="{path}"/>']
    keys = []
    for number, point in enumerate(known):
        x, y, mark = frame.x(point.x), frame.y(point.y), escape(point.mark or str(number + 1))
        colour = f"c{(number if point.colour is None else point.colour) % SERIES}"
        parts.append(
            f'<g><title>{escape(point.label)}: {escape(point.text)}</title><circle class="fill {colour}" cx="{x:.1f}" '
            f'cy="{y:.1f}" r="9"/><text class="mark" text-anchor="middle" x="{x:.1f}" y="{y + 4:.1f}">{mark}'
            "</text></g>"
        )
        best = ' <span class="soft">(on the front)</span>' if point in front and len(known) > len(front) else ""
        keys.append(
            f'<li><span class="number-key key-{colour}">{mark}</span>{escape(point.label)}'
            f'<span class="soft"> {escape(point.text)}</span>{best}</li>'
        )
    said = f"{len(known)} models; the best compromises are " + ", ".join(point.label for point in front)
    return figure(title, "".join(parts), said, f'<ul class="legend stacked">{"".join(keys)}</ul>')


def figure(title: str, drawing: str, said: str, below: str = "", *, height: float = _HEIGHT) -> str:
    """A figure of the usual width around a drawing; ``said`` is its description for those who do not see it."""
    return (
        f'<figure><figcaption>{escape(title)}</figcaption><svg viewBox="0 0 {_WIDTH} {height:g}" role="img" '
        f'aria-label="{escape(title, quote=True)}"><title>{escape(title)}</title><desc>{escape(said)}</desc>{drawing}'
        f"</svg>{below}</figure>"
    )


def legend(lines: Sequence[Line]) -> str:
    """The names of lines, but of the faint ones only the first; empty text for a single line."""
    faint = next((line for line in lines if line.faint), None)
    named = [line for line in lines if not line.faint] + ([faint] if faint else [])
    if len(named) < 2:
        return ""
    items = "".join(
        f'<li><span class="key c{line.colour} d{line.dash}"></span>{escape(line.name)}</li>' for line in named
    )
    return f'<ul class="legend">{items}</ul>'


class Frame:
    """Data to picture coordinates, with axes."""

    def __init__(
        self,
        points: Sequence[tuple[float, float]],
        margin: float = 0.0,
        *,
        low: float | None = None,
        high: float | None = None,
        unit: str = "",
    ) -> None:
        self.low_x, self.high_x = _widened([x for x, _ in points], margin)
        ys = [y for _, y in points] + [end for end in (low, high) if end is not None]
        self.low_y, self.high_y = _widened(ys, max(margin, 0.05))
        if unit == "%" and max(ys) <= 100:
            self.high_y = min(self.high_y, 100 + 0.05 * (100 - self.low_y))

    def x(self, value: float) -> float:
        """Where ``value`` is from the left."""
        return _LEFT + (value - self.low_x) / (self.high_x - self.low_x) * (_WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        """Where ``value`` is from the top."""
        return _HEIGHT - _BOTTOM - (value - self.low_y) / (self.high_y - self.low_y) * (_HEIGHT - _TOP - _BOTTOM)

    def axes(self, x_label: str, y_label: str, unit: str = "") -> str:
        """Grid lines with numbers, and what the axes are."""
        parts = []
        for value in ticks(self.low_y, self.high_y):
            y = self.y(value)
            parts.append(f'<line class="gridline" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(
                f'<text text-anchor="end" x="{_LEFT - 6}" y="{y + 4:.1f}">{_number(value)}{escape(unit)}</text>'
            )
        for value in ticks(self.low_x, self.high_x, 6):
            x = self.x(value)
            anchor = "end" if x > _WIDTH - 24 else "middle"  # so that it ends within the picture
            place = f'x="{x if anchor == "middle" else _WIDTH - 4:.1f}" y="{_HEIGHT - _BOTTOM + 16}"'
            parts.append(f'<text text-anchor="{anchor}" {place}>{_number(value)}</text>')
        middle = (_LEFT + _WIDTH - _RIGHT) / 2
        parts.append(f'<text text-anchor="middle" x="{middle}" y="{_HEIGHT - 7}">{escape(x_label)}</text>')
        if y_label:
            turned = f'transform="rotate(-90 12 {_HEIGHT / 2 - 10})"'
            parts.append(f'<text text-anchor="middle" x="12" y="{_HEIGHT / 2 - 10}" {turned}>{escape(y_label)}</text>')
        return "".join(parts)


def _number(value: float) -> str:
    """A tick's number, short: ``0.5``, ``2000``, ``1.5 M``."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= max(size, 1e4):
            return f"{value / size:g} {unit}"
    return f"{value:g}"


def _drawn(line: Line, frame: Frame) -> str:
    kinds = "".join(f" {kind}" for kind, on in (("faint", line.faint), ("heavy", line.heavy)) if on)
    last = [point for point in line.points if _is_finite(point)][-1]
    said = f"<title>{escape(line.name)}: {last[1]:.4g} at {last[0]:.4g}</title>"
    dash = f' stroke-dasharray="{_DASHES[line.dash]}"' if line.dash else ""
    parts = []
    for run in _runs(_from_the_left(line)):
        points = _steps(run, line.steps) if line.steps else _thinned(run, _MOST_FAINT if line.faint else _MOST_POINTS)
        if len(points) == 1:
            x, y = points[0]
            parts.append(f'<circle class="fill c{line.colour}" cx="{frame.x(x):.1f}" cy="{frame.y(y):.1f}" r="3.5"/>')
            continue
        path = " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in points)
        parts.append(f'<polyline class="line c{line.colour}{kinds}"{dash} points="{path}">{said}</polyline>')
    return "".join(parts)


def _described(lines: Sequence[Line], unit: str, x_label: str) -> str:
    """The first and last value of every line that has a key."""
    said = []
    for line in lines:
        points = [point for point in line.points if _is_finite(point)]
        if not line.faint:
            said.append(f"{line.name}: from {points[0][1]:.4g}{unit} to {points[-1][1]:.4g}{unit}")
    return f"over {x_label}s. " + "; ".join(said)


def _runs(points: Curve) -> Iterator[Curve]:
    """Stretches without a value that is not finite."""
    run: Curve = []
    for point in points:
        if _is_finite(point):
            run.append(point)
        elif run:
            yield run
            run = []
    if run:
        yield run


def _from_the_left(line: Line) -> Curve:
    """With the beginning of the epoch, from which on the first value holds."""
    points = line.points
    if line.steps != "before" or not _is_finite(points[0]):
        return points
    return [(math.ceil(points[0][0]) - 1.0, points[0][1]), *points]


def _steps(points: Curve, kind: str) -> Curve:
    found = points[:1]
    for (left, before), (x, y) in itertools.pairwise(points):
        if y != before or kind == "after":
            found.append((x, before) if kind == "after" else (left, y))
        found.append((x, y))
    return found


def _thinned(points: Curve, most: int) -> Curve:
    """Every so many points, and always the last."""
    stride = -(-len(points) // most)
    return points[::stride] + ([points[-1]] if (len(points) - 1) % stride else []) if stride > 1 else points


def _is_finite(point: tuple[float, float]) -> bool:
    return math.isfinite(point[0]) and math.isfinite(point[1])


def _front(points: Sequence[Point], sign: int) -> list[Point]:
    found: list[Point] = []
    for point in sorted(points, key=lambda one: (one.x, -sign * one.y)):
        if not found or sign * point.y > sign * found[-1].y:
            found.append(point)
    return found


def _widened(values: Sequence[float], margin: float) -> tuple[float, float]:
    low, high = min(values), max(values)
    if high == low:
        spread = abs(low) * 0.02 or 1.0
        return low - spread, high + spread
    spread = (high - low) * margin
    return low - spread, high + spread
