"""Line charts and scatter plots as inline SVG that follows the page's colours (layer 4)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from distiller_ng.reports.html.run_data import Curve

__all__ = ["Point", "line_chart", "scatter_chart", "ticks"]

_WIDTH, _HEIGHT = 640, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 14, 14, 42
#: Colours a series takes in turn, defined in the page's style for light and dark; beyond them dashes tell them apart.
_COLOURS = 6
_DASHES = ("", "6 4", "2 3")


@dataclass(frozen=True, slots=True)
class Point:
    """One model in a scatter plot."""

    label: str
    x: float
    y: float


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
    return [round(number * step, 12) for number in range(first, last + 1)]


def line_chart(title: str, series: Mapping[str, Curve], *, x_label: str = "epoch", y_label: str = "") -> str:
    """A figure with one line a series; empty text when there is nothing to draw."""
    shown = {name: _finite(points) for name, points in series.items()}
    shown = {name: points for name, points in shown.items() if points}
    if not shown:
        return ""
    flat = [point for points in shown.values() for point in points]
    frame = _Frame(flat)
    parts = [frame.axes(x_label, y_label)]
    for number, (name, points) in enumerate(shown.items()):
        path = " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in points)
        dash = _DASHES[number // _COLOURS % len(_DASHES)]
        says = f"<title>{escape(name)}: {points[-1][1]:.4g} at {points[-1][0]:.4g}</title>"
        style = f'class="line c{number % _COLOURS}" stroke-dasharray="{dash}"'
        parts.append(f'<polyline {style} points="{path}">{says}</polyline>')
        if len(points) == 1:
            (x, y) = points[0]
            parts.append(
                f'<circle class="dot c{number % _COLOURS}" cx="{frame.x(x):.1f}" cy="{frame.y(y):.1f}" r="3"/>'
            )
    return _figure(title, parts, _legend(list(shown)))


def scatter_chart(title: str, points: Sequence[Point], *, x_label: str, y_label: str) -> str:
    """A figure with one labelled point a model; points that no other beats in both are joined (Pareto front).

    Lower ``x`` and higher ``y`` are better. Empty text when there are no points.
    """
    finite = [point for point in points if math.isfinite(point.x) and math.isfinite(point.y)]
    if not finite:
        return ""
    frame = _Frame([(point.x, point.y) for point in finite], margin=0.12)
    front = _front(finite)
    path = " ".join(f"{frame.x(point.x):.1f},{frame.y(point.y):.1f}" for point in front)
    parts = [frame.axes(x_label, y_label), f'<polyline class="front" points="{path}"/>']
    for number, point in enumerate(finite):
        x, y = frame.x(point.x), frame.y(point.y)
        anchor = "end" if x > _WIDTH * 0.7 else "start"
        offset = -9 if anchor == "end" else 9
        parts.append(f'<circle class="dot c{number % _COLOURS}" cx="{x:.1f}" cy="{y:.1f}" r="5"/>')
        parts.append(
            f'<text class="name" text-anchor="{anchor}" x="{x + offset:.1f}" y="{y - 7:.1f}">'
            f"{escape(point.label)}</text>"
        )
    return _figure(title, parts, "")


def _front(points: Sequence[Point]) -> list[Point]:
    found: list[Point] = []
    for point in sorted(points, key=lambda one: (one.x, -one.y)):
        if not found or point.y > found[-1].y:
            found.append(point)
    return found


class _Frame:
    """Data to picture coordinates."""

    def __init__(self, points: Sequence[tuple[float, float]], margin: float = 0.0) -> None:
        self.low_x, self.high_x = _widened([x for x, _ in points], margin)
        self.low_y, self.high_y = _widened([y for _, y in points], max(margin, 0.05))

    def x(self, value: float) -> float:
        return _LEFT + (value - self.low_x) / (self.high_x - self.low_x) * (_WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        return _HEIGHT - _BOTTOM - (value - self.low_y) / (self.high_y - self.low_y) * (_HEIGHT - _TOP - _BOTTOM)

    def axes(self, x_label: str, y_label: str) -> str:
        """Grid lines with numbers, and what the axes are."""
        parts = []
        for value in ticks(self.low_y, self.high_y):
            y = self.y(value)
            parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(f'<text class="tick" text-anchor="end" x="{_LEFT - 6}" y="{y + 4:.1f}">{value:g}</text>')
        for value in ticks(self.low_x, self.high_x, 8):
            x = self.x(value)
            parts.append(
                f'<text class="tick" text-anchor="middle" x="{x:.1f}" y="{_HEIGHT - _BOTTOM + 16}">{value:g}</text>'
            )
        middle = (_LEFT + _WIDTH - _RIGHT) / 2
        parts.append(f'<text class="axis" text-anchor="middle" x="{middle}" y="{_HEIGHT - 6}">{escape(x_label)}</text>')
        if y_label:
            turned = f'transform="rotate(-90 13 {_HEIGHT / 2})"'
            parts.append(
                f'<text class="axis" text-anchor="middle" x="13" y="{_HEIGHT / 2}" {turned}>{escape(y_label)}</text>'
            )
        return "".join(parts)


def _widened(values: Sequence[float], margin: float) -> tuple[float, float]:
    low, high = min(values), max(values)
    if high == low:
        spread = abs(low) * 0.1 or 1.0
        return low - spread, high + spread
    spread = (high - low) * margin
    return low - spread, high + spread


def _finite(points: Curve) -> Curve:
    return [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]


def _legend(names: Sequence[str]) -> str:
    if len(names) < 2:
        return ""
    items = "".join(
        f'<li><span class="key c{number % _COLOURS} d{number // _COLOURS % len(_DASHES)}"></span>{escape(name)}</li>'
        for number, name in enumerate(names)
    )
    return f'<ul class="legend">{items}</ul>'


def _figure(title: str, parts: Sequence[str], legend: str) -> str:
    drawing = f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'
    return f"<figure><figcaption>{escape(title)}</figcaption>{drawing}{legend}</figure>"
