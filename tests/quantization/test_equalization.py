"""Cross-layer equalization: exact in float64, worked numbers, what is left alone."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from distiller_ng.errors import ArgumentError, CalibrationError
from distiller_ng.graph.bn_folding import fold_batch_norms
from distiller_ng.graph.channel_scaling import scaling_groups
from distiller_ng.quantization.equalization import ChannelClip, equalize_, replace_relu6_


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.conv1, self.conv2 = nn.Conv2d(8, 12, 3, padding=1, groups=4), nn.Conv2d(12, 8, 1, bias=False)
        self.depthwise, self.head = nn.Conv2d(8, 8, 3, groups=8, padding=1), nn.Conv2d(8, 5, 1)
        self.fc = nn.Linear(5 * 4, 2)

    def forward(self, x):
        x = self.stem(x)
        x = x + self.conv2(F.relu(self.conv1(x)))
        x = F.max_pool2d(self.head(torch.relu(self.depthwise(x))), 4)
        return self.fc(x.flatten(1))


class Everything(nn.Module):
    """Kinds of producers and of operators in between, and a few that stop a factor."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.conv2 = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Conv2d(6, 6, 1)
        self.norm, self.query, self.key = nn.LayerNorm(6), nn.Linear(6, 4), nn.Linear(6, 4, bias=False)
        self.out = nn.Linear(4, 3)

    def forward(self, x):
        x = F.avg_pool2d(F.pad(F.leaky_relu(self.bn(self.conv(x)), 0.1), (0, 1, 0, 1)), 2)
        x = self.norm(self.conv2(x).flatten(2).transpose(1, 2))
        return self.out(torch.sigmoid(self.query(x)) * self.key(x))


def wild(model):
    """Channels of very different ranges."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            scale = torch.logspace(-2, 2, module.weight.shape[0])[torch.randperm(module.weight.shape[0])]
            module.weight.data *= scale.reshape(-1, *[1] * (module.weight.dim() - 1))
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    return model.double().eval()


@pytest.mark.parametrize("make", [Residual, Everything])
@pytest.mark.parametrize("with_data", [False, True])
@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_the_model_computes_the_same(make, with_data, strength):
    model = wild(make())
    x = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        before = model(x)
        report = equalize_(model, x, [x] if with_data else None, strength=strength)
        after = model(x)
    assert torch.allclose(before, after, rtol=1e-10, atol=1e-10 * before.abs().max())
    assert any((factor - 1).abs().max() > 0.5 for _, factor in report.factors)


def test_the_groups_of_a_network_with_a_shortcut():
    groups = {group.producers: group for group in scaling_groups(Residual().eval(), torch.randn(1, 3, 8, 8))}
    assert groups[("stem", "conv2")].consumers == (("conv1", 1), ("depthwise", 1))
    assert groups[("conv1",)].consumers == (("conv2", 1),) and groups[("conv1",)].only_relu
    assert groups[("depthwise",)].consumers == (("head", 1),)
    assert groups[("head",)].consumers == (("fc", 4),) and not groups[("head",)].only_relu
    assert len(groups) == 4


def test_norms_make_groups_and_products_stop_them():
    groups = {group.producers: group for group in scaling_groups(Everything().eval(), torch.randn(1, 3, 8, 8))}
    assert set(groups) == {("bn",), ("norm",)}
    assert groups[("norm",)].consumers == (("query", 1), ("key", 1))


def test_worked_numbers():
    model = nn.Sequential(nn.Linear(1, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False)).eval()
    model[0].weight.data = torch.tensor([[1.0], [-4.0]])
    model[2].weight.data = torch.tensor([[16.0, 1.0]])
    report = equalize_(model, torch.ones(1, 1))
    assert model[0].weight.flatten().tolist() == pytest.approx([4.0, -2.0])
    assert model[2].weight.flatten().tolist() == pytest.approx([4.0, 2.0])
    assert report.factors[0][1].tolist() == pytest.approx([4.0, 0.5])
    assert "0 -> 2: 2 channels, factors 0.5 .. 4" in str(report)


def test_ranges_of_the_data_become_equal():
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1)).eval()
    model[0].weight.data = torch.tensor([[1.0, 0.0], [0.0, 100.0]])
    data = torch.tensor([[2.0, 0.5], [-1.0, 0.25]])
    equalize_(model, data, [data], strength=1.0)
    assert model[0](data).abs().amax(dim=0).tolist() == pytest.approx([50.0, 50.0])


def test_biases_are_absorbed_where_a_channel_never_is_zero():
    model = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1)).double().eval()
    model[0].weight.data = torch.tensor([[1.0], [1.0]]).double()
    model[0].bias.data = torch.tensor([5.0, -5.0]).double()
    x = torch.tensor([[1.0], [2.0], [3.0]]).double()
    before = model(x)
    report = equalize_(model, x, [x], absorb_bias=True, strength=0.0)
    assert torch.allclose(model(x), before, atol=1e-12)
    assert report.absorbed["0"][0] > 0 and report.absorbed["0"][1] == 0
    assert model[1](model[0](x)).amin(dim=0).tolist() == pytest.approx([0.0, 0.0])


class Mobile(nn.Sequential):
    def __init__(self):
        super().__init__(
            nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6), nn.ReLU6(), nn.Conv2d(6, 6, 3, groups=6), nn.BatchNorm2d(6),
            nn.ReLU6(), nn.Conv2d(6, 4, 1),
        )  # fmt: skip


def test_relu6_stops_factors_until_it_has_limits_for_channels():
    model, x = wild(Mobile()), torch.randn(4, 3, 8, 8, dtype=torch.float64)
    fold_batch_norms(model, x)
    with torch.no_grad():
        before = model(x)
        assert equalize_(model, x).factors == ()
        assert replace_relu6_(model, x) == ["2", "5"]
        model.double()
        assert isinstance(model[2], ChannelClip) and torch.equal(model(x), before)
        report = equalize_(model, x, [x])
        assert torch.allclose(model(x), before, rtol=1e-10, atol=1e-9)
    assert [group.limits for group, _ in report.factors] == [("2",), ("5",)]
    assert model[2].channel_limits.unique().numel() > 1


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.b(torch.relu(self.a(self.a(x))))


def test_a_layer_that_is_called_twice_or_tied_is_left_alone():
    assert scaling_groups(Shared().eval(), torch.randn(2, 4)) == []
    tied = Shared().eval()
    tied.b.weight = tied.a.weight
    assert scaling_groups(tied, torch.randn(2, 4)) == []


def test_dead_channels_keep_their_factor_of_one():
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)).eval()
    model[0].weight.data[1] = 0
    ((_, factor),) = equalize_(model, torch.ones(1, 2)).factors
    assert factor[1] == 1 and factor.isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"strength": 2}, ArgumentError),
        ({"absorb_bias": True}, ArgumentError),
        ({"calibration_data": []}, CalibrationError),
        ({"calibration_data": [torch.full((2, 2), float("nan"))]}, CalibrationError),
        ({"calibration_data": torch.ones(2, 2)}, ArgumentError),
    ],
)
def test_mistakes_leave_the_model_as_it_was(arguments, error):
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)).eval()
    before = model[0].weight.detach().clone()
    with pytest.raises(error):
        equalize_(model, torch.ones(1, 2), **arguments)
    assert torch.equal(model[0].weight, before)
