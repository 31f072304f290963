"""Activation quantizers: values and gradients against the papers' formulas, state, export, odd input."""

import copy
import math

import pytest
import torch
from torch import nn

from distiller_ng.errors import ArgumentError
from distiller_ng.quantization.activations import (
    ClippedLinearQuantization,
    FakeLinearQuantization,
    FakeQuantizationWrapper,
    LearnedClippedLinearQuantization,
    LSQActivation,
    XnorActivation,
    XnorScale,
)
from distiller_ng.quantization.learned_step import lsq_initial_step, lsq_quantize
from distiller_ng.quantization.q_utils import LinearQuantMode

MODES = list(LinearQuantMode)
X = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0)) * 3


def run(module, x=X, grad=None):
    """Output and input gradient."""
    leaf = x.clone().requires_grad_()
    out = module(leaf)
    out.backward(torch.ones_like(out) if grad is None else grad)
    return out.detach(), leaf.grad


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("bits", "clip"), [(2, 1.0), (4, 1.0), (8, 6.0), (1, 2.0)])
def test_clipped(bits, clip, training):
    module = ClippedLinearQuantization(bits, clip).train(training)
    out, grad = run(module)
    levels = 2**bits - 1
    expected = torch.round(X.double().clamp(0, clip) * levels / clip) * clip / levels
    torch.testing.assert_close(out.double(), expected, atol=1e-6, rtol=0)
    if training:
        assert torch.equal(grad, ((X >= 0) & (clip >= X)).float())
    integers = ClippedLinearQuantization(bits, clip, dequantize=False)(X)
    torch.testing.assert_close(integers, torch.round(expected * levels / clip).float(), atol=1e-4, rtol=0)
    assert module.state_dict() == {}


def test_clipped_examples():
    assert ClippedLinearQuantization(2, 1)(torch.tensor([-0.5, 0.4, 0.9])).tolist() == pytest.approx([0, 1 / 3, 1])
    values = X.clone()
    ClippedLinearQuantization(4, 1.0)(values)
    assert torch.equal(values, X)
    ClippedLinearQuantization(4, 1.0, inplace=True)(values)
    assert torch.equal(values, X.clamp(0, 1))
    assert "clip_val=1" in repr(ClippedLinearQuantization(4, 1.0))


