"""Parameters and tensors converted to PyTorch quantize as PyTorch itself does."""

import pytest
import torch

from distiller_ng.errors import ArgumentError
from distiller_ng.quantization import q_utils as qu
from distiller_ng.quantization.pytorch_quant_conversion import (
    distiller_qparams_to_pytorch,
    distiller_quantized_tensor_to_pytorch,
    need_reduce_range,
)

MODES = list(qu.LinearQuantMode)
TENSOR = (
    torch.randn(6, 5, 3, 3, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.2, 2, 6).reshape(6, 1, 1, 1)
    + 0.1
)
DTYPES = [torch.qint8, torch.quint8]


def parameters(bits, mode, per_channel, tensor=TENSOR):
    """Scale and zero point in Distiller's convention; channels in dimension 0."""
    dim = 0 if per_channel else None
    if qu.is_linear_quant_mode_symmetric(mode):
        restricted = mode is qu.LinearQuantMode.SYMMETRIC_RESTRICTED
        found = qu.symmetric_linear_quantization_params(bits, qu.get_tensor_max_abs(tensor, dim), restricted)
    else:
        signed = mode is qu.LinearQuantMode.ASYMMETRIC_SIGNED
        found = qu.asymmetric_linear_quantization_params(bits, *qu.get_tensor_min_max(tensor, dim), signed=signed)
    return [value.reshape(-1, 1, 1, 1) if per_channel else value for value in found]


def integers(bits, mode, scale, zero_point, tensor=TENSOR):
    signed = mode is not qu.LinearQuantMode.ASYMMETRIC_UNSIGNED
    restricted = mode is qu.LinearQuantMode.SYMMETRIC_RESTRICTED
    return qu.linear_quantize_clamp(tensor, scale, zero_point, *qu.get_quantized_range(bits, signed, restricted))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("reduce_range", [False, True])
def test_parameters(mode, dtype, per_channel, reduce_range):
    scale, zero_point = parameters(8, mode, per_channel)
    torch_scale, torch_zero = distiller_qparams_to_pytorch(scale, zero_point, 8, mode, dtype, reduce_range)
    assert torch_zero.dtype == torch.int64 and torch_scale.shape == torch_zero.shape == ((6,) if per_channel else ())
    reduced = reduce_range and not (qu.is_linear_quant_mode_symmetric(mode) and dtype == torch.quint8)
    bits = 7 if reduced else 8
    scale, zero_point = parameters(bits, mode, per_channel)
    expected = qu.linear_dequantize(integers(bits, mode, scale, zero_point), scale, zero_point)
    if per_channel:
        found = torch.quantize_per_channel(TENSOR, torch_scale, torch_zero, 0, dtype).dequantize()
    else:
        found = torch.quantize_per_tensor(TENSOR, torch_scale, torch_zero, dtype).dequantize()
    step = torch_scale.reshape(-1, 1, 1, 1) if per_channel else torch_scale
    assert ((found - expected).abs() <= step * 1.001 + 1e-5).all()  # one bin at most


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_tensors(mode, dtype, per_channel, bits):
    scale, zero_point = parameters(bits, mode, per_channel)
    quantized = integers(bits, mode, scale, zero_point)
    before = quantized.clone()
    found = distiller_quantized_tensor_to_pytorch(quantized, scale, zero_point, bits, mode, dtype, per_channel, 0)
    assert found.dtype == dtype and torch.equal(quantized, before)
    torch.testing.assert_close(found.dequantize(), qu.linear_dequantize(quantized, scale, zero_point))


@pytest.mark.parametrize("dim", [1, 2, -1])
def test_other_channel_dimensions(dim):
    mode = qu.LinearQuantMode.ASYMMETRIC_UNSIGNED
    moved = TENSOR.movedim(0, dim)
    scale, zero_point = parameters(8, mode, True)
    quantized = integers(8, mode, scale, zero_point)
    found = distiller_quantized_tensor_to_pytorch(
        quantized.movedim(0, dim), scale, zero_point, 8, mode, torch.qint8, True, dim
    )
    assert found.shape == moved.shape
    torch.testing.assert_close(found.dequantize().movedim(dim, 0), qu.linear_dequantize(quantized, scale, zero_point))


