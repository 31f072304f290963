"""Simulated folding equals the unfolded pair: outputs, gradients, statistics; freezing, quantization, refusals."""

import copy

import pytest
import torch
from torch import nn

from distiller_ng.errors import ArgumentError, LifecycleError
from distiller_ng.quantization.sim_bn_fold import FREEZE_BN_DELAY_DEFAULT, SimulatedFoldedBatchNorm

CASES = {
    "fc": (lambda bias: nn.Linear(5, 8, bias=bias), nn.BatchNorm1d, (6, 5)),
    "conv1d": (lambda bias: nn.Conv1d(3, 8, 3, bias=bias, stride=2), nn.BatchNorm1d, (4, 3, 9)),
    "conv2d": (lambda bias: nn.Conv2d(3, 8, 3, bias=bias, padding=1), nn.BatchNorm2d, (4, 3, 6, 6)),
    "conv2d_grouped": (lambda bias: nn.Conv2d(4, 8, 3, bias=bias, groups=2, dilation=2), nn.BatchNorm2d, (4, 4, 6, 6)),
    "conv2d_reflect": (
        lambda bias: nn.Conv2d(3, 8, 3, bias=bias, padding=1, padding_mode="reflect"),
        nn.BatchNorm2d,
        (4, 3, 6, 6),
    ),
    "conv3d": (lambda bias: nn.Conv3d(2, 8, 2, bias=bias), nn.BatchNorm3d, (2, 2, 4, 4, 4)),
    "transposed1d": (lambda bias: nn.ConvTranspose1d(3, 8, 3, bias=bias, stride=2), nn.BatchNorm1d, (4, 3, 5)),
    "transposed2d": (
        lambda bias: nn.ConvTranspose2d(4, 8, 3, bias=bias, stride=2, output_padding=1, groups=2),
        nn.BatchNorm2d,
        (4, 4, 4, 4),
    ),
    "transposed3d": (lambda bias: nn.ConvTranspose3d(2, 8, 2, bias=bias), nn.BatchNorm3d, (2, 2, 3, 3, 3)),
}


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=5e-5)


def make(case, bias=True, **options):
    layer, norm, shape = CASES[case]
    torch.manual_seed(1234)
    layer = layer(bias)
    bn = norm(8, **options)
    if bn.affine:
        nn.init.uniform_(bn.weight, 0.5, 2.0), nn.init.normal_(bn.bias)
    return layer, bn, shape


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("bias", [False, True], ids=["bias_off", "bias_on"])
@pytest.mark.parametrize("momentum", [0.1, None], ids=["ema", "cma"])
@pytest.mark.parametrize("affine", [True, False])
def test_it_equals_the_unfolded_pair(case, bias, momentum, affine):
    layer, bn, shape = make(case, bias, momentum=momentum, affine=affine)
    folded = SimulatedFoldedBatchNorm(copy.deepcopy(layer), copy.deepcopy(bn))
    unfolded = nn.Sequential(layer, bn)
    optimizers = [torch.optim.SGD(model.parameters(), 1e-2) for model in (folded, unfolded)]
    for _ in range(5):
        folded.train(), unfolded.train()
        x = torch.rand(shape)
        target = torch.rand_like(layer(x))
        for model, optimizer in zip((folded, unfolded), optimizers):
            optimizer.zero_grad()
            nn.functional.mse_loss(model(x), target).backward()
        torch.testing.assert_close(folded.param_module.weight.grad, layer.weight.grad, rtol=1e-3, atol=1e-5)
        if bias:
            assert folded.param_module.bias.grad is None
        if affine:
            torch.testing.assert_close(folded.bn.weight.grad, bn.weight.grad, rtol=1e-3, atol=1e-5)
            torch.testing.assert_close(folded.bn.bias.grad, bn.bias.grad, rtol=1e-3, atol=1e-5)
        for optimizer in optimizers:
            optimizer.step()
        close(folded.param_module.weight, layer.weight)
        close(folded.bn.running_mean, bn.running_mean)
        close(folded.bn.running_var, bn.running_var)
        assert folded.bn.num_batches_tracked == bn.num_batches_tracked
        if affine:
            close(folded.bn.weight, bn.weight), close(folded.bn.bias, bn.bias)
        folded.eval(), unfolded.eval()
        x = torch.rand(shape)
        close(folded(x), unfolded(x))
    folded.freeze()
    assert folded.frozen
    x = torch.rand(shape)
    close(folded(x), unfolded(x))
    close(folded.param_module(x), unfolded(x))
    weight = folded.param_module.weight.clone()
    folded.freeze()
    assert torch.equal(folded.param_module.weight, weight)
    close(folded.train()(x), unfolded(x))


