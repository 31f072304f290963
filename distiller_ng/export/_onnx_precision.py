"""Which layers of a graph get integer kernels in ONNX Runtime (layer 4)."""

from __future__ import annotations

import dataclasses

from torch import fx

from distiller_ng.export._dequantize import FAKE_QUANTIZE
from distiller_ng.export._weights import CONVOLUTIONS, TRANSPOSED
from distiller_ng.export.quantized_graph import QuantizedGraph, layer_nodes
from distiller_ng.quantization.exporters import LayerPrecision

__all__ = ["onnx_layers"]


def onnx_layers(graph: QuantizedGraph) -> tuple[LayerPrecision, ...]:
    """The layers, with the reasons ONNX Runtime itself adds to those of the model."""
    nodes = [node for node, _ in layer_nodes(graph)]
    # Bits are those the model was quantized with, whatever the file stores.
    return tuple(
        dataclasses.replace(layer, reason=layer.reason or _reason(node))
        for node, layer in zip(nodes, graph.layers, strict=True)
    )


def _reason(node: fx.Node) -> str:
    if node.target not in CONVOLUTIONS:
        return ""
    if node.target in TRANSPOSED:
        return "ONNX Runtime has no integer kernel for transposed convolutions"
    if not all(user.target is FAKE_QUANTIZE for user in node.users):
        return "its output is not quantized, and ONNX Runtime's integer convolution rounds its output"
    return ""
