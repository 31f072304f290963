"""Whether an int8 kernel pays off on this machine: one operator timed in ONNX Runtime, if it is installed (layer 4)."""

from __future__ import annotations

import statistics
import time
from typing import Any

import numpy as np
from torch import nn

from distiller_ng.export._onnx_float_layers import keep_float_layers_

__all__ = ["integer_depthwise_is_faster"]

_ROUNDS, _REPEATS = 7, 3


def integer_depthwise_is_faster(layer: nn.Conv2d, shape: tuple[int, ...]) -> bool | None:
    """Whether a depthwise convolution between int8 layers runs faster as one; None where nothing can be measured.

    ``shape``: ``(C, H, W)`` of the input. Both variants read and write uint8; that in floating point converts on the
    way in and out.
    """
    try:
        import onnx
        import onnxruntime
    except ImportError:
        return None
    sessions = []
    for as_integers in (True, False):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        model = _model(onnx, layer, shape, as_integers).SerializeToString()
        sessions.append(onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"]))
    x = np.random.default_rng(0).integers(0, 255, (1, *shape)).astype(np.uint8)
    times: list[list[float]] = [[], []]
    for number in range(_ROUNDS + 1):
        for which, session in enumerate(sessions):
            start = time.process_time()
            for _ in range(_REPEATS):
                session.run(None, {"x": x})
            if number:
                times[which].append(time.process_time() - start)
    return statistics.median(times[0]) < statistics.median(times[1])


def _model(onnx: Any, layer: nn.Conv2d, shape: tuple[int, ...], as_integers: bool) -> Any:
    helper, numpy_helper, types = onnx.helper, onnx.numpy_helper, onnx.TensorProto
    channels = layer.weight.shape[0]
    rng = np.random.default_rng(0)
    constants = {"s": np.float32(0.02), "z": np.uint8(128), "b": np.zeros(channels, np.float32)}
    nodes = [helper.make_node("DequantizeLinear", ["x", "s", "z"], ["xf"])]
    if as_integers:
        constants["w"] = rng.integers(-127, 127, tuple(layer.weight.shape)).astype(np.int8)
        constants["ws"] = np.full(channels, 0.01, np.float32)
        constants["wz"] = np.zeros(channels, np.int8)
        nodes.append(helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wf"], axis=0))
    else:
        constants["wf"] = rng.normal(size=tuple(layer.weight.shape)).astype(np.float32)
    pads = [(kernel - 1) * dilation // 2 for kernel, dilation in zip(layer.kernel_size, layer.dilation, strict=True)]
    settings: dict[str, Any] = {
        "group": int(layer.groups),
        "strides": list(layer.stride),
        "dilations": list(layer.dilation),
        "pads": pads * 2,
    }
    nodes.append(helper.make_node("Conv", ["xf", "wf", "b"], ["yf"], **settings))
    nodes.append(helper.make_node("QuantizeLinear", ["yf", "s", "z"], ["y"]))
    graph = helper.make_graph(
        nodes,
        "depthwise",
        [helper.make_tensor_value_info("x", types.UINT8, [1, *shape])],
        [helper.make_tensor_value_info("y", types.UINT8, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    keep_float_layers_(model)  # as it is written in exported files
    return model
