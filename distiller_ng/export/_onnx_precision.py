"""Which layers of a graph get integer kernels in ONNX Runtime (layer 4)."""

from __future__ import annotations

import dataclasses

from torch import fx

from distiller_ng.export._dequantize import DEQUANTIZE, FAKE_QUANTIZE
from distiller_ng.export._weights import CONVOLUTIONS, TRANSPOSED
from distiller_ng.export.quantized_graph import QuantizedGraph, layer_nodes
from distiller_ng.quantization.exporters import LayerPrecision

__all__ = ["onnx_layers"]


def onnx_layers(graph: QuantizedGraph) -> tuple[LayerPrecision, ...]:
    """The layers, with the reasons ONNX Runtime itself adds to those of the model."""
    return tuple(
        dataclasses.replace(layer, reason=layer.reason or _reason(graph, node)) for node, layer in layer_nodes(graph)
    )


def _reason(graph: QuantizedGraph, node: fx.Node) -> str:
    if node.target not in CONVOLUTIONS:
        return ""
    if node.target in TRANSPOSED:
        return "ONNX Runtime has no integer kernel for transposed convolutions"
    if not all(user.target is FAKE_QUANTIZE for user in node.users):
        return "its output is not quantized, and ONNX Runtime's integer convolution rounds its output"
    weight = node.args[1]
    grid = graph.grids.of(weight) if isinstance(weight, fx.Node) and weight.target is DEQUANTIZE else None
    if grid is not None and bool((grid.zero_point != grid.zero_point.reshape(-1)[0]).any()):
        return "its channels have different zero points, and ONNX Runtime's integer convolution takes one"
    return ""