PAIRS = [
    (nn.Linear(3, 4), nn.BatchNorm2d(4)),
    (nn.Linear(3, 4), nn.BatchNorm3d(4)),
    (nn.Conv1d(3, 4, 1), nn.BatchNorm2d(4)),
    (nn.Conv1d(3, 4, 1), nn.BatchNorm3d(4)),
    (nn.Conv2d(3, 4, 1), nn.BatchNorm1d(4)),
    (nn.Conv2d(3, 4, 1), nn.BatchNorm3d(4)),
    (nn.Conv3d(3, 4, 1), nn.BatchNorm1d(4)),
    (nn.Conv3d(3, 4, 1), nn.BatchNorm2d(4)),
    (nn.ConvTranspose2d(3, 4, 1), nn.BatchNorm1d(4)),
    (nn.ReLU(), nn.BatchNorm1d(4)),
    (nn.Linear(3, 4), nn.Linear(4, 4)),
    (nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4)),
    (nn.Conv2d(3, 4, 1), None),
]


@pytest.mark.parametrize(("layer", "bn"), PAIRS)
def test_illegal_pairs(layer, bn):
    with pytest.raises(TypeError, match="cannot fold"):
        SimulatedFoldedBatchNorm(layer, bn)


def test_norms_that_cannot_be_folded():
    with pytest.raises(ValueError, match="running statistics"):
        SimulatedFoldedBatchNorm(nn.Linear(3, 4), nn.BatchNorm1d(4, track_running_stats=False))
    with pytest.raises(ArgumentError, match="4 outputs, the batch norm 5"):
        SimulatedFoldedBatchNorm(nn.Linear(3, 4), nn.BatchNorm1d(5))
    for delay in (-1, 2.5, True, None):
        with pytest.raises(ArgumentError, match="freeze_bn_delay"):
            SimulatedFoldedBatchNorm(nn.Linear(3, 4), nn.BatchNorm1d(4), delay)


def test_inputs_without_statistics():
    folded = SimulatedFoldedBatchNorm(nn.Linear(3, 4), nn.BatchNorm1d(4))
    with pytest.raises(ValueError, match="more than one value"):
        folded(torch.rand(1, 3))
    assert folded.eval()(torch.rand(1, 3)).shape == (1, 4)
    with pytest.raises(ArgumentError, match="2 dimensions"):
        folded(torch.rand(2, 4, 3))
    with pytest.raises(ArgumentError, match="4 dimensions"):
        SimulatedFoldedBatchNorm(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))(torch.rand(3, 5, 5))
    with pytest.raises(LifecycleError, match="run the model once"):
        SimulatedFoldedBatchNorm(nn.LazyLinear(4), nn.BatchNorm1d(4))


