"""What OpenVINO needs to compute layers with integers, and which ones it then really computes so (layer 4)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from distiller_ng.export.openvino_runtime import OpenVinoModule
from distiller_ng.export.quantized_graph import QuantizedGraph, layer_nodes
from distiller_ng.ops.optional import require
from distiller_ng.quantization.exporters import LayerPrecision

__all__ = ["as_they_run", "without_shared_zero_points"]

_INTEGERS = ("u8", "i8", "u4", "i4")


def without_shared_zero_points(content: bytes) -> bytes:
    """An ONNX file whose weights have no zero points of zeros.

    ONNX keeps equal constants once. OpenVINO takes a zero point that several layers read for a computation of the
    graph's, subtracts it in floating point, and computes those layers in floating point, too.
    """
    onnx = require("onnx", "onnx", "exporting to OpenVINO")
    proto = onnx.load_from_string(content)
    constants = {one.name: one for one in proto.graph.initializer}
    for node in proto.graph.node:
        if node.op_type != "DequantizeLinear" or node.input[0] not in constants or len(node.input) < 3:
            continue
        zero_point = constants.get(node.input[2])
        if zero_point is not None and not onnx.numpy_helper.to_array(zero_point).any():
            del node.input[2]
    written: bytes = proto.SerializeToString()
    return written


def as_they_run(
    layers: Sequence[LayerPrecision], graph: QuantizedGraph, module: OpenVinoModule
) -> tuple[LayerPrecision, ...]:
    """``layers``; those that the compiled model computes in floating point, or inside another kernel, say so."""
    kernels = module.kernels_by_origin()
    reasons: dict[str, str] = {}
    for (node, _), layer in zip(layer_nodes(graph), graph.layers, strict=True):
        reason = _reason(
            kernels, f"node_{node.name}", is_product="mm" in str(node.target) or "matmul" in str(node.target)
        )
        if reason:
            reasons[layer.name] = reason
    return tuple(
        dataclasses.replace(one, reason=reasons[one.name]) if one.is_quantized and one.name in reasons else one
        for one in layers
    )


def _reason(kernels: Mapping[str, tuple[str, str]], origin: str, *, is_product: bool) -> str:
    kind, precision = kernels.get(origin, ("", ""))
    if precision in _INTEGERS:
        return ""
    if not precision and not is_product:
        return ""  # known under another name
    if not precision:
        return "OpenVINO fuses it with what surrounds it, and shows no integer kernel"
    return f"OpenVINO computes it in floating point here ({kind} {precision}), whatever the file says"
