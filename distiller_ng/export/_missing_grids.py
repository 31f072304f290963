"""Tensors that keep layers with integer weights in floating point, because nothing rounds them (layer 4)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from distiller_ng.export._dequantize import DEQUANTIZE, FAKE_QUANTIZE
from distiller_ng.export._grids import MOVING, PADDING, bits_of
from distiller_ng.export._naming import layer_name
from distiller_ng.export._weights import CONVOLUTIONS, LINEAR, TRANSPOSED
from distiller_ng.export.quantized_graph import CLAMPS, QuantizedGraph

__all__ = ["MissingGrids"]

_aten = torch.ops.aten
_ROUNDING_CONVOLUTIONS = CONVOLUTIONS - TRANSPOSED
_JOINS = {
    *(_aten.add.Tensor, _aten.cat.default, _aten.stack.default, _aten.mean.dim),
    *(_aten.avg_pool1d.default, _aten.avg_pool2d.default, _aten.avg_pool3d.default),
    *(_aten.adaptive_avg_pool1d.default, _aten.adaptive_avg_pool2d.default, _aten.adaptive_avg_pool3d.default),
}
#: Those of MOVING that may leave values out: the range is that of what is left.
_CHOOSING = {
    *(_aten.slice.Tensor, _aten.select.int, _aten.narrow.default, _aten.index_select.default),
    *(_aten.split.Tensor, _aten.split_with_sizes.default, _aten.chunk.default, _aten.unbind.int),
    *(_aten.amax.default, _aten.amin.default, _aten.max.dim, _aten.min.dim),
}


class MissingGrids:
    """Where grids would let more layers compute with integers; the graph is not changed.

    ``places``: nodes to round, in the order they run: what a quantized layer reads; with ``conv_outputs`` what
    convolutions return, too (behind the clamp that is the only reader), for runtimes whose integer convolutions round
    their output, and the sums, concatenations and average poolings between such tensors. ``layers``: names of the
    layers that would gain.

    In ``relu(conv1(x)) -> fake_quantize -> conv2 -> add(., x2) -> relu -> fake_quantize`` the one place is ``conv2``.
    """

    def __init__(self, graph: QuantizedGraph, *, conv_outputs: bool) -> None:
        self._graph = graph
        self._convolutions: set[fx.Node] = set()
        self.places: list[fx.Node] = []
        self.layers: list[str] = []
        for node in graph.module.graph.nodes:
            if self._is_layer(node):
                self._look_around(node, conv_outputs)
            elif conv_outputs and self._is_join(node):
                self._choose(node)

    def readers(self, place: fx.Node) -> list[fx.Node]:
        """Who is to read the rounded tensor: all readers of a convolution, or it would not be one integer kernel; of
        other tensors those that compute with integers, so that the rest (and the model's outputs) keep the precision.
        """
        if place in self._convolutions:
            return list(place.users)
        return [user for user in place.users if self._takes_integers(user)]

    def _look_around(self, layer: fx.Node, conv_outputs: bool) -> None:
        gains = False
        if not self._is_rounded(layer.args[0]):
            source = self._origin(layer.args[0])
            if source is None:
                return
            self._choose(source)
            gains = True
        if conv_outputs and layer.target in _ROUNDING_CONVOLUTIONS and not _is_followed_by_rounding(layer):
            place = _behind(layer)
            self._choose(place)
            self._convolutions.add(place)
            gains = True
        if gains and layer_name(layer) not in self.layers:
            self.layers.append(layer_name(layer))

    def _choose(self, place: fx.Node) -> None:
        if place not in self.places:
            self.places.append(place)

    def _is_layer(self, node: fx.Node) -> bool:
        """Whether its weight is integers that kernels take, and its input may be."""
        if node.op != "call_function" or node.target not in _ROUNDING_CONVOLUTIONS | LINEAR:
            return False
        weight = node.args[1]
        if not isinstance(weight, fx.Node) or weight.target is not DEQUANTIZE or not _is_single(node.args[0]):
            return False
        grids = [self._graph.grids.of(argument) for argument in (weight, node.args[0])]
        return grids[0] is not None and all(grid is None or bits_of(grid) <= 8 for grid in grids)

    def _is_join(self, node: fx.Node) -> bool:
        """Whether it computes between integers, and only they read it."""
        if node.target not in _JOINS or not _is_single(node) or self._is_rounded(node):
            return False
        if not self._joins_integers(node) or _is_followed_by_rounding(node):
            return False
        return all(u.target is FAKE_QUANTIZE or u.target in _JOINS or self._is_layer(u) for u in node.users)

    def _joins_integers(self, node: fx.Node) -> bool:
        parts = [part for part in node.all_input_nodes if isinstance(part.meta.get("val"), Tensor)]
        return bool(parts) and all(self._is_rounded(part) for part in parts)

    def _takes_integers(self, user: fx.Node) -> bool:
        if user.target in MOVING or user.target in PADDING or self._is_layer(user):
            return True
        return user.target in _JOINS and self._joins_integers(user)

    def _is_rounded(self, node: Any) -> bool:
        """Whether its values lie on a grid, or will."""
        if not isinstance(node, fx.Node):
            return False
        if node in self.places or self._graph.grids.of(node) is not None:
            return True
        moves = node.target in MOVING or node.target in PADDING or node.target is _aten.relu.default
        return moves and node.op == "call_function" and self._is_rounded(node.args[0])

    def _origin(self, node: Any) -> fx.Node | None:
        """Where the values were computed, reshapings and poolings back; None where no grid can be put."""
        while isinstance(node, fx.Node) and node.target in (MOVING - _CHOOSING) | PADDING:
            node = node.args[0]
        fits = isinstance(node, fx.Node) and node.op in ("call_function", "placeholder") and _is_single(node)
        return node if fits and node.target not in (FAKE_QUANTIZE, DEQUANTIZE) else None


def _is_followed_by_rounding(node: fx.Node) -> bool:
    if len(node.users) == 1 and _behind(node) is not node:
        node = _behind(node)
    return bool(node.users) and all(user.target is FAKE_QUANTIZE for user in node.users)


def _behind(node: fx.Node) -> fx.Node:
    """The clamp that is the only reader, which rounding does on the way; the node itself else."""
    users = list(node.users)
    return users[0] if len(users) == 1 and users[0].target in CLAMPS else node


def _is_single(node: Any) -> bool:
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    return isinstance(value, Tensor) and value.dtype == torch.float32
