"""Weight quantization functions against float64 numpy written from the papers."""

import types

import numpy as np
import pytest
import torch

from distiller_ng.errors import ArgumentError
from distiller_ng.ops.fake_quantize import fake_quantize_with
from distiller_ng.quantization.q_utils import LinearQuantMode
from distiller_ng.quantization.weight_functions import (
    dorefa_quantize_param,
    dorefa_weight_parameters,
    linear_quantize_param,
    linear_weight_parameters,
    lsq_initial_step,
    lsq_quantize_param,
    wrpn_quantize_param,
    wrpn_weight_parameters,
    xnor_initial_scale,
    xnor_quantize_param,
    xnor_weight_parameters,
)

MODES = list(LinearQuantMode)
WEIGHT = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(0)) * 0.7


def quantized(function, *arguments, weight=WEIGHT, **options):
    """Output, gradient for a random output gradient, and that gradient; the parameter must not change."""
    parameter = torch.nn.Parameter(weight.clone())
    out = function(parameter, *arguments, **options)
    assert torch.equal(parameter.detach(), weight) and out.shape == weight.shape and out.dtype == weight.dtype
    grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)).to(weight.dtype)
    out.backward(grad)
    return out.detach(), parameter.grad, grad


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_dorefa(bits):
    out, grad, grad_out = quantized(dorefa_quantize_param, bits)
    values = WEIGHT.double().numpy()
    levels = 2**bits - 1
    unit = np.tanh(values) / (2 * np.abs(np.tanh(values)).max()) + 0.5
    np.testing.assert_allclose(out.numpy(), 2 * np.round(levels * unit) / levels - 1, atol=1e-6)
    leaf = WEIGHT.clone().requires_grad_()  # the gradient is that of the function without the rounding
    (torch.tanh(leaf) / torch.tanh(leaf).abs().max()).backward(grad_out)
    torch.testing.assert_close(grad, leaf.grad)


def test_dorefa_one_bit():
    weight = torch.tensor([-1.0, 0.2, 1.0, 0.0])
    out, grad, grad_out = quantized(dorefa_quantize_param, 1, weight=weight)
    assert out.tolist() == pytest.approx([-0.55, 0.55, 0.55, 0.55])
    assert torch.equal(grad, grad_out)


