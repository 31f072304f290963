"""Batch norms folded into the layers before them."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations

import distiller_ng as distiller
from distiller_ng.errors import ArgumentError, GraphError
from distiller_ng.graph.bn_folding import folded_parameters
from distiller_ng.model_transforms import fold_batch_norms
from distiller_ng.models import create_model
from distiller_ng.quantization.sim_bn_fold import SimulatedFoldedBatchNorm


def unsettled(model):
    """Every batch norm with statistics and parameters that are no trivial ones."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        for name in ("weight", "bias", "running_mean", "running_var"):
            tensor = getattr(module, name, None)
            if hasattr(module, "running_mean") and isinstance(tensor, torch.Tensor):
                with torch.no_grad():
                    tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return model.eval()


class FrozenBatchNorm2d(nn.Module):
    """As object-detection libraries have it: buffers only, written with plain operators."""

    def __init__(self, channels, eps=1e-5):
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.ones(channels))
        self.eps = eps

    def forward(self, x):
        weight, bias, mean, var = (
            t.reshape(1, -1, 1, 1) for t in (self.weight, self.bias, self.running_mean, self.running_var)
        )
        scale = weight * (var + self.eps).rsqrt()
        return x * scale + (bias - mean * scale)


FOLDED = {
    "linear": (nn.Linear(10, 20), nn.BatchNorm1d(20), (4, 10)),
    "linear without bias": (nn.Linear(10, 20, bias=False), nn.BatchNorm1d(20), (4, 10)),
    "conv1d": (nn.Conv1d(5, 6, 3), nn.BatchNorm1d(6), (4, 5, 9)),
    "conv2d": (nn.Conv2d(5, 6, 3, padding=1), nn.BatchNorm2d(6), (2, 5, 7, 8)),
    "conv2d without bias": (nn.Conv2d(5, 6, 3, bias=False), nn.BatchNorm2d(6), (2, 5, 7, 8)),
    "conv3d": (nn.Conv3d(3, 4, 3), nn.BatchNorm3d(4), (2, 3, 5, 5, 5)),
    "grouped": (nn.Conv2d(6, 8, 3, groups=2), nn.BatchNorm2d(8), (2, 6, 5, 5)),
    "depthwise": (nn.Conv2d(6, 12, 3, groups=6), nn.BatchNorm2d(12), (2, 6, 5, 5)),
    "transposed1d": (nn.ConvTranspose1d(3, 4, 3), nn.BatchNorm1d(4), (2, 3, 5)),
    "transposed2d": (nn.ConvTranspose2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), (2, 3, 5, 5)),
    "transposed3d": (nn.ConvTranspose3d(3, 4, 2), nn.BatchNorm3d(4), (2, 3, 3, 3, 3)),
    "transposed grouped": (nn.ConvTranspose2d(6, 8, 3, groups=2), nn.BatchNorm2d(8), (2, 6, 5, 5)),
    "not affine": (nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, affine=False), (2, 3, 4, 4)),
    "synchronized": (nn.Conv2d(3, 4, 1), nn.SyncBatchNorm(4), (2, 3, 4, 4)),
    "frozen": (nn.Conv2d(3, 4, 1), FrozenBatchNorm2d(4), (2, 3, 4, 4)),
}


PREFIX = {nn.Module.eval: "", nn.DataParallel: "module.", torch.compile: "_orig_mod."}


@pytest.mark.parametrize("wrap", PREFIX, ids=["plain", "parallel", "compiled"])
@pytest.mark.parametrize("name", FOLDED)
def test_outputs_stay_equal(name, wrap):
    layer, norm, shape = deepcopy(FOLDED[name])
    torch.manual_seed(0)
    model = unsettled(nn.Sequential(layer, norm, nn.ReLU()))
    x = torch.randn(shape)
    expected = deepcopy(model)(x)
    weight, state_keys = layer.weight, set(layer.state_dict())
    assert fold_batch_norms(wrap(model), dummy_input=x, inference=True) is not None
    assert (model[0], type(model[1]), model[0].weight) == (layer, nn.Identity, weight)
    assert set(layer.state_dict()) == state_keys | {"bias"}
    assert layer.fused_modules == [f"{PREFIX[wrap]}1"]
    torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)