@pytest.mark.parametrize("bias", [False, True])
def test_freeze_delay(bias):
    layer, bn, shape = make("conv2d", bias)
    folded = SimulatedFoldedBatchNorm(layer, bn, freeze_bn_delay=2)
    beta = bn.bias
    for _ in range(2):
        folded(torch.rand(shape))
        assert not folded.frozen
    mean = bn.running_mean.clone()
    x = torch.rand(shape)
    folded.eval()
    expected = folded(x)
    out = folded.train()(x)
    assert folded.frozen and torch.equal(bn.running_mean, mean)
    close(out, expected)
    out.sum().backward()  # training goes on with the folded parameters
    trained = layer.bias if bias else beta
    assert layer.bias is trained and trained.grad is not None and layer.weight.grad is not None
    assert FREEZE_BN_DELAY_DEFAULT == 200000
    at_once = SimulatedFoldedBatchNorm(*make("conv2d")[:2], freeze_bn_delay=0)
    at_once(x)
    assert at_once.frozen


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("affine", [False, True])
def test_a_frozen_model_resumes_frozen(bias, affine):
    layer, bn, shape = make("conv2d", bias, affine=affine)
    folded = SimulatedFoldedBatchNorm(layer, bn, 1)
    folded(torch.rand(shape)), folded(torch.rand(shape))
    other = SimulatedFoldedBatchNorm(*make("conv2d", bias, affine=affine)[:2], 1)
    other.load_state_dict(folded.state_dict())
    x = torch.rand(shape)
    assert other.frozen and torch.equal(other(x), folded(x))
    fresh = SimulatedFoldedBatchNorm(*make("conv2d", bias, affine=affine)[:2], 5)
    half_way = SimulatedFoldedBatchNorm(*make("conv2d", bias, affine=affine)[:2], 5)
    half_way(x)
    fresh.load_state_dict(half_way.state_dict())
    assert not fresh.frozen and torch.equal(fresh(x), half_way(x))


def quantizer(tensor):
    """Round to sixteenths, straight through."""
    return tensor + (torch.round(tensor * 16) / 16 - tensor).detach()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("affine", [True, False])
def test_the_folded_computation_without_rounding_equals_the_pair(case, affine):
    layer, bn, shape = make(case, affine=affine)
    folded = SimulatedFoldedBatchNorm(copy.deepcopy(layer), copy.deepcopy(bn), param_quantization_fn=lambda t: t)
    x, weights = torch.rand(shape), torch.rand_like(layer(torch.rand(shape)))
    for model in (folded, nn.Sequential(layer, bn)):
        close(model(x), folded.train()(x))
        (model(x) * weights).sum().backward()
    for expected, found in (
        (layer.weight, folded.param_module.weight),
        (bn.weight, folded.bn.weight),
        (bn.bias, folded.bn.bias),
    ):
        if expected is not None:
            torch.testing.assert_close(found.grad, expected.grad, rtol=1e-3, atol=1e-4)
    assert folded.param_module.bias.grad is None


@pytest.mark.parametrize("case", ["fc", "conv2d", "transposed2d"])
def test_quantized_folding(case):
    layer, bn, shape = make(case)
    x = torch.rand(shape)
    reference_layer, reference_bn = copy.deepcopy(layer).double(), copy.deepcopy(bn).double()
    folded = SimulatedFoldedBatchNorm(layer, bn, param_quantization_fn=quantizer)
    out = folded(x)
    # the whitepaper's equations in float64
    with torch.no_grad():
        plain = reference_layer(x.double()) - reference_layer.bias.reshape(1, -1, *[1] * (x.dim() - 2))
        dims = [d for d in range(plain.dim()) if d != 1]
        mean, variance = plain.mean(dims), plain.var(dims, correction=0)
        count = plain.numel() / 8
        running = 0.9 * reference_bn.running_var + 0.1 * variance * count / (count - 1)
        sigma, sigma_batch = (running + bn.eps).sqrt(), (variance + bn.eps).sqrt()
        gamma, beta = reference_bn.weight, reference_bn.bias
        factor = gamma / sigma
        weight = reference_layer.weight
        if case == "transposed2d":
            wide = factor.reshape(2, 1, 4, 1, 1) * weight.reshape(2, 2, 4, 3, 3)
            reference_layer.weight.copy_(quantizer(wide.reshape(weight.shape)))
        else:
            reference_layer.weight.copy_(quantizer(weight * factor.reshape(-1, *[1] * (weight.dim() - 1))))
        reference_layer.bias.zero_()
        view = (1, -1, *[1] * (x.dim() - 2))
        expected = reference_layer(x.double()) * (sigma / sigma_batch).reshape(view)
        expected = expected + quantizer(beta - gamma * mean / sigma_batch).reshape(view)
    torch.testing.assert_close(out.double(), expected, rtol=1e-4, atol=1e-5)
    out.sum().backward()
    assert layer.weight.grad is not None and torch.isfinite(layer.weight.grad).all()
    folded.eval()
    before = folded(x)
    folded.freeze()
    torch.testing.assert_close(folded(x), before)


