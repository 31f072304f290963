"""Where to draw the nodes of a directed graph without loops: in layers, with few crossings (layer 4).

Sugiyama, Tagawa and Toda, Methods for visual understanding of hierarchical system structures, 1981,
https://doi.org/10.1109/TSMC.1981.4308636: layers by the longest way, long edges cut by one waypoint a layer, order
within a layer by the mean place of the neighbours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

__all__ = ["Layout", "layered_layout"]

_SWEEPS = 6
#: Half the room a node takes across, and a long edge that passes by.
_NODE, _PASSING = 0.5, 0.08


@dataclass(frozen=True, slots=True)
class Layout:
    """``places``: (place across, layer) of each node. ``routes``: the places an edge passes, ends included."""

    places: Mapping[str, tuple[float, int]]
    routes: Mapping[tuple[str, str], list[tuple[float, int]]]
    width: float
    layers: int


def layered_layout(nodes: Sequence[str], edges: Sequence[tuple[str, str]]) -> Layout:
    """Places for ``nodes``, listed so that every edge points to a later one; nodes in a layer are 1 apart or more.

    ``layered_layout("abc", [("a", "b"), ("a", "c")])`` puts ``a`` at ``(0.5, 0)``, ``b`` at ``(0, 1)``, ``c`` at
    ``(1, 1)``.
    """
    ranks = _ranks(nodes, edges)
    layers: list[list[str]] = [[] for _ in range(max(ranks.values(), default=-1) + 1)]
    for node in nodes:
        layers[ranks[node]].append(node)
    ways: dict[tuple[str, str], list[str]] = {}
    above: dict[str, list[str]] = {}
    below: dict[str, list[str]] = {}
    for src, dst in edges:
        way = [src]
        for rank in range(ranks[src] + 1, ranks[dst]):
            waypoint = f"{src}\0{dst}\0{rank}"
            layers[rank].append(waypoint)
            way.append(waypoint)
        way.append(dst)
        ways[(src, dst)] = way
        for first, second in pairwise(way):
            below.setdefault(first, []).append(second)
            above.setdefault(second, []).append(first)
    across = _across(layers, above, below)
    rank_of = {node: rank for rank, layer in enumerate(layers) for node in layer}
    left = min(across.values(), default=0.0)
    place = {node: (x - left, rank_of[node]) for node, x in across.items()}
    routes = {edge: [place[node] for node in way] for edge, way in ways.items()}
    width = max((x for x, _ in place.values()), default=0.0)
    return Layout({node: place[node] for node in nodes}, routes, width, len(layers))


def _ranks(nodes: Sequence[str], edges: Sequence[tuple[str, str]]) -> dict[str, int]:
    """The layer of each node; what nothing points to stands right above the first that reads it."""
    after: dict[str, list[str]] = {}
    sources = set(nodes)
    for src, dst in edges:
        after.setdefault(src, []).append(dst)
        sources.discard(dst)
    ranks = dict.fromkeys(nodes, 0)
    for node in nodes:
        for other in after.get(node, ()):
            ranks[other] = max(ranks[other], ranks[node] + 1)
    for node in sources:
        ranks[node] = min((ranks[other] - 1 for other in after.get(node, ())), default=0)
    return ranks


def _across(
    layers: Sequence[list[str]], above: Mapping[str, list[str]], below: Mapping[str, list[str]]
) -> dict[str, float]:
    """Places across, after sweeping down and up; every layer is centred under the mean of its neighbours."""
    across = {node: float(position) for layer in layers for position, node in enumerate(layer)}
    for sweep in range(_SWEEPS):
        down = sweep % 2 == 0
        for layer in layers if down else reversed(layers):
            near = above if down else below
            wanted = {node: _mean([across[other] for other in near.get(node, ())], across[node]) for node in layer}
            layer.sort(key=wanted.__getitem__)
            _spread(layer, wanted, across)
    return across


def _spread(layer: Sequence[str], wanted: Mapping[str, float], across: dict[str, float]) -> None:
    """Put nodes near where they want to be, without overlap and without moving the layer as a whole."""
    end = -float("inf")
    for node in layer:
        half = _PASSING if "\0" in node else _NODE
        across[node] = max(end + half, wanted[node])
        end = across[node] + half
    shift = _mean([wanted[node] - across[node] for node in layer], 0.0)
    for node in layer:
        across[node] += shift


def _mean(values: Sequence[float], otherwise: float) -> float:
    return sum(values) / len(values) if values else otherwise
