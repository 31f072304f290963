"""Layers of an ONNX model with quantized weights: batch norms, biases, activations (layer 4)."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch

from distiller_ng.export._lowering import fit_weight
from distiller_ng.export._onnx_graph import OnnxGraph
from distiller_ng.export._weights import scaled_integers
from distiller_ng.ops.linear_quantization import QuantizationParameters

__all__ = ["fold_norms", "join_bias", "store_biases", "unsigned_activations"]

_LAYERS = ("Conv", "Gemm")


def fold_norms(graph: OnnxGraph) -> None:
    """Batch norms behind a layer with a quantized weight go into its scales, signs and bias."""
    for norm in graph.nodes:
        if norm.op_type != "BatchNormalization" or any(name not in graph.constants for name in norm.input[1:5]):
            continue
        layer = graph.producers().get(norm.input[0])
        if layer is None or layer.op_type not in _LAYERS or len(graph.consumers(norm.input[0])) != 1:
            continue
        weight = _weight_of(graph, layer)
        bias = graph.constants.get(layer.input[2]) if len(layer.input) > 2 and layer.input[2] else None
        if weight is None or norm.input[0] in graph.outputs or (len(layer.input) > 2 and bias is None):
            continue
        gamma, beta, mean, variance = (graph.constants[name].astype(np.float64) for name in norm.input[1:5])
        factor = gamma / np.sqrt(variance + float(graph.attributes(norm).get("epsilon", 1e-5)))
        axis = _channel_axis(graph, layer)
        if weight[1].axis not in (None, axis):
            continue
        integers, grid = scaled_integers(*weight, torch.from_numpy(factor), axis)[0]
        own = np.zeros_like(mean) if bias is None else bias.astype(np.float64)
        name = graph.add_constant(f"{norm.input[0]}_bias", ((own - mean) * factor + beta).astype(np.float32))
        _set_weight(graph, layer, integers, grid)
        del layer.input[2:]
        layer.input.append(name)
        graph.remove([norm])
        layer.output[0] = norm.output[0]


def join_bias(graph: OnnxGraph) -> None:
    """MatMul with a quantized matrix, then Add of a bias: one Gemm, if the input has two dimensions."""
    inferred = graph.onnx.shape_inference.infer_shapes(graph.model).graph
    known = [*inferred.value_info, *inferred.input, *inferred.output]
    ranks = {one.name: len(one.type.tensor_type.shape.dim) for one in known if one.type.tensor_type.HasField("shape")}
    for node in graph.nodes:
        if node.op_type != "MatMul" or ranks.get(node.input[0]) != 2 or _weight_of(graph, node) is None:
            continue
        users = graph.consumers(node.output[0])
        if len(users) != 1 or users[0].op_type != "Add" or node.output[0] in graph.outputs:
            continue
        bias = next((name for name in users[0].input if name != node.output[0]), "")
        if bias not in graph.constants or graph.constants[bias].ndim != 1:
            continue
        integers, grid = _weight_of(graph, node) or (None, None)
        if integers is None or grid is None:
            continue
        turned = dataclasses.replace(grid, axis=None if grid.axis is None else 1 - grid.axis)
        _set_weight(graph, node, integers.T.contiguous(), turned)
        graph.add_node(node, "Gemm", [*node.input, bias], users[0].output[0], transB=1)
        graph.remove([node, users[0]])


def store_biases(graph: OnnxGraph) -> None:
    """Biases of layers between two roundings become int32."""
    for layer in graph.nodes:
        if layer.op_type not in _LAYERS or len(layer.input) < 3 or layer.input[2] not in graph.constants:
            continue
        users = graph.consumers(layer.output[0])
        if layer.op_type == "Conv" and not (
            users and all(user.op_type in ("QuantizeLinear", "Relu") for user in users)
        ):
            continue  # computes in floating point, where the bias is better left there
        source, weight = graph.producers().get(layer.input[0]), _weight_of(graph, layer)
        step = None if source is None else graph.constants.get(_input(source, 1))
        if source is None or source.op_type != "DequantizeLinear" or step is None or step.size != 1 or weight is None:
            continue
        if weight[1].zero_point.dtype not in (torch.int8, torch.uint8) or weight[1].axis not in (None, 0):
            continue
        settings = graph.attributes(layer)
        if layer.op_type == "Gemm" and (
            not settings.get("transB", 0) or {settings.get("alpha", 1.0), settings.get("beta", 1.0)} != {1.0}
        ):
            continue
        _store_bias(graph, layer, weight, float(step.reshape(())))


def _store_bias(graph: OnnxGraph, layer: Any, weight: tuple[torch.Tensor, QuantizationParameters], step: float) -> None:
    values = graph.constants[layer.input[2]].reshape(-1).astype(np.float64)
    integers, grid = fit_weight(*weight, torch.from_numpy(values), step, 127)
    if integers is not weight[0]:
        _set_weight(graph, layer, integers, grid)
    product = np.float32(step) * grid.scale.numpy().reshape(-1).astype(np.float32)
    rounded = np.rint(values / product.astype(np.float64)).astype(np.int32)
    along = {"axis": 0} if product.size > 1 else {}
    names = [
        graph.add_constant(f"{layer.input[2]}_int32", rounded),
        graph.add_constant(f"{layer.input[2]}_scale", product if along else product.reshape(())),
    ]
    graph.add_node(layer, "DequantizeLinear", names, f"{names[0]}_bias", **along)
    layer.input[2] = f"{names[0]}_bias"


def unsigned_activations(graph: OnnxGraph) -> None:
    """Activations of int8 become uint8, the zero point moved by 128."""
    for node in graph.nodes:
        if node.op_type != "QuantizeLinear" or len(node.input) < 3 or node.input[0] in graph.constants:
            continue
        zero, users = graph.constants.get(node.input[2]), graph.consumers(node.output[0])
        if zero is None or zero.dtype != np.int8 or zero.size != 1 or node.output[0] in graph.outputs:
            continue
        if not all(user.op_type == "DequantizeLinear" and _input(user, 2) in graph.constants for user in users):
            continue
        name = graph.add_constant(f"{node.input[2]}_unsigned", (zero.astype(np.int16) + 128).astype(np.uint8))
        for one in (node, *users):
            one.input[2] = name


def _weight_of(graph: OnnxGraph, layer: Any) -> tuple[torch.Tensor, QuantizationParameters] | None:
    """Integers and grid of a layer's weight."""
    source = graph.producers().get(layer.input[1])
    if source is None or source.op_type != "DequantizeLinear":
        return None
    integers, scale = (graph.constants.get(_input(source, place)) for place in (0, 1))
    if integers is None or scale is None or integers.dtype not in (np.int8, np.uint8):
        return None
    zero = graph.constants.get(_input(source, 2))
    zero = np.zeros(scale.shape, integers.dtype) if zero is None else zero
    axis = int(graph.attributes(source).get("axis", 1)) % integers.ndim if scale.size > 1 else None
    limits = np.iinfo(integers.dtype)
    step, offset = (torch.from_numpy(np.array(one)) for one in (scale, zero))
    grid = QuantizationParameters(step, offset, int(limits.min), int(limits.max), axis)
    return torch.from_numpy(np.array(integers)), grid


def _set_weight(graph: OnnxGraph, layer: Any, integers: torch.Tensor, grid: QuantizationParameters) -> None:
    name = layer.input[1]
    shape = (-1,) if grid.axis is not None else ()
    inputs = [
        graph.add_constant(f"{name}_integers", integers.numpy()),
        graph.add_constant(f"{name}_scale", grid.scale.numpy().reshape(shape)),
        graph.add_constant(f"{name}_zero_point", grid.zero_point.numpy().reshape(shape)),
    ]
    along = {} if grid.axis is None else {"axis": grid.axis}
    graph.add_node(layer, "DequantizeLinear", inputs, f"{inputs[0]}_value", **along)
    layer.input[1] = f"{inputs[0]}_value"


def _channel_axis(graph: OnnxGraph, layer: Any) -> int:
    return 0 if layer.op_type == "Conv" or graph.attributes(layer).get("transB", 0) else 1


def _input(node: Any, place: int) -> str:
    return str(node.input[place]) if len(node.input) > place else ""