def test_dorefa_examples():
    weight = torch.tensor([-1.0, 0.2, 1.0])
    assert dorefa_quantize_param(weight, 2).tolist() == pytest.approx([-1, 1 / 3, 1])
    assert dorefa_quantize_param(weight, 1).tolist() == pytest.approx([-0.7333333, 0.7333333, 0.7333333])
    meta = types.SimpleNamespace(num_bits=2, module=None, module_name="conv")
    assert torch.equal(dorefa_quantize_param(weight, meta), dorefa_quantize_param(weight, 2))
    assert torch.isfinite(dorefa_quantize_param(torch.zeros(3), 4)).all()


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_wrpn(bits):
    weight = torch.cat([WEIGHT.reshape(-1), torch.tensor([1.0, -1.0, 5.0, -5.0])])
    out, grad, grad_out = quantized(wrpn_quantize_param, bits, weight=weight)
    steps = (2**bits - 1) / 2
    integers = np.round(weight.double().clamp(-1, 1).numpy() * steps)
    integers = np.clip(integers, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    np.testing.assert_allclose(out.numpy(), integers / steps, atol=1e-6)
    assert torch.equal(grad, grad_out * (weight.abs() <= 1))


def test_wrpn_refuses_one_bit():
    with pytest.raises(ArgumentError, match="DoReFa") as caught:
        wrpn_quantize_param(WEIGHT, 1)
    assert caught.value.argument == ("bits_weights",)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("axis", [None, 0, 1, -1])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_b3_linear_weights_are_in_the_mode_they_were_asked_for(mode, axis, bits):
    out, grad, grad_out = quantized(linear_quantize_param, bits, mode, axis=axis)
    assert torch.equal(grad, grad_out)
    params = linear_weight_parameters(WEIGHT, bits, mode, axis=axis)
    parts = (
        [(WEIGHT, out)]
        if axis is None
        else [(WEIGHT.select(axis, i), out.select(axis, i)) for i in range(WEIGHT.shape[axis])]
    )
    for index, (before, after) in enumerate(parts):
        scale = float(params.scale.reshape(-1)[index])
        zero_point = int(params.zero_point.reshape(-1)[index])
        values = before.double().numpy()
        if mode.is_symmetric:
            half = (2**bits - 1) / 2 if mode is LinearQuantMode.SYMMETRIC else 2 ** (bits - 1) - 1
            assert zero_point == 0 and scale == pytest.approx(np.abs(values).max() / half)
        else:
            low, high = min(values.min(), 0), max(values.max(), 0)
            assert scale == pytest.approx((high - low) / (2**bits - 1))
            assert zero_point == (-(2 ** (bits - 1)) if mode.is_signed else 0) - round(low / scale)
        places = values / scale
        if mode is LinearQuantMode.SYMMETRIC:  # the smallest value is a tie, 127.5 steps below 0, and goes to -128
            places = np.where(np.abs(places) > half - 1e-4, np.sign(places) * (half + 0.1), places)
        integers = np.clip(np.round(places) + zero_point, params.qmin, params.qmax)
        np.testing.assert_allclose(after.numpy(), (integers - zero_point) * scale, atol=1e-5)


def test_linear_refusals():
    with pytest.raises(ArgumentError, match="1 bit"):
        linear_quantize_param(WEIGHT, 1, LinearQuantMode.SYMMETRIC)
    with pytest.raises(ArgumentError, match="axis"):
        linear_quantize_param(WEIGHT, 8, LinearQuantMode.SYMMETRIC, axis=4)
    with pytest.raises(ArgumentError, match="bits"):
        linear_quantize_param(WEIGHT, 0, LinearQuantMode.SYMMETRIC)


@pytest.mark.parametrize("axis", [None, 0])
def test_lsq(axis):
    step = torch.nn.Parameter(lsq_initial_step(WEIGHT, 4, axis=axis))
    out, grad, grad_out = quantized(lsq_quantize_param, 4, step, axis=axis)
    width = step.detach().reshape(-1, 1, 1, 1)
    place = WEIGHT / width
    torch.testing.assert_close(out, torch.round(place.clamp(-8, 7)) * width)
    torch.testing.assert_close(grad, grad_out * ((place >= -8) & (place <= 7)))
    inside = (place >= -8) & (place <= 7)
    each = grad_out * torch.where(inside, torch.round(place) - place, place.clamp(-8, 7))
    total = each.sum().reshape(1) if axis is None else each.sum((1, 2, 3))
    count = WEIGHT.numel() // step.numel()
    torch.testing.assert_close(step.grad, total / (count * 7) ** 0.5, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(lsq_quantize_param(WEIGHT, 4, step, axis=axis, training=False), out)


def test_lsq_step_pushed_below_zero():
    step = torch.nn.Parameter(torch.tensor([-0.1]))
    assert torch.isfinite(lsq_quantize_param(WEIGHT, 4, step)).all()
    assert torch.isfinite(lsq_quantize_param(WEIGHT, 4, step, training=False)).all()


def test_xnor():
    weight = torch.tensor([-0.2, 0.0, 3.0, -1.0])
    out, grad, grad_out = quantized(xnor_quantize_param, weight=weight)
    assert out.tolist() == [-1, 1, 1, -1]
    assert torch.equal(grad, grad_out * torch.tensor([1.0, 1.0, 0.0, 1.0]))
    torch.testing.assert_close(xnor_initial_scale(WEIGHT), WEIGHT.abs().mean((1, 2, 3)))
    with pytest.raises(ArgumentError, match="1 bit"):
        xnor_quantize_param(weight, 2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtypes(dtype):
    weight = WEIGHT.to(dtype)
    for function, arguments in (
        (dorefa_quantize_param, (4,)),
        (dorefa_quantize_param, (1,)),
        (wrpn_quantize_param, (4,)),
        (linear_quantize_param, (8, LinearQuantMode.ASYMMETRIC_UNSIGNED)),
        (lsq_quantize_param, (4, torch.tensor([0.1]))),
        (xnor_quantize_param, (1,)),
    ):
        out, _, _ = quantized(function, *arguments, weight=weight)
        assert torch.isfinite(out).all()


@pytest.mark.parametrize(
    "function",
    [
        lambda w: dorefa_quantize_param(w, 4),
        lambda w: wrpn_quantize_param(w, 4),
        lambda w: linear_quantize_param(w, 4, LinearQuantMode.SYMMETRIC, axis=0),
        lambda w: lsq_quantize_param(w, 4, torch.tensor([0.1])),
        lambda w: xnor_quantize_param(w, 1),
    ],
)
def test_layouts(function):
    expected = function(WEIGHT)
    assert torch.equal(function(WEIGHT.to(memory_format=torch.channels_last)), expected)
    sliced = torch.cat([WEIGHT, WEIGHT], dim=1)[:, :3]
    assert torch.equal(function(sliced), expected)


@pytest.mark.parametrize("bits", [1, 2, 4, 7, 8])
def test_what_exporters_store_is_what_training_computed(bits):
    grids = [(dorefa_quantize_param(WEIGHT, bits), dorefa_weight_parameters(WEIGHT, bits))]
    if bits > 1:
        grids.append((wrpn_quantize_param(WEIGHT, bits), wrpn_weight_parameters(WEIGHT, bits)))
    else:
        grids.append((xnor_quantize_param(WEIGHT, bits), xnor_weight_parameters(WEIGHT)))
    for weight, params in grids:
        torch.testing.assert_close(fake_quantize_with(weight, params), weight, rtol=0, atol=1e-6)
        assert fake_quantize_with(torch.zeros(3), params).tolist() == [0, 0, 0]  # pruned weights
    assert grids[0][1].zero_point.dtype == (torch.int16 if bits == 8 else torch.int8)
