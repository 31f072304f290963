"""Pictures of a model's operations (layer 4; needs matplotlib, but for Graphviz text).

The file's ending decides: ``.png`` (also without an ending), ``.svg`` and ``.pdf`` are drawn with matplotlib, ``.dot``
and ``.gv`` are text for Graphviz (https://graphviz.org/doc/info/lang.html).
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from torch import nn

from distiller_ng.errors import ArgumentError, did_you_mean, listed
from distiller_ng.graph.summary_graph import SummaryGraph
from distiller_ng.ops.files import replacing, write_text_atomically
from distiller_ng.reports._drawing import draw
from distiller_ng.reports._example_input import example_input
from distiller_ng.reports.connectivity import checked_graph
from distiller_ng.reports.table import size_to_str

__all__ = ["create_dot", "create_png", "draw_img_classifier_to_file", "draw_model_to_file"]

#: Graphviz attributes by operation name, e.g. ``{"conv1": {"fillcolor": "gray"}}``.
Styles: TypeAlias = "Mapping[str, Mapping[str, str]]"

_DIRECTIONS = ("TB", "BT", "LR", "RL")
_DRAWN = {"": "png", ".png": "png", ".svg": "svg", ".pdf": "pdf"}
_TEXT = (".dot", ".gv")
_FILLS = {"Conv": "#cfe2f3", "ConvTranspose": "#cfe2f3", "Gemm": "#d9ead3", "BatchNormalization": "#fff2cc"}


@dataclass(slots=True)
class _Picture:
    """What is drawn: nodes in an order in which every edge points to a later one, with labels and Graphviz styles."""

    labels: dict[str, str] = field(default_factory=dict)
    styles: dict[str, dict[str, str]] = field(default_factory=dict)
    edges: list[tuple[str, str]] = field(default_factory=list)
    rankdir: str = "TB"


def create_dot(
    sgraph: SummaryGraph, display_param_nodes: bool = False, rankdir: str = "TB", styles: Styles | None = None
) -> str:
    """The graph as text for Graphviz: a box for each operation, with its type and the shape of what it makes.

    ``display_param_nodes`` also shows parameters and buffers. ``rankdir``: from top to bottom (``TB``), or ``BT``,
    ``LR``, ``RL``. ``styles``: Graphviz attributes by operation: ``{"conv1": {"shape": "oval", "fillcolor": "gray"}}``.

    Raises :class:`ArgumentError` for another direction and for styles of operations the graph does not have.
    """
    picture = _picture(sgraph, display_param_nodes, rankdir, styles)
    lines = ["digraph model {", f"  rankdir={picture.rankdir};", "  node [fontsize=10];"]
    for name, label in picture.labels.items():
        attributes = {"label": label, **picture.styles[name]}
        described = ", ".join(f"{key}={_quoted(value)}" for key, value in attributes.items())
        lines.append(f"  {_quoted(name)} [{described}];")
    lines += [f"  {_quoted(src)} -> {_quoted(dst)};" for src, dst in picture.edges]
    return "\n".join([*lines, "}"]) + "\n"


def create_png(
    sgraph: SummaryGraph, display_param_nodes: bool = False, rankdir: str = "TB", styles: Styles | None = None
) -> bytes:
    """The graph as the bytes of a PNG file; arguments as :func:`create_dot`, of ``styles`` the colours are used.

    Raises :class:`ArgumentError` as :func:`create_dot`, for a colour matplotlib does not know, and when matplotlib is
    not installed.
    """
    return _drawn(_picture(sgraph, display_param_nodes, rankdir, styles), "png")


def draw_model_to_file(
    sgraph: SummaryGraph,
    png_fname: str | os.PathLike[str],
    display_param_nodes: bool = False,
    rankdir: str = "TB",
    styles: Styles | None = None,
) -> None:
    """Write a picture of the graph to a file, whole or not at all; its ending decides the format (see this module).

    Raises :class:`ArgumentError` as :func:`create_png` and for another ending, ``OSError`` when it cannot be written.
    """
    target = Path(png_fname)
    ending = target.suffix.lower()
    if ending in _TEXT:
        write_text_atomically(target, create_dot(sgraph, display_param_nodes, rankdir, styles))
        return
    if ending not in _DRAWN:
        allowed = listed([*filter(None, _DRAWN), *_TEXT])
        raise ArgumentError(
            f"a picture of a model cannot be written as {ending!r}; allowed: {allowed}", argument=("png_fname",)
        )
    content = _drawn(_picture(sgraph, display_param_nodes, rankdir, styles), _DRAWN[ending])
    with replacing(target) as file:
        file.write(content)


def draw_img_classifier_to_file(
    model: nn.Module,
    png_fname: str | os.PathLike[str],
    dataset: str | None = None,
    display_param_nodes: bool = False,
    rankdir: str = "TB",
    styles: Styles | None = None,
    input_shape: tuple[Any, ...] | None = None,
) -> None:
    """:func:`draw_model_to_file` of a model, traced on random images shaped as those of ``dataset``.

    Without a data set ``input_shape`` is used, else ``model.input_shape``; both with the batch dimension. Raises
    :class:`ArgumentError` also when no shape is known, :class:`GraphError` when the model cannot be traced.
    """
    graph = SummaryGraph(model, example_input(model, dataset, input_shape))
    draw_model_to_file(graph, png_fname, display_param_nodes, rankdir, styles)


def _picture(sgraph: SummaryGraph, display_param_nodes: bool, rankdir: str, styles: Styles | None) -> _Picture:
    graph = checked_graph(sgraph)
    if rankdir not in _DIRECTIONS:
        raise ArgumentError(
            f"rankdir={rankdir!r} is no direction; allowed: {listed(_DIRECTIONS)}", argument=("rankdir",)
        )
    picture = _Picture(rankdir=rankdir)
    own = _own_styles(graph, styles or {})
    made = {tensor: op["name"] for op in graph.ops.values() for tensor in op["outputs"]}
    for op in graph.ops.values():
        for tensor in op["inputs"]:
            if tensor not in made and (display_param_nodes or tensor not in op["params"]):
                picture.labels[tensor] = f"{tensor}\n{size_to_str(graph.param_shape(tensor))}"
                picture.styles[tensor] = {"shape": "ellipse", "style": "filled", "fillcolor": "#eeeeee"}
        shape = size_to_str(graph.param_shape(op["outputs"][0])) if op["outputs"] else ""
        picture.labels[op["name"]] = f"{op['name']}\n{op['type']}\n{shape}"
        fill = _FILLS.get(op["type"], "#ffffff")
        picture.styles[op["name"]] = {"shape": "box", "style": "rounded,filled", "fillcolor": fill, **own[op["name"]]}
        sources = (made.get(tensor, tensor) for tensor in op["inputs"])
        picture.edges += [(src, op["name"]) for src in dict.fromkeys(sources) if src in picture.labels]
    return picture


def _own_styles(graph: SummaryGraph, styles: Styles) -> dict[str, Mapping[str, str]]:
    own: dict[str, Mapping[str, str]] = {name: {} for name in graph.ops}
    for name, style in styles.items():
        op = graph.find_op(name)
        if op is None:
            raise ArgumentError(
                f"styles: the graph has no operation {name!r}. {did_you_mean(name, graph.ops)}",
                argument=("styles", name),
            )
        own[op["name"]] = {str(key): str(value) for key, value in style.items()}
    return own


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def _drawn(picture: _Picture, kind: str) -> bytes:
    buffer = io.BytesIO()
    draw(picture.labels, picture.styles, picture.edges, rankdir=picture.rankdir, file=buffer, kind=kind)
    return buffer.getvalue()
