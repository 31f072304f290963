"""Fake-quantized ONNX files made elsewhere, made to run as integers."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from distiller_ng.errors import ArgumentError, ExportError
from distiller_ng.export.onnx_runtime import OnnxModule, kernels_of
from distiller_ng.export.qat_conversion import quantize_qat_export


def fake_quantized(opset=13, gamma=(1.5, -0.5, 1.0, 2.0), matmul=False, activations=np.uint8):
    """conv, batch norm, ReLU, mean, classifier: weights in floating point behind QuantizeLinear, as trainers export."""
    random = np.random.default_rng(0)
    zero = activations(128 if activations is np.uint8 else 0)
    tensors = {
        "w": random.normal(size=(4, 3, 3, 3)).astype(np.float32),
        "w_s": np.full(4, 0.02, np.float32),
        "w_z": np.zeros(4, np.int8),
        "gamma": np.array(gamma, np.float32),
        "beta": random.normal(size=4).astype(np.float32),
        "mean": random.normal(size=4).astype(np.float32),
        "var": np.ones(4, np.float32),
        "v": random.normal(size=(5, 4)).astype(np.float32),
        "v_s": np.float32(0.02),
        "v_z": np.int8(0),
        "v_b": random.normal(size=5).astype(np.float32),
    }
    nodes = []

    def rounded(name, scale, z):
        tensors[f"{name}_s"], tensors[f"{name}_z"] = np.float32(scale), z
        nodes.append(helper.make_node("QuantizeLinear", [name, f"{name}_s", f"{name}_z"], [f"{name}_i"]))
        nodes.append(helper.make_node("DequantizeLinear", [f"{name}_i", f"{name}_s", f"{name}_z"], [f"{name}_q"]))
        return f"{name}_q"

    x = rounded("x", 0.03, zero)
    nodes.append(helper.make_node("QuantizeLinear", ["w", "w_s", "w_z"], ["w_i"], axis=0))
    nodes.append(helper.make_node("DequantizeLinear", ["w_i", "w_s", "w_z"], ["w_q"], axis=0))
    nodes.append(helper.make_node("Conv", [x, "w_q"], ["c"]))
    nodes.append(helper.make_node("BatchNormalization", ["c", "gamma", "beta", "mean", "var"], ["n"]))
    nodes.append(helper.make_node("Relu", ["n"], ["r"]))
    nodes.append(helper.make_node("ReduceMean", [rounded("r", 0.1, np.uint8(0))], ["m"], axes=[2, 3], keepdims=0))
    m = rounded("m", 0.05, zero)
    nodes.append(helper.make_node("QuantizeLinear", ["v", "v_s", "v_z"], ["v_i"]))
    nodes.append(helper.make_node("DequantizeLinear", ["v_i", "v_s", "v_z"], ["v_q"]))
    if matmul:
        nodes.append(helper.make_node("Transpose", ["v_q"], ["v_t"], perm=[1, 0]))
        nodes.append(helper.make_node("MatMul", [m, "v_t"], ["p"]))
        nodes.append(helper.make_node("Add", ["v_b", "p"], ["y"]))
    else:
        nodes.append(helper.make_node("Gemm", [m, "v_q", "v_b"], ["y"], transB=1))
    rounded("y", 0.1, zero)
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("y_q", TensorProto.FLOAT, ["n", 5])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in tensors.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


@pytest.mark.parametrize("matmul", [False, True])
@pytest.mark.parametrize("activations", [np.uint8, np.int8])
def test_the_result_runs_as_integers_and_computes_the_same(tmp_path, matmul, activations):
    onnx.save(fake_quantized(matmul=matmul, activations=activations), tmp_path / "qat.onnx")
    made = quantize_qat_export(tmp_path / "qat.onnx", tmp_path / "int8.onnx")
    x = torch.randn(16, 3, 8, 8)
    before, after = OnnxModule(tmp_path / "qat.onnx"), OnnxModule(tmp_path / "int8.onnx")
    assert (before(x) - after(x)).abs().max() <= 0.1001  # a step of the output
    assert (before(x) != after(x)).float().mean() < 0.05
    kernels = kernels_of(after.content)
    assert kernels["QLinearConv"] == 1 and kernels["QGemm"] == 1 and "BatchNormalization" not in kernels
    assert made.SerializeToString() == after.content
    weights = {one.data_type for one in made.graph.initializer if len(one.dims) > 1}
    assert weights == {TensorProto.INT8}


def test_the_sign_of_a_batch_norm_goes_into_the_integers():
    model = fake_quantized()
    plain = np.clip(np.rint(numpy_helper.to_array(model.graph.initializer[0]) / np.float32(0.02)), -128, 127)
    made = quantize_qat_export(model, inplace=False)
    stored = {one.name: numpy_helper.to_array(one) for one in made.graph.initializer}
    weight = next(value for value in stored.values() if value.shape == (4, 3, 3, 3))
    assert np.array_equal(weight[[0, 2, 3]], plain[[0, 2, 3]])
    assert np.array_equal(weight[1], np.clip(-plain[1], -128, 127))


def test_in_place_or_not():
    model = fake_quantized()
    before = model.SerializeToString()
    assert quantize_qat_export(model, inplace=False) is not model and model.SerializeToString() == before
    assert quantize_qat_export(model) is model and model.SerializeToString() != before


def test_signed_activations_may_stay():
    made = quantize_qat_export(fake_quantized(activations=np.int8), preset="as_trained")
    zeros = {one.name: one.data_type for one in made.graph.initializer}
    assert all(
        zeros[node.input[2]] in (TensorProto.INT8, TensorProto.UINT8)
        for node in made.graph.node
        if node.op_type == "QuantizeLinear"
    )
    assert TensorProto.INT8 in {zeros[node.input[2]] for node in made.graph.node if node.op_type == "QuantizeLinear"}


def test_wrong_input_is_refused(tmp_path):
    with pytest.raises(ArgumentError, match=r"path or an onnx.ModelProto, got int"):
        quantize_qat_export(3)
    with pytest.raises(FileNotFoundError):
        quantize_qat_export(tmp_path / "missing.onnx")
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(ExportError, match="no ONNX model"):
        quantize_qat_export(tmp_path / "text.onnx", tmp_path / "out.onnx")
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    plain = helper.make_model(helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y]))
    with pytest.raises(ExportError, match="has no QuantizeLinear"):
        quantize_qat_export(plain)
    with pytest.raises(ArgumentError, match="unknown preset 'arm'"):
        quantize_qat_export(plain, preset="arm")
    assert not (tmp_path / "out.onnx").exists()
