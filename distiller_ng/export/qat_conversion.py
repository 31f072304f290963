"""Fake-quantized ONNX files made elsewhere become files that run as integers (layer 4).

Exporters of training frameworks write weights in floating point with QuantizeLinear and DequantizeLinear behind them,
and batch norms that are still there. ONNX Runtime computes with integers only where the weight is stored as integers
and the layer stands between two roundings.
"""

from __future__ import annotations

import copy
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distiller_ng.errors import ArgumentError, ExportError, did_you_mean
from distiller_ng.export._onnx_graph import OnnxGraph
from distiller_ng.export._onnx_layers import fold_norms, join_bias, store_biases, unsigned_activations
from distiller_ng.ops.files import replacing
from distiller_ng.ops.optional import require

__all__ = ["quantize_qat_export"]

_OLDEST = 13  # QuantizeLinear along an axis
_Array = NDArray[Any]
logger = logging.getLogger(__name__)


def quantize_qat_export(
    model: str | os.PathLike[str] | Any,
    output_file_path: str | os.PathLike[str] | None = None,
    inplace: bool = True,
    *,
    preset: str = "x86",
) -> Any:
    """An ONNX model with fake quantization as one that computes with integers; the ``ModelProto``.

    ``model``: a path or a ``ModelProto``, which is changed itself unless ``inplace`` is False.
    ``output_file_path``: where to write the result, in one step::

        quantize_qat_export("resnet_qat.onnx", "resnet_int8.onnx")

    - weights ``float -> QuantizeLinear (-> Clip) -> DequantizeLinear`` become integer initializers;
    - transpositions of weights are done; batch norms behind a layer go into its scales, signs and bias;
    - ``MatMul`` and ``Add`` of a bias become one ``Gemm`` where the input is two-dimensional;
    - biases of layers between two roundings become int32;
    - int8 activations become uint8 with the zero point moved by 128, which x86 computes fastest with
      (``preset="as_trained"`` leaves them).

    Everything else stays, and the result computes what the original does, up to rounding of biases. A convolution with
    8-bit weight 2 and a batch norm that multiplies by -3 gets the weight -2 and three times the scale.
    Raises :class:`ArgumentError` when ``model`` is neither, ``FileNotFoundError`` for a path that does not exist, and
    :class:`ExportError` for a file that is no ONNX model or has nothing quantized in it.
    """
    if preset not in ("x86", "as_trained"):
        raise ArgumentError(f"unknown preset {preset!r}. {did_you_mean(preset, ('x86', 'as_trained'))}")
    loaded = _loaded(model)
    proto = loaded if inplace and not isinstance(model, str | os.PathLike) else copy.deepcopy(loaded)
    graph = OnnxGraph(_of_opset(proto))
    if not any(node.op_type == "QuantizeLinear" for node in graph.nodes):
        raise ExportError("the model has no QuantizeLinear: it is not quantized. Export it with fake quantization on")
    stored = _store_weights(graph)
    _transpose_weights(graph)
    graph.clean()
    fold_norms(graph)
    join_bias(graph)
    store_biases(graph)
    if preset == "x86":
        unsigned_activations(graph)
    graph.clean()
    logger.info("%d tensors stored as integers", stored)
    graph.onnx.checker.check_model(graph.model)
    if graph.model is not proto:
        proto.CopyFrom(graph.model)
    if output_file_path is not None:
        with replacing(Path(output_file_path)) as file:
            file.write(proto.SerializeToString())
    return proto


def _loaded(model: Any) -> Any:
    onnx: Any = require("onnx", "onnx", "reading ONNX files")
    protobuf: Any = require("google.protobuf.message", "onnx", "reading ONNX files")
    if isinstance(model, onnx.ModelProto):
        return model
    if not isinstance(model, str | os.PathLike):
        message = f"model is a path or an onnx.ModelProto, got {type(model).__name__}"
        raise ArgumentError(message, argument=("model",))
    content = Path(model).read_bytes()
    try:
        loaded = onnx.load_from_string(content)
        onnx.checker.check_model(loaded)
    except (onnx.checker.ValidationError, protobuf.DecodeError, ValueError, TypeError) as error:
        raise ExportError(f"{model} is no ONNX model: {error}") from error
    return loaded


def _of_opset(proto: Any) -> Any:
    versions = [one.version for one in proto.opset_import if one.domain in ("", "ai.onnx")]
    if versions and versions[0] >= _OLDEST:
        return proto
    converter: Any = require("onnx.version_converter", "onnx", "reading ONNX files")
    return converter.convert_version(proto, _OLDEST)


def _store_weights(graph: OnnxGraph) -> int:
    """QuantizeLinear of a constant, and the Clip behind it, become integers."""
    stored = 0
    for node in graph.nodes:
        if node.op_type == "QuantizeLinear" and node.input[0] in graph.constants:
            scale = graph.constants.get(node.input[1])
            zero = graph.constants.get(node.input[2]) if len(node.input) > 2 else np.uint8(0)
            if scale is None or zero is None:
                continue
            values = graph.constants[node.input[0]]
            axis = int(graph.attributes(node).get("axis", 1)) % max(values.ndim, 1)
            _rename(graph, node, _rounded(values, np.asarray(scale), np.asarray(zero), axis))
            stored += 1
        elif node.op_type == "Clip" and node.input[0] in graph.constants:
            low, high = (graph.constants.get(name) for name in [*node.input[1:], "", ""][:2])
            values = graph.constants[node.input[0]]
            values = values if low is None else np.maximum(values, low)
            _rename(graph, node, values if high is None else np.minimum(values, high))
    return stored


def _rename(graph: OnnxGraph, node: Any, value: _Array) -> None:
    name = graph.add_constant(f"{node.input[0]}_integers", value)
    for user in graph.consumers(node.output[0]):
        graph.replace_input(user, node.output[0], name)
    graph.remove([node])


def _rounded(values: _Array, scale: _Array, zero: _Array, axis: int) -> _Array:
    limits = np.iinfo(zero.dtype)
    step, offset = (_along(one, values.ndim, axis) for one in (scale, zero.astype(np.int64)))
    steps = np.rint((values / step).astype(np.float32)).astype(np.float64) + offset
    return np.clip(steps, limits.min, limits.max).astype(zero.dtype)


def _along(values: _Array, dims: int, axis: int) -> _Array:
    if values.size == 1:
        return values.reshape(())
    shape = [1] * dims
    shape[axis] = -1
    return values.reshape(shape)


def _transpose_weights(graph: OnnxGraph) -> None:
    """``Transpose(DequantizeLinear(integers))`` becomes ``DequantizeLinear(integers transposed)``."""
    producers = graph.producers()
    for node in graph.nodes:
        source = producers.get(node.input[0]) if node.op_type == "Transpose" else None
        if source is None or source.op_type != "DequantizeLinear" or source.input[0] not in graph.constants:
            continue
        integers = graph.constants[source.input[0]]
        order = list(graph.attributes(node).get("perm", reversed(range(integers.ndim))))
        axis = order.index(int(graph.attributes(source).get("axis", 1)) % integers.ndim)
        name = graph.add_constant(f"{source.input[0]}_t", integers.transpose(order))
        inputs = [name, *source.input[1:]]
        graph.add_node(node, "DequantizeLinear", inputs, f"{node.output[0]}_weight", axis=axis)
        for user in graph.consumers(node.output[0]):
            graph.replace_input(user, node.output[0], f"{node.output[0]}_weight")
