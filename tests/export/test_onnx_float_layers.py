"""Float layers between quantized ones stay float in ONNX Runtime."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from distiller_ng.export._onnx_float_layers import keep_float_layers_


def depthwise(weight):
    constants = {"s": np.float32(0.02), "z": np.uint8(128), "w": weight, "t": np.float32(0.02)}
    nodes = [
        helper.make_node("DequantizeLinear", ["x", "s", "z"], ["a"]),
        helper.make_node("Conv", ["a", "w"], ["b"], group=2),
        helper.make_node("QuantizeLinear", ["b", "t", "z"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, [1, 2, 3, 3])],
        [helper.make_tensor_value_info("y", TensorProto.UINT8, [1, 2, 1, 1])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_a_weight_with_channels_of_different_size_survives():
    weight = np.stack([np.full((1, 3, 3), 1.0), np.full((1, 3, 3), 0.001)]).astype(np.float32)
    weight[1, 0, 1, 1] = 1.0 / 300  # less than half a step of one scale for both
    model = depthwise(weight)
    assert keep_float_layers_(model) == 1
    onnx.checker.check_model(model)
    x = np.full((1, 2, 3, 3), 255, np.uint8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {"x": x})
    expected = 127 * 0.02 * weight.reshape(2, -1).sum(axis=1) / 0.02 + 128
    assert y.reshape(-1).tolist() == pytest.approx(np.clip(np.round(expected), 0, 255).tolist())


def test_quantized_weights_are_left_alone():
    model = depthwise(np.ones((2, 1, 3, 3), np.float32))
    del model.graph.initializer[2]
    model.graph.initializer.append(numpy_helper.from_array(np.ones((2, 1, 3, 3), np.int8), "wq"))
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(0, np.int8), "wz"))
    model.graph.node.insert(0, helper.make_node("DequantizeLinear", ["wq", "s", "wz"], ["w"]))
    before = model.SerializeToString()
    assert keep_float_layers_(model) == 0 and model.SerializeToString() == before