def test_by_hand():
    layer, norm = nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1, eps=0)
    with torch.no_grad():
        for tensor, value in ((layer.weight, 2), (norm.weight, 3), (norm.bias, 1), (norm.running_mean, 4)):
            tensor.fill_(value)
    folded = folded_parameters(layer, norm)
    assert (folded.weight.item(), folded.bias.item()) == (6.0, -11.0)
    assert layer.weight.item() == 2


def untouched(model, x, **options):
    before, modules = deepcopy(model.state_dict()), list(model.modules())
    fold_batch_norms(model, x, **options)
    assert all(old is new for old, new in zip(modules, model.modules(), strict=True))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert before.keys() == model.state_dict().keys()


class Bypass(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x):
        y = self.conv(x)
        return y + self.bn(y)


class Returned(Bypass):
    def forward(self, x):
        y = self.conv(x)
        return y, self.bn(y)


class SharedNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2, self.bn = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x):
        return self.bn(self.conv2(self.bn(self.conv1(x))))


class SharedConv(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x):
        return self.bn(self.conv(self.conv(x)))


class BothTwice(SharedConv):
    def forward(self, x):
        return self.bn(self.conv(x)) + self.bn(self.conv(x + 1))


class TiedWeight(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2, self.bn = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.conv2.weight = self.conv1.weight

    def forward(self, x):
        return self.bn(self.conv1(x)) + self.conv2(x)


class ReadElsewhere(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x):
        return self.bn(self.conv(x)) + F.conv2d(x, self.conv.weight)


class NormReadElsewhere(ReadElsewhere):
    def forward(self, x):
        return self.bn(self.conv(x)) * self.bn.weight.sum()


class OtherDimension(nn.Module):
    """The batch norm works on dimension 1, which is as large as the layer's channels by accident."""

    def __init__(self):
        super().__init__()
        self.fc, self.bn = nn.Linear(8, 4), nn.BatchNorm1d(4)

    def forward(self, x):
        return self.bn(self.fc(x))


class Standardized(nn.Conv2d):
    """A convolution that normalizes its weight: scaling the parameter would change nothing."""

    def forward(self, x):
        return F.conv2d(x, (self.weight - self.weight.mean()) / self.weight.std(), self.bias)


class Doubled(nn.Conv2d):
    def forward(self, x):
        return super().forward(x) * 2


class DoubledNorm(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x) * 2


def hooked(place, kind, frozen=False):
    model = nn.Sequential(nn.Conv2d(3, 4, 1), FrozenBatchNorm2d(4) if frozen else nn.BatchNorm2d(4))
    if kind == "after":
        model[place].register_forward_hook(lambda module, args, output: output * 2)
    else:
        model[place].register_forward_pre_hook(lambda module, args: (args[0] * 2,))
    return model


IMAGE = (2, 3, 5, 5)
NOT_FOLDED = {
    "relu and bn": (nn.Sequential(nn.ReLU(), nn.BatchNorm1d(5)), (10, 5)),
    "conv and relu": (nn.Sequential(nn.Conv1d(10, 20, 3), nn.ReLU()), (10, 10, 10)),
    "relu between": (nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4)), IMAGE),
    "conv without statistics": (nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)), IMAGE),
    "fc without statistics": (nn.Sequential(nn.Linear(10, 20), nn.BatchNorm1d(20, track_running_stats=False)), (9, 10)),
    "two consumers": (Bypass(), IMAGE),
    "returned": (Returned(), IMAGE),
    "norm called twice": (SharedNorm(), IMAGE),
    "layer called twice": (SharedConv(), IMAGE),
    "both called twice": (BothTwice(), IMAGE),
    "tied": (TiedWeight(), IMAGE),
    "weight read elsewhere": (ReadElsewhere(), IMAGE),
    "norm read elsewhere": (NormReadElsewhere(), IMAGE),
    "parametrized": (
        nn.Sequential(parametrizations.weight_norm(nn.Conv2d(3, 4, 1)), nn.BatchNorm2d(4)),
        IMAGE,
    ),
    "another dimension": (OtherDimension(), (2, 4, 8)),
    "group norm": (nn.Sequential(nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4)), IMAGE),
    "instance norm": (nn.Sequential(nn.Conv2d(3, 4, 1), nn.InstanceNorm2d(4, track_running_stats=True)), IMAGE),
    "computed weight": (nn.Sequential(Standardized(3, 4, 1), nn.BatchNorm2d(4)), IMAGE),
    "layer's own forward": (nn.Sequential(Doubled(3, 4, 1), nn.BatchNorm2d(4)), IMAGE),
    "norm's own forward": (nn.Sequential(nn.Conv2d(3, 4, 1), DoubledNorm(4)), IMAGE),
    "hook behind the layer": (hooked(0, "after"), IMAGE),
    "hook before the norm": (hooked(1, "before"), IMAGE),
    "hook behind the norm": (hooked(1, "after"), IMAGE),
    "hook behind a frozen norm": (hooked(1, "after", frozen=True), IMAGE),
    "no layers": (nn.Sequential(nn.Identity()), IMAGE),
}


