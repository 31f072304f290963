"""Boxes and arrows with matplotlib (layer 4)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any

from distiller_ng.errors import ArgumentError
from distiller_ng.reports._layered_layout import layered_layout

__all__ = ["draw"]

# Sizes in inches.
_LETTER, _LINE, _GAP = 0.078, 0.15, 0.4
_FONT = 8
#: Larger pictures than this, in pixels, are drawn at a lower resolution.
_LARGEST_SIDE, _LARGEST_AREA = 30_000, 6e7

_Place = tuple[float, int]


def draw(
    labels: Mapping[str, str],
    styles: Mapping[str, Mapping[str, str]],
    edges: Sequence[tuple[str, str]],
    *,
    rankdir: str,
    file: IO[bytes],
    kind: str,
) -> None:
    """Write a picture of a graph to ``file`` in format ``kind`` (png, svg, pdf); nodes are listed before their readers.

    Of a style ``shape`` (``ellipse``, ``oval`` or a box), ``fillcolor``, ``color`` and ``fontcolor`` are used. Raises
    :class:`ArgumentError` for colours matplotlib does not know and when it is not installed.
    """
    figure_class = _figure_class()
    layout = layered_layout(list(labels), edges)
    box = _box_size(labels)
    upright = rankdir in ("TB", "BT")
    steps = (box[0] + _GAP, box[1] + _GAP) if upright else (box[1] + _GAP, box[0] + _GAP)
    across, along = layout.width * steps[0], max(layout.layers - 1, 0) * steps[1]

    def to_inches(place: _Place) -> tuple[float, float]:
        x, y = place[0] * steps[0], place[1] * steps[1]
        y = along - y if rankdir in ("TB", "RL") else y
        return (x, y) if upright else (y, x)

    extent = (across, along) if upright else (along, across)
    size = (extent[0] + box[0] + 2 * _GAP, extent[1] + box[1] + 2 * _GAP)
    figure = figure_class(figsize=size)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_xlim(-box[0] / 2 - _GAP, extent[0] + box[0] / 2 + _GAP)
    axes.set_ylim(-box[1] / 2 - _GAP, extent[1] + box[1] / 2 + _GAP)
    for route in layout.routes.values():
        _arrow(axes, [to_inches(place) for place in route], box, upright)
    for name, label in labels.items():
        _node(axes, label, styles[name], to_inches(layout.places[name]), box)
    resolution = min(100.0, _LARGEST_SIDE / max(size), (_LARGEST_AREA / (size[0] * size[1])) ** 0.5)
    figure.savefig(file, format=kind, dpi=resolution)


def _figure_class() -> Callable[..., Any]:
    try:
        from matplotlib.figure import Figure  # without pyplot: no global state, no window
    except ImportError as error:
        raise ArgumentError(
            "drawing a model needs matplotlib: pip install 'distiller_ng[plots]', or write a .dot file for Graphviz"
        ) from error
    figure: Callable[..., Any] = Figure
    return figure


def _box_size(labels: Mapping[str, str]) -> tuple[float, float]:
    """Width and height that hold every label."""
    lines = [label.split("\n") for label in labels.values()]
    letters = max((len(line) for label in lines for line in label), default=1)
    return letters * _LETTER + 0.2, max((len(label) for label in lines), default=1) * _LINE + 0.1


def _arrow(axes: Any, points: list[tuple[float, float]], box: tuple[float, float], upright: bool) -> None:
    """A line through the points, from the near side of the first box to the near side of the last."""
    axis = 1 if upright else 0
    forward = points[-1][axis] > points[0][axis]
    half = box[axis] / 2 * (1 if forward else -1)
    start, end = list(points[0]), list(points[-1])
    start[axis] += half
    end[axis] -= half
    way = [(start[0], start[1])]
    for point in points[1:-1]:  # straight past the boxes of every layer between
        for side in (-half, half):
            way.append((point[0], point[1] + side) if upright else (point[0] + side, point[1]))
    way.append((end[0], end[1]))
    if len(way) > 2:
        axes.plot(*zip(*way[:-1], strict=True), color="#555555", linewidth=0.8, zorder=1)
    arrow = {"arrowstyle": "->", "color": "#555555", "linewidth": 0.8, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", xy=way[-1], xytext=way[-2], arrowprops=arrow, zorder=1)


def _node(
    axes: Any, label: str, style: Mapping[str, str], place: tuple[float, float], box: tuple[float, float]
) -> None:
    from matplotlib.colors import is_color_like
    from matplotlib.patches import Ellipse, FancyBboxPatch

    colours = {key: style.get(key, usual) for key, usual in _COLOURS.items()}
    for key, colour in colours.items():
        if not is_color_like(colour):
            raise ArgumentError(
                f"{colour!r} is no colour matplotlib knows; write a name such as 'gray' or '#rrggbb'",
                argument=("styles", key),
            )
    look: dict[str, Any] = {
        "facecolor": colours["fillcolor"],
        "edgecolor": colours["color"],
        "linewidth": 0.8,
        "zorder": 2,
    }
    x, y = place
    if style.get("shape") in ("ellipse", "oval"):
        axes.add_patch(Ellipse(place, *box, **look))
    else:
        corner = (x - box[0] / 2 + 0.05, y - box[1] / 2 + 0.05)
        inner = (box[0] - 0.1, box[1] - 0.1)
        axes.add_patch(FancyBboxPatch(corner, *inner, boxstyle="round,pad=0.05", **look))
    # Names may hold dollar signs, which would start a formula.
    axes.text(
        x, y, label, ha="center", va="center", fontsize=_FONT, color=colours["fontcolor"], zorder=3, parse_math=False
    )


_COLOURS = {"fillcolor": "#ffffff", "color": "#333333", "fontcolor": "#000000"}
