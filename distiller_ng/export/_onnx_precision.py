"""Which layers of a graph get integer kernels in ONNX Runtime (layer 4)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TypeAlias

from torch import fx

from distiller_ng.export._dequantize import FAKE_QUANTIZE
from distiller_ng.export._weights import CONVOLUTIONS, TRANSPOSED
from distiller_ng.export.quantized_graph import QuantizedGraph, layer_nodes
from distiller_ng.quantization.exporters import LayerPrecision

__all__ = ["onnx_layers", "openvino_layers"]

_Reason: TypeAlias = Callable[[QuantizedGraph, fx.Node], str]


def onnx_layers(graph: QuantizedGraph) -> tuple[LayerPrecision, ...]:
    """The layers, with the reasons ONNX Runtime itself adds to those of the model."""
    return _with_reasons(graph, _onnx_reason)


def openvino_layers(graph: QuantizedGraph) -> tuple[LayerPrecision, ...]:
    """The layers, with the reasons OpenVINO itself adds to those of the model."""
    return _with_reasons(graph, _openvino_reason)


def _with_reasons(
    graph: QuantizedGraph, reason: Callable[[QuantizedGraph, fx.Node], str]
) -> tuple[LayerPrecision, ...]:
    nodes = [node for node, _ in layer_nodes(graph)]
    found: dict[tuple[str, str], LayerPrecision] = {}
    for node, layer in zip(nodes, graph.layers, strict=True):
        # Bits are those the model was quantized with, whatever the file stores.
        told = dataclasses.replace(layer, reason=layer.reason or reason(graph, node))
        key = (layer.name, layer.operator)
        if key not in found or (found[key].is_quantized and told.reason):  # of several calls the worst
            found[key] = told
    return tuple(found.values())


def _onnx_reason(graph: QuantizedGraph, node: fx.Node) -> str:
    if node.target in TRANSPOSED:
        return "ONNX Runtime has no integer kernel for transposed convolutions"
    if node.target in CONVOLUTIONS and not all(user.target is FAKE_QUANTIZE for user in node.users):
        return "its output is not quantized, and ONNX Runtime's integer convolution rounds its output"
    return ""


def _openvino_reason(graph: QuantizedGraph, node: fx.Node) -> str:
    weight = graph.grids.of(node.args[1]) if node.target in CONVOLUTIONS else None
    if weight is not None and bool((weight.zero_point != weight.zero_point.reshape(-1)[0]).any()):
        return "its channels have different zero points, and OpenVINO's integer convolution takes one"
    return ""