def test_known_values():
    unsigned = qu.LinearQuantMode.ASYMMETRIC_UNSIGNED
    scale, zero_point = distiller_qparams_to_pytorch(21.25, -42, 8, unsigned, torch.quint8)
    assert scale.item() == pytest.approx(12 / 255) and zero_point.item() == 42
    assert distiller_qparams_to_pytorch(21.25, -42.0, 8, unsigned, torch.qint8)[1].item() == -86
    signed = qu.LinearQuantMode.ASYMMETRIC_SIGNED
    assert distiller_qparams_to_pytorch(21.25, 86, 8, signed, torch.qint8)[1].item() == -86
    assert distiller_qparams_to_pytorch(21.25, 86, 8, signed, torch.quint8)[1].item() == 42
    symmetric = qu.LinearQuantMode.SYMMETRIC
    assert distiller_qparams_to_pytorch(31.875, 0, 8, symmetric, torch.quint8)[1].item() == 128
    scale, zero_point = distiller_qparams_to_pytorch(21.25, -42, 8, unsigned, torch.quint8, True)
    assert scale.item() == pytest.approx(12 / 127) and zero_point.item() == 21
    scale, _ = distiller_qparams_to_pytorch(31.75, 0, 8, symmetric, torch.qint8, True)
    assert scale.item() == pytest.approx(4 / 63)
    found = distiller_quantized_tensor_to_pytorch(torch.tensor([0.0, 255.0]), 21.25, -42, 8, unsigned, torch.quint8)
    assert found.dequantize().tolist() == pytest.approx([-42 / 21.25, 213 / 21.25])


def test_one_channel():
    mode = qu.LinearQuantMode.SYMMETRIC
    one = TENSOR[:1]
    scale, zero_point = parameters(8, mode, True, one)
    quantized = integers(8, mode, scale, zero_point, one)
    found = distiller_quantized_tensor_to_pytorch(quantized, scale, zero_point, 8, mode, torch.qint8, True, 0)
    torch.testing.assert_close(found.dequantize(), qu.linear_dequantize(quantized, scale, zero_point))


def test_reduced_ranges_belong_to_the_backend(monkeypatch):
    unsigned, symmetric = qu.LinearQuantMode.ASYMMETRIC_UNSIGNED, qu.LinearQuantMode.SYMMETRIC
    for engine, reduced in (("fbgemm", True), ("x86", True), ("qnnpack", False)):
        monkeypatch.setattr("torch.backends.quantized.engine", engine, raising=False)
        if torch.backends.quantized.engine != engine:
            continue
        assert need_reduce_range(unsigned, torch.quint8) is reduced
        assert need_reduce_range(symmetric, torch.qint8) is reduced
        assert need_reduce_range(symmetric, torch.quint8) is False


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dest_dtype": torch.qint32}, "qint8"),
        ({"dest_dtype": torch.int8}, "qint8"),
        ({"num_bits": 9}, "from 1 to 8"),
        ({"distiller_mode": "SYM"}, "mode"),
        ({"scale": 0.0}, "positive"),
        ({"scale": "1"}, "numbers"),
        ({"num_bits": 4, "reduce_range": True}, "4 bits"),
    ],
)
def test_refusals(change, message):
    mode = qu.LinearQuantMode.ASYMMETRIC_UNSIGNED
    arguments = {"scale": 2.0, "zp": 0, "num_bits": 8, "distiller_mode": mode, "dest_dtype": torch.quint8, **change}
    with pytest.raises(ArgumentError, match=message):
        distiller_qparams_to_pytorch(**arguments)


@pytest.mark.parametrize(
    ("tensor", "scale", "per_channel", "message"),
    [
        (torch.tensor([0.5]), 1.0, False, "no integers"),
        (torch.tensor([float("nan")]), 1.0, False, "no integers"),
        (torch.tensor([256.0]), 1.0, False, "do not fit"),
        (torch.zeros(2, 2), torch.ones(2), False, "1 value"),
        (torch.zeros(3, 2), torch.ones(2), True, "3 value"),
    ],
)
def test_tensor_refusals(tensor, scale, per_channel, message):
    mode = qu.LinearQuantMode.ASYMMETRIC_UNSIGNED
    zero_point = torch.zeros_like(scale) if isinstance(scale, torch.Tensor) else 0
    with pytest.raises(ArgumentError, match=message):
        distiller_quantized_tensor_to_pytorch(tensor, scale, zero_point, 8, mode, torch.quint8, per_channel)