@pytest.mark.parametrize("inference", [True, False])
@pytest.mark.parametrize("name", NOT_FOLDED)
def test_what_is_not_folded(name, inference):
    model, shape = NOT_FOLDED[name]
    untouched(deepcopy(model), torch.randn(shape), inference=inference)


def test_a_whole_model():
    model = unsettled(create_model(False, "cifar10", "resnet20_cifar", parallel=False))
    x = torch.randn(2, 3, 32, 32)
    expected = deepcopy(model)(x)
    fold_batch_norms(model, x)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
    assert list(distiller.SummaryGraph(model, x).adjacency_map())[:2] == ["conv1", "relu"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions(dtype):
    model = unsettled(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    x = torch.randn(2, 3, 5, 5)
    expected = model(x)
    fold_batch_norms(model.to(dtype), x.to(dtype))
    assert model[0].bias.dtype == dtype
    limit = 1e-6 if dtype == torch.float64 else 0.05
    torch.testing.assert_close(model(x.to(dtype)).float(), expected, rtol=limit, atol=limit * 10)


def test_channels_last_and_a_dropout_between():
    model = unsettled(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout(0.5), nn.Identity(), nn.BatchNorm2d(4)))
    model = model.to(memory_format=torch.channels_last)
    x = torch.randn(2, 3, 5, 5)
    expected = model(x)
    before = deepcopy(model)
    fold_batch_norms(before, x, inference=False)
    assert isinstance(before[0], nn.Conv2d)  # in training the dropout acts before the statistics are taken
    fold_batch_norms(model, x)
    assert isinstance(model[3], nn.Identity)
    torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)


def test_a_new_bias_trains_where_the_weight_does():
    for trains in (True, False):
        model = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False).requires_grad_(trains), nn.BatchNorm2d(4))
        fold_batch_norms(model, torch.randn(1, 3, 2, 2))
        assert [p.requires_grad for p in model.parameters()] == [trains, trains]


def test_the_training_form():
    model = unsettled(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()))
    x = torch.randn(2, 3, 5, 5)
    expected = model(x)
    model.train()
    fold_batch_norms(model, dummy_input=x, inference=False)
    assert isinstance(model[0], SimulatedFoldedBatchNorm)
    assert isinstance(model[1], nn.Identity)
    assert model[0].training
    torch.testing.assert_close(model.eval()(x), expected, rtol=1e-5, atol=1e-5)


def test_transposed_convolutions_have_no_training_form():
    model = unsettled(nn.Sequential(nn.ConvTranspose2d(3, 4, 3), nn.BatchNorm2d(4)))
    fold_batch_norms(model, torch.randn(1, 3, 4, 4), inference=False)
    assert [type(part) for part in model] == [nn.ConvTranspose2d, nn.BatchNorm2d]


def test_with_an_adjacency_map():
    model = unsettled(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    x = torch.randn(2, 3, 5, 5)
    expected = model(x)
    fold_batch_norms(model, adjacency_map=distiller.SummaryGraph(model, x).adjacency_map())
    torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)


def test_mistakes_change_nothing():
    model = unsettled(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    before = deepcopy(model.state_dict())
    with pytest.raises(ArgumentError, match="dummy_input"):
        fold_batch_norms(model)
    with pytest.raises(GraphError, match="cannot be traced"):
        fold_batch_norms(model, torch.randn(1, 5, 5, 5))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert distiller.model_transforms.fold_batch_norms is fold_batch_norms