def test_a_norm_in_evaluation_mode_uses_running_statistics():
    layer, bn, shape = make("conv2d")
    folded = SimulatedFoldedBatchNorm(copy.deepcopy(layer), copy.deepcopy(bn))
    folded(torch.rand(shape)), nn.Sequential(layer, bn)(torch.rand(shape))
    bn.load_state_dict(folded.bn.state_dict())
    folded.bn.eval(), bn.eval()
    x = torch.rand(shape)
    close(folded(x), bn(layer(x)))
    folded(x).sum().backward()
    bn(layer(x)).sum().backward()
    close(folded.param_module.weight.grad, layer.weight.grad)
    close(folded.param_module.bias.grad, layer.bias.grad)


class FrozenBatchNorm2d(nn.Module):
    """Torchvision's, by name and buffers."""

    def __init__(self, width, eps=1e-5):
        super().__init__()
        self.eps = eps
        generator = torch.Generator().manual_seed(3)
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.rand(width, generator=generator) + 0.5)

    def forward(self, x):
        return nn.functional.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)


@pytest.mark.parametrize("bias", [False, True])
def test_torchvisions_frozen_norm_is_folded_at_once(bias):
    layer, _, shape = make("conv2d", bias)
    bn = FrozenBatchNorm2d(8)
    x = torch.rand(shape)
    expected = bn(layer(x)).detach()
    folded = SimulatedFoldedBatchNorm(layer, bn)
    assert folded.frozen
    close(folded(x), expected)
    with pytest.raises(TypeError, match="Conv2d"):
        SimulatedFoldedBatchNorm(nn.Conv1d(3, 8, 1), FrozenBatchNorm2d(8))


def test_autocast_keeps_statistics_in_float32():
    layer, bn, shape = make("conv2d")
    folded = SimulatedFoldedBatchNorm(copy.deepcopy(layer), copy.deepcopy(bn))
    x = torch.rand(shape)
    with torch.autocast("cpu", torch.bfloat16):
        out = folded(x)
    assert out.dtype == torch.bfloat16 and folded.bn.running_mean.dtype == torch.float32
    torch.testing.assert_close(out.float(), bn(layer(x)), atol=0.1, rtol=0.05)
    assert copy.deepcopy(folded).eval()(x).shape == out.shape


@pytest.mark.slow
def test_compiled_gradients():
    # Inductor computes again in backward what is cheap; the running statistics have changed by then.
    torch.compiler.reset()
    layer, bn, shape = make("fc")
    folded = SimulatedFoldedBatchNorm(layer, bn, param_quantization_fn=quantizer)
    compiled = torch.compile(copy.deepcopy(folded), backend="inductor")
    for _ in range(2):
        x = torch.rand(shape)
        weights = torch.rand_like(folded.eval()(x))
        (folded.train()(x) * weights).sum().backward()
        (compiled(x) * weights).sum().backward()
    for (name, expected), found in zip(folded.named_parameters(), compiled.parameters()):
        assert (found.grad is None) == (expected.grad is None), name
        if expected.grad is not None:
            torch.testing.assert_close(found.grad, expected.grad, rtol=1e-3, atol=1e-3)


def test_export_and_compile():
    torch.compiler.reset()
    layer, bn, shape = make("conv2d")
    folded = SimulatedFoldedBatchNorm(layer, bn)
    x = torch.rand(shape)
    compiled = torch.compile(copy.deepcopy(folded), backend="aot_eager")
    close(compiled(x), folded(x))
    folded.eval()
    close(torch.export.export(folded, (x,)).module()(x), folded(x))
