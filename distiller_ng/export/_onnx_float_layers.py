"""Layers that stay in floating point next to quantized ones, kept so by ONNX Runtime too (layer 4).

Its optimizer (``WeightBiasQuantization``) quantizes the constant weight of a Conv, ConvTranspose or Gemm that reads a
DequantizeLinear, with one scale for the whole tensor. Whoever left a layer in floating point did so because that loses
too much: depthwise convolutions become noise. A Max with the lowest number between the two is nothing the pattern
knows, and changes no value.
"""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["keep_float_layers_"]

_OPERATORS = ("Conv", "ConvTranspose", "Gemm")
_LOWEST = "distiller_ng_lowest"


def keep_float_layers_(proto: Any) -> int:
    """Put a Max before every layer with a floating point weight whose input is dequantized, in a ``ModelProto``.

    Returns how many there were; 0 leaves the model as it is.
    """
    import onnx

    graph = proto.graph
    floats = {one.name for one in graph.initializer if one.data_type == onnx.TensorProto.FLOAT}
    dequantized = {name for node in graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    nodes: list[Any] = []
    count = 0
    for node in graph.node:
        is_layer = node.op_type in _OPERATORS and len(node.input) > 1
        if is_layer and node.input[1] in floats and node.input[0] in dequantized:
            made = f"{_LOWEST}_{count}"
            nodes.append(onnx.helper.make_node("Max", [node.input[0], _LOWEST], [made], name=f"{made}_max"))
            node.input[0] = made
            count += 1
        nodes.append(node)
    if count:
        kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del graph.node[:]
        graph.node.extend(kept)
        lowest = np.asarray(np.finfo(np.float32).min, dtype=np.float32)
        graph.initializer.append(onnx.numpy_helper.from_array(lowest, _LOWEST))
    return count