@pytest.mark.parametrize("make", [ClippedLinearQuantization, LearnedClippedLinearQuantization])
@pytest.mark.parametrize(("bits", "clip"), [(0, 1.0), (8, 0.0), (8, -1.0), (8, float("nan")), (4.0, 1.0)])
def test_clipped_refusals(make, bits, clip):
    with pytest.raises(ArgumentError):
        make(bits, clip)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_pact(bits):
    module = LearnedClippedLinearQuantization(bits, 2.0)
    grad_out = torch.randn(X.shape, generator=torch.Generator().manual_seed(1))
    out, grad = run(module, grad=grad_out)
    levels = 2**bits - 1
    expected = torch.round(X.double().clamp(0, 2) * levels / 2) * 2 / levels
    torch.testing.assert_close(out.double(), expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(grad, grad_out * ((X > 0) & (X < 2)))
    torch.testing.assert_close(module.clip_val.grad, grad_out[X >= 2].sum().reshape(1))
    assert torch.equal(module.eval()(X), out)
    assert list(module.state_dict()) == ["clip_val"] and module.clip_val.shape == (1,)


def test_pact_survives_a_clip_that_decayed_away():
    module = LearnedClippedLinearQuantization(4, 1.0)
    for value in (0.0, -0.5):
        module.clip_val.data.fill_(value)
        out, grad = run(module)
        assert torch.isfinite(out).all() and torch.isfinite(grad).all() and out.abs().max() <= 1e-6


def test_pact_in_low_precision():
    module = LearnedClippedLinearQuantization(4, 2.0)
    out, grad = run(module, X.bfloat16())
    assert out.dtype == grad.dtype == torch.bfloat16 and module.clip_val.grad.dtype == torch.float32
    torch.testing.assert_close(out.float(), module(X), atol=0.2, rtol=0)


def reference_ema(batches, decay):
    """Tracked minimum and maximum in Python floats."""
    low = high = 0.0
    for batch in batches:
        low, high = decay * low + (1 - decay) * batch.min().item(), decay * high + (1 - decay) * batch.max().item()
    correction = 1 - decay ** len(batches)
    return low / correction, high / correction


BATCHES = [X * factor + 0.5 for factor in (1.0, 3.0, 0.5)]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_b3_every_mode_is_what_it_says(mode, bits):
    module = FakeLinearQuantization(bits, mode, ema_decay=0.9)
    for batch in BATCHES:
        out = module(batch)
    low, high = reference_ema(BATCHES, 0.9)
    assert module.tracked_min.item() == pytest.approx(low, rel=1e-4)
    assert module.tracked_max.item() == pytest.approx(high, rel=1e-4)
    assert module.iter_count.item() == 3
    scale, zero_point = module.scale.item(), module.zero_point.item()
    if mode in (LinearQuantMode.SYMMETRIC, LinearQuantMode.SYMMETRIC_RESTRICTED):
        steps = (2**bits - 1) / 2 if mode is LinearQuantMode.SYMMETRIC else 2 ** (bits - 1) - 1
        assert zero_point == 0 and scale == pytest.approx(steps / max(-low, high), rel=1e-4)
        lowest = -(2 ** (bits - 1)) + (mode is LinearQuantMode.SYMMETRIC_RESTRICTED)
        highest = 2 ** (bits - 1) - 1
    else:
        assert scale == pytest.approx((2**bits - 1) / (high - low), rel=1e-4)
        offset = 2 ** (bits - 1) if mode is LinearQuantMode.ASYMMETRIC_SIGNED else 0
        assert zero_point == round(scale * low) + offset
        lowest, highest = -offset, 2**bits - 1 - offset
    integers = torch.round(BATCHES[-1] * scale - zero_point)
    assert torch.allclose(out, (integers.clamp(lowest, highest) + zero_point) / scale, atol=1e-5)
    assert len(out.unique()) <= 2**bits
    raw = FakeLinearQuantization(bits, mode, dequantize=False)(X)
    assert torch.equal(raw, raw.round()) and raw.min() >= lowest and raw.max() <= highest


def test_ema_example():
    module = FakeLinearQuantization(8, "ASYMMETRIC_UNSIGNED", ema_decay=0.5)
    module(torch.tensor([0.0, 1.0])), module(torch.tensor([0.0, 3.0]))
    assert module.tracked_max.item() == pytest.approx(7 / 3)
    assert module.tracked_max_biased.item() == pytest.approx(1.75)


def test_ema_updates_only_in_training_and_while_observing():
    module = FakeLinearQuantization(8, LinearQuantMode.ASYMMETRIC_UNSIGNED)
    module(X)
    state = copy.deepcopy(module.state_dict())
    module.eval()(X * 5)
    module.train()
    module.observing = False
    module(X * 5)
    for name, value in module.state_dict().items():
        assert torch.equal(value, state[name])
    module.observing = True
    module(X * 5)
    assert module.iter_count.item() == 2


def test_ema_passes_activations_until_it_saw_a_batch():
    module = FakeLinearQuantization(4).eval()
    assert torch.equal(module(X), X)
    module.train()
    assert torch.equal(module(X[:0]), X[:0]) and module.iter_count == 0
    assert not torch.equal(module(X), X)


def test_ema_leaves_out_batches_that_overflowed():
    module = FakeLinearQuantization(8, LinearQuantMode.ASYMMETRIC_SIGNED)
    overflowed = torch.cat([X.reshape(-1), torch.tensor([float("inf"), float("nan")])])
    assert not torch.isnan(module(overflowed)[:-1]).any() and module.iter_count == 0
    module(X)
    before = module.tracked_max.clone()
    module(overflowed)
    assert torch.equal(module.tracked_max, before) and module.iter_count == 1


def test_ema_gradient_is_masked_outside_the_range():
    module = FakeLinearQuantization(8, LinearQuantMode.SYMMETRIC)
    _, grad = run(module)
    assert torch.equal(grad, torch.ones_like(X))
    _, grad = run(module.eval(), X * 2)
    assert torch.equal(grad, ((X * 2).abs() <= module.tracked_max.abs().max(module.tracked_min.abs())).float())


@pytest.mark.parametrize("mode", MODES)
def test_ema_resumes_exactly(mode):
    module = FakeLinearQuantization(5, mode, ema_decay=0.7)
    for batch in BATCHES:
        module(batch)
    other = FakeLinearQuantization(5, mode)
    other.load_state_dict(module.state_dict())
    assert torch.equal(other.eval()(X), module.eval()(X))
    assert torch.equal(other.train()(X), module.train()(X))
    for name, value in module.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name
    expected = ["ema_decay", "tracked_min_biased", "tracked_min", "tracked_max_biased", "tracked_max", "iter_count"]
    assert list(module.state_dict()) == [*expected, "scale", "zero_point"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ema_decay": 1.0}, "ema_decay"),
        ({"mode": "SYM"}, "mode"),
        ({"num_bits": 0}, "bits"),
        ({"num_bits": 1, "mode": "SYMMETRIC_RESTRICTED"}, "1 bit"),
    ],
)
def test_ema_refusals(options, message):
    with pytest.raises(ArgumentError, match=message):
        FakeLinearQuantization(**options)


