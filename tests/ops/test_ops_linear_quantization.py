"""Step-size quantization against float64 references, on every axis and mode."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distiller_ng.errors import ArgumentError
from distiller_ng.ops.linear_quantization import (
    LinearQuantMode,
    QuantizationParameters,
    along_axis,
    axis_min_max,
    check_range,
    dequantize,
    quantize,
    quantized_range,
    scale_and_zero_point,
    storage_dtype,
)

MODES = list(LinearQuantMode)
WEIGHT = torch.randn(3, 4, 2, 5, generator=torch.Generator().manual_seed(3))


def reference(values, bits, mode):
    """Quantize and dequantize in float64 numpy, written from the definition."""
    values = values.double().numpy()
    if mode.is_symmetric:
        half = (2**bits - 1) / 2 if mode is LinearQuantMode.SYMMETRIC else 2 ** (bits - 1) - 1
        step, zero_point = np.abs(values).max() / half, 0
    else:
        low, high = min(values.min(), 0), max(values.max(), 0)
        step = (high - low) / (2**bits - 1)
        zero_point = (-(2 ** (bits - 1)) if mode.is_signed else 0) - round(low / step)
    low_q, high_q = quantized_range(bits, mode)
    integers = np.clip(np.round(values / step) + zero_point, low_q, high_q)
    return integers, (integers - zero_point) * step


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("bits", [2, 4, 8, 12, 16])
def test_against_the_definition(bits, mode):
    params = QuantizationParameters.of_tensor(WEIGHT, bits, mode)
    integers, values = reference(WEIGHT, bits, mode)
    found = quantize(WEIGHT, params)
    assert found.dtype == storage_dtype(bits, mode)
    # float32 division may fall on the other side of a tie
    assert np.abs(found.to(torch.int64).numpy() - integers).max() <= (1 if bits > 12 else 0)
    np.testing.assert_allclose(dequantize(found, params).numpy(), values, atol=2e-4 if bits > 12 else 1e-5)


@pytest.mark.parametrize("axis", [0, 1, 2, 3, -1])
@pytest.mark.parametrize("mode", MODES)
def test_each_slice_of_an_axis_is_a_tensor_of_its_own(axis, mode):
    params = QuantizationParameters.of_tensor(WEIGHT, 4, mode, axis=axis)
    found = dequantize(quantize(WEIGHT, params), params)
    assert params.axis == axis % 4 and params.scale.shape == (WEIGHT.shape[axis],)
    for index in range(WEIGHT.shape[axis]):
        part = WEIGHT.select(axis, index)
        alone = QuantizationParameters.of_tensor(part, 4, mode)
        assert torch.equal(found.select(axis, index), dequantize(quantize(part, alone), alone))


@pytest.mark.parametrize(
    ("bits", "mode", "expected"),
    [
        (8, LinearQuantMode.SYMMETRIC, torch.int8),
        (4, LinearQuantMode.ASYMMETRIC_UNSIGNED, torch.uint8),
        (9, LinearQuantMode.ASYMMETRIC_UNSIGNED, torch.uint16),
        (16, LinearQuantMode.ASYMMETRIC_SIGNED, torch.int16),
        (32, LinearQuantMode.SYMMETRIC, torch.int32),
    ],
)
def test_storage(bits, mode, expected):
    assert storage_dtype(bits, mode) == expected


@pytest.mark.parametrize(
    ("mode", "scale", "zero_point"),
    [
        (LinearQuantMode.SYMMETRIC, 10 / 127.5, 0),
        (LinearQuantMode.SYMMETRIC_RESTRICTED, 10 / 127, 0),
        (LinearQuantMode.ASYMMETRIC_UNSIGNED, 12 / 255, 42),
        (LinearQuantMode.ASYMMETRIC_SIGNED, 12 / 255, -86),
    ],
)
def test_table(mode, scale, zero_point):
    found = scale_and_zero_point(torch.tensor(-2.0), torch.tensor(10.0), 8, mode)
    assert found[0].item() == pytest.approx(scale) and found[1].item() == zero_point


@pytest.mark.parametrize("mode", MODES)
def test_zero_is_exact_and_flat_ranges_have_scale_one(mode):
    for low, high in ((0.0, 0.0), (5.0, 10.0), (-10.0, -5.0), (1e-45, 1e-45)):
        params = QuantizationParameters.of_range(low, high, 8, mode)
        zero = torch.zeros(1)
        assert dequantize(quantize(zero, params), params).item() == 0
    assert QuantizationParameters.of_range(0.0, 0.0, 8, mode).scale.item() == 1


@given(st.floats(-1e5, 1e5, width=32), st.floats(-1e5, 1e5, width=32), st.sampled_from(MODES), st.integers(2, 16))
def test_the_zero_point_is_in_range(first, second, mode, bits):
    params = QuantizationParameters.of_range(min(first, second), max(first, second), bits, mode)
    assert params.qmin <= int(params.zero_point) <= params.qmax
    assert torch.isfinite(params.scale) and params.scale > 0


@pytest.mark.parametrize("mode", MODES)
def test_scales_are_found_in_a_compiled_graph(mode):
    def both(low, high):
        return scale_and_zero_point(low, high, 8, mode)

    exported = torch.export.export(_Module(both), (torch.tensor(-1.0), torch.tensor(2.0)))
    for low, high in ((-1.0, 2.0), (0.0, 0.0), (-3.0, -1.0)):
        arguments = torch.tensor(low), torch.tensor(high)
        assert all(map(torch.equal, exported.module()(*arguments), both(*arguments)))


class _Module(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *arguments):
        return self.function(*arguments)


def test_low_precision_tensors_get_float32_scales():
    values = WEIGHT.to(torch.bfloat16)
    params = QuantizationParameters.of_tensor(values, 8, LinearQuantMode.SYMMETRIC)
    assert params.scale.dtype == torch.float32
    error = (dequantize(quantize(values, params), params) - values.float()).abs().max()
    assert error <= params.scale


@pytest.mark.parametrize(("low", "high"), [(1.0, 0.0), (float("nan"), 1.0), (0.0, float("inf"))])
def test_bad_ranges(low, high):
    with pytest.raises(ArgumentError):
        check_range(low, high)
    with pytest.raises(ArgumentError):
        QuantizationParameters.of_range(low, high, 8, LinearQuantMode.SYMMETRIC)


def test_bad_axis_and_empty():
    with pytest.raises(ArgumentError, match="axis 4"):
        QuantizationParameters.of_tensor(WEIGHT, 8, LinearQuantMode.SYMMETRIC, axis=4)
    with pytest.raises(ArgumentError, match="empty"):
        axis_min_max(torch.zeros(0))


def test_inputs_stay_as_they_were():
    vector = torch.tensor([-3.0, 2.0])
    low, high = axis_min_max(vector, 0)
    low.abs_(), high.abs_()
    assert vector.tolist() == [-3.0, 2.0]
    assert along_axis(torch.ones(2), 3, 1).shape == (1, 2, 1)