def test_wrapper():
    wrapper = FakeQuantizationWrapper(nn.ReLU(inplace=True), 8, LinearQuantMode.ASYMMETRIC_UNSIGNED, 0.9)
    out = wrapper(X.clone())
    assert (out - X.relu()).abs().max() <= X.max() / 255 and wrapper.fake_q.ema_decay.item() == pytest.approx(0.9)
    assert isinstance(wrapper.wrapped_module, nn.ReLU) and wrapper.fake_q.inplace


def reference_lsq(x, step, qmin, qmax, grad, count):
    """Output and both gradients, from the paper's equations, in float64."""
    x, step, grad = x.double(), step.double(), grad.double()
    place = x / step
    inside = (place >= qmin) & (place <= qmax)
    out = torch.round(place.clamp(qmin, qmax)) * step
    by_step = torch.where(inside, torch.round(place) - place, place.clamp(qmin, qmax))
    return out, grad * inside, (grad * by_step).sum() / math.sqrt(count * qmax)


@pytest.mark.parametrize(("bits", "signed"), [(2, True), (4, True), (8, True), (2, False), (1, False), (8, False)])
def test_lsq_gradients(bits, signed):
    step = torch.tensor([0.3], requires_grad=True)
    x = X.clone().requires_grad_()
    grad = torch.randn(X.shape, generator=torch.Generator().manual_seed(5))
    out = lsq_quantize(x, step, bits, signed=signed, values_per_step=75)
    out.backward(grad)
    qmin, qmax = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    expected = reference_lsq(X, torch.tensor(0.3), qmin, qmax, grad, 75)
    torch.testing.assert_close(out.double(), expected[0], atol=1e-6, rtol=0)
    torch.testing.assert_close(x.grad.double(), expected[1])
    torch.testing.assert_close(step.grad.double(), expected[2].reshape(1), rtol=1e-4, atol=1e-5)
    frozen = lsq_quantize(X, step, bits, signed=signed, training=False)
    torch.testing.assert_close(frozen, out.detach(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_lsq_per_channel(axis):
    count = X.shape[axis]
    step = torch.linspace(0.1, 0.5, count).requires_grad_()
    lsq_quantize(X, step, 4, axis=axis).sum().backward()
    for index in range(count):
        alone = step[index].detach().reshape(1).requires_grad_()
        out = lsq_quantize(X.select(axis, index), alone, 4)
        assert torch.equal(out, lsq_quantize(X, step, 4, axis=axis).select(axis, index))
        out.sum().backward()
        torch.testing.assert_close(alone.grad[0], step.grad[index])


def test_lsq_activation_starts_from_the_first_batch():
    module = LSQActivation(nn.ReLU(), 4)
    assert not module.signed and torch.equal(module.eval()(X), X.relu())
    module.train()
    out = module(X)
    expected = 2 * X.relu().mean().item() / math.sqrt(15)
    assert module.step.item() == pytest.approx(expected, rel=1e-5) and module.initialized.item() == 1
    assert len(out.unique()) <= 16
    module(X * 100)
    assert module.step.item() == pytest.approx(expected, rel=1e-5)
    out.sum().backward()
    assert module.step.grad is not None
    other = LSQActivation(nn.ReLU(), 4)
    other.load_state_dict(module.state_dict())
    assert torch.equal(other.eval()(X), module.eval()(X))
    assert LSQActivation(None, 4).signed and LSQActivation(nn.Hardswish(), 4).signed
    with pytest.raises(ArgumentError, match="num_bits"):
        LSQActivation(None, 1)


def test_lsq_starts():
    assert lsq_initial_step(torch.tensor([0.5, -0.5]), 4).item() == pytest.approx(1 / math.sqrt(7))
    assert lsq_initial_step(torch.zeros(3), 4).item() == 1
    weight = torch.tensor([[1.0, -1.0], [0.0, 4.0]])
    assert lsq_initial_step(weight, 2, axis=0).tolist() == [2.0, 4.0]
    for wrong in (torch.zeros(0), torch.tensor([float("nan")])):
        with pytest.raises(ArgumentError):
            lsq_initial_step(wrong, 4)


def test_lsq_learns_the_step_of_least_error():
    values = torch.randn(5000, generator=torch.Generator().manual_seed(0))
    step = nn.Parameter(lsq_initial_step(values, 3))
    optimizer = torch.optim.Adam([step], lr=0.02)
    for _ in range(150):
        optimizer.zero_grad()
        (lsq_quantize(values, step, 3) - values).square().mean().backward()
        optimizer.step()
    errors = {
        s: (torch.round(values / s).clamp(-4, 3) * s - values).square().mean().item()
        for s in torch.linspace(0.3, 1.2, 91).tolist()
    }
    error = (lsq_quantize(values, step, 3) - values).square().mean().item()
    assert error <= min(errors.values()) * 1.03


def test_xnor_activation():
    values = torch.tensor([-2.0, -0.1, 0.0, 3.0, 1.0])
    out, grad = run(XnorActivation(), values)
    assert out.tolist() == [-1, -1, 1, 1, 1] and grad.tolist() == [0, 1, 1, 0, 1]
    with pytest.raises(ArgumentError):
        XnorActivation(clip=0)


def test_xnor_scale():
    scale = XnorScale(3, (5, 5), start=torch.tensor([1.0, 2.0, 3.0]))
    assert [p.numel() for p in scale.parameters()] == [3, 5, 5]
    scale.beta[0].data.copy_(torch.arange(5.0))
    expected = X * torch.tensor([1.0, 2.0, 3.0]).reshape(3, 1, 1) * torch.arange(5.0).reshape(5, 1)
    torch.testing.assert_close(scale(X), expected)
    linear = XnorScale(5, channel_axis=-1)
    assert linear(X).shape == X.shape and linear(X.bfloat16()).dtype == torch.bfloat16
    for wrong in ((0,), (3, (0,)), (3.0,)):
        with pytest.raises(ArgumentError):
            XnorScale(*wrong)
    with pytest.raises(ArgumentError, match="start"):
        XnorScale(3, start=torch.ones(2))


MODULES = [
    lambda: ClippedLinearQuantization(4, 1.0),
    lambda: LearnedClippedLinearQuantization(4, 1.0),
    lambda: FakeLinearQuantization(8, LinearQuantMode.ASYMMETRIC_UNSIGNED),
    lambda: FakeQuantizationWrapper(nn.ReLU(), 8, LinearQuantMode.SYMMETRIC, 0.9),
    lambda: LSQActivation(nn.ReLU(), 4),
    lambda: LSQActivation(None, 4),
]


@pytest.mark.parametrize("make", MODULES)
def test_conformance(make):
    module = make()
    first = module(X)
    assert first.shape == X.shape and not torch.equal(first, X)
    again = copy.deepcopy(module)
    assert torch.equal(again.eval()(X), module.eval()(X))
    for x in (X.to(memory_format=torch.channels_last), X[:, :, ::2], X[0], X[:1]):
        assert module(x).shape == x.shape
    assert module(X.to(memory_format=torch.channels_last)).is_contiguous(memory_format=torch.channels_last)
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        assert module(X.to(dtype)).dtype == dtype
    before = X.clone()
    module.train()(X)
    assert torch.equal(X, before)
    program = torch.export.export(module.eval(), (X,))
    targets = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert targets.count("distiller_ng.fake_quantize.default") == 1
    assert not any("where" in target or "round" in target for target in targets)
    assert torch.equal(program.module()(X), module(X))


@pytest.mark.parametrize("make", MODULES)
def test_compiled_training(make):
    torch.compiler.reset()
    module = make()
    module(X)
    compiled = torch.compile(copy.deepcopy(module), backend="aot_eager")
    out, grad = run(compiled)
    expected, expected_grad = run(module)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(grad, expected_grad)


@pytest.mark.parametrize("make", [*MODULES, XnorActivation])
def test_a_module_used_twice_in_one_step(make):
    module = make()
    leaf = X.clone().requires_grad_()
    out = module(module(leaf) * 1.5) + module(leaf)
    out.sum().backward()
    assert torch.isfinite(leaf.grad).all() and leaf.grad.abs().sum() > 0


def test_integers_and_tuples():
    module = FakeLinearQuantization()
    indices = torch.tensor([3, 1])
    assert module(indices) is indices and module.iter_count == 0
    with pytest.raises(ArgumentError, match="LSTM returns tuple"):
        FakeQuantizationWrapper(nn.LSTM(2, 3), 8, "SYMMETRIC", 0.9)(torch.rand(4, 2))


def test_a_replica_that_saw_the_first_batch_is_noticed():
    for make in (FakeLinearQuantization, lambda: LSQActivation(None, 8)):
        module = make()
        module(X)
        again = make()  # like the original of a DataParallel replica: it shares the buffers, not the attributes
        for name, tensor in module.state_dict(keep_vars=True).items():
            (again._parameters if name in again._parameters else again._buffers)[name] = tensor
        for name in ("step", "offset"):
            if name in again._buffers:
                again._buffers[name] = module._buffers[name]
        assert torch.equal(again.eval()(X), module.eval()(X))


@pytest.mark.parametrize("make", MODULES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_converted_models(make, dtype):
    module = make()
    module(X)
    converted = copy.deepcopy(module).to(dtype)
    x = X.to(dtype)
    # single values may round to the next level
    assert (converted.eval()(x).double() - module.eval()(X).double()).abs().mean() < 0.03
    out = converted.train()(x)
    assert out.dtype == dtype and torch.isfinite(out).all()
    for name, buffer in converted.named_buffers():
        assert dtype == torch.float64 or buffer.dtype not in (torch.bfloat16, torch.float16) or "initialized" in name


def test_ranges_are_not_rounded_by_a_conversion():
    module = FakeLinearQuantization(8, LinearQuantMode.ASYMMETRIC_UNSIGNED, ema_decay=0.999)
    module(X)
    converted = copy.deepcopy(module).bfloat16()
    assert torch.equal(converted.step, module.step) and converted.ema_decay == module.ema_decay
    converted(X.bfloat16() * 2)
    assert 1.4 < (converted.tracked_max / module.tracked_max).item() < 1.6
