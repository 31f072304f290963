"""AdaRound: better than rounding to nearest, bounded, repeatable."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from distiller_ng.data_loggers import collect_quant_stats
from distiller_ng.errors import ArgumentError, CalibrationError, LifecycleError, TargetError
from distiller_ng.quantization.adaround import adaptive_rounding, adaround_
from distiller_ng.quantization.input_moments import InputMoments
from distiller_ng.quantization.post_train import PostTrainLinearQuantizer

MODE = {"activations": "ASYMMETRIC_UNSIGNED", "weights": "SYMMETRIC_RESTRICTED"}


def prepared(model, data, bits=4, **settings):
    stats = collect_quant_stats(model, lambda model: [model(x) for x in data])
    settings = {"save_fp_weights": True, "per_channel_wts": True, "mode": MODE, **settings}
    quantizer = PostTrainLinearQuantizer(model, bits_parameters=bits, model_activation_stats=stats, **settings)
    quantizer.prepare_model(data[0])
    return quantizer.model


def test_equal_inputs_round_in_different_directions():
    weight = torch.tensor([[[0.5, 0.5]]])
    moments = torch.ones(1, 2, 2)
    generator = torch.Generator().manual_seed(0)
    integers = adaptive_rounding(weight, moments, torch.ones(1, 1, 1), -7, 7, generator=generator)
    assert sorted(integers.flatten().tolist()) == [0.0, 1.0]


def test_it_finds_nearly_the_best_of_all_roundings():
    torch.manual_seed(0)
    x = torch.randn(64, 6) @ torch.randn(6, 6)
    h, weight = (x.T @ x / 64)[None], torch.rand(1, 5, 6) * 4 - 2
    integers = adaptive_rounding(weight, h, torch.full((1, 5, 1), 0.3), -7, 7)

    def error(q):
        d = q * 0.3 - weight[0]
        return ((d @ h[0]) * d).sum(dim=1)

    floor = torch.floor(weight[0] / 0.3)
    best = torch.stack([error(floor + torch.tensor(up)) for up in itertools.product((0.0, 1.0), repeat=6)]).amin(0)
    nearest = error(torch.round(weight[0] / 0.3))
    assert (error(integers[0]) <= nearest + 1e-6).all()
    assert error(integers[0]).sum() < best.sum() + 0.5 * (nearest.sum() - best.sum())
    assert ((integers[0] - floor) * (integers[0] - floor - 1) == 0).all()


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(6, 4), (5, 6)),
        (nn.Linear(6, 4), (2, 3, 6)),
        (nn.Conv2d(4, 6, 3, padding=1, stride=2), (3, 4, 7, 6)),
        (nn.Conv2d(4, 8, (3, 2), groups=2, dilation=(1, 2)), (3, 4, 7, 6)),
        (nn.Conv2d(4, 8, 3, groups=4, padding="same"), (3, 4, 7, 6)),
        (nn.Conv1d(3, 5, 3, padding=2, padding_mode="circular"), (2, 3, 9)),
        (nn.Conv3d(2, 4, 2), (2, 2, 3, 4, 3)),
    ],
)
def test_moments_give_the_change_of_the_output(layer, shape):
    torch.manual_seed(0)
    x = torch.randn(shape).double()
    layer = layer.double()
    moments = InputMoments()
    for part in x.split(2):
        moments.add(layer, part)
    change = torch.randn_like(layer.weight) * 0.1
    with torch.no_grad():
        before = layer(x)
        layer.weight += change
        moved = layer(x) - before
    axis = -1 if isinstance(layer, nn.Linear) else 1
    groups = getattr(layer, "groups", 1)
    d = change.reshape(groups, -1, moments.second.shape[1])
    expected = torch.einsum("gci,gij,gcj->gc", d, moments.second, d).flatten()
    rows = moved.movedim(axis, 0).flatten(1)
    assert torch.allclose(rows.square().mean(dim=1), expected, rtol=1e-8)
    means = (d * moments.mean[:, None]).sum(dim=2).flatten()
    assert torch.allclose(rows.mean(dim=1), means, rtol=1e-7, atol=1e-10)


class Net(nn.Sequential):
    def __init__(self):
        super().__init__(
            nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.ReLU(),
            nn.ConvTranspose2d(8, 4, 2), nn.Flatten(), nn.Linear(100, 4),
        )  # fmt: skip


def images(count=4):
    torch.manual_seed(1)
    return [F.avg_pool2d(torch.randn(16, 3, 10, 10), 3, 1) + 0.3 for _ in range(count)]


@pytest.mark.parametrize("bits", [2, 4])
def test_outputs_are_nearer_than_with_rounding_to_nearest(bits):
    torch.manual_seed(0)
    model, data = Net().eval(), images()
    with torch.no_grad():
        want = model(torch.cat(data))
        model = prepared(model, data, bits)
        before = (model(torch.cat(data)) - want).square().mean()
        report = adaround_(model, data, iterations=200)
        after = (model(torch.cat(data)) - want).square().mean()
    assert set(report.ratio) == {"0", "3", "7"} and all(ratio < 1 for ratio in report.ratio.values())
    assert "not covered" in report.skipped["5"]
    assert after < 0.8 * before
    integers = model[0].wrapped_module.weight
    assert torch.equal(integers, integers.round()) and integers.abs().max() <= 2 ** (bits - 1) - 1


def test_setting_a_scale_afterwards_keeps_the_rounding():
    data = images(1)
    model = prepared(Net().eval(), data)
    adaround_(model, data, iterations=20)
    integers = model[3].wrapped_module.weight.clone()
    model[3].force_readjust.fill_(True)
    model(data[0])
    assert torch.equal(model[3].wrapped_module.weight, integers)


def test_the_seed_decides_and_data_may_be_limited():
    data = images()
    results = []
    for _ in range(2):
        torch.manual_seed(0)
        model = prepared(Net().eval(), data)
        adaround_(model, data, iterations=30, seed=3, samples=16)
        results.append(model[7].wrapped_module.weight.clone())
    assert torch.equal(*results)


def test_weights_alone_and_per_tensor():
    torch.manual_seed(0)
    data = images(2)
    for settings in ({"bits_activations": None}, {"per_channel_wts": False}):
        model = Net().eval()
        want = model(data[0]).detach()
        model = prepared(model, data, 3, **settings)
        before = (model(data[0]) - want).square().mean()
        adaround_(model, data, iterations=100)
        assert (model(data[0]) - want).square().mean() < before


def test_a_time_limit_leaves_later_layers_alone():
    data = images(1)
    model = prepared(Net().eval(), data)
    report = adaround_(model, data, time_limit_s=0.0)
    assert not report.ratio and report.skipped["0"] == "the time was up"


def test_mistakes():
    data = images(1)
    with pytest.raises(LifecycleError, match="prepare"):
        adaround_(Net().eval(), data)
    with pytest.raises(LifecycleError, match="save_fp_weights"):
        adaround_(prepared(Net().eval(), data, save_fp_weights=False), data)
    model = prepared(Net().eval(), data)
    with pytest.raises(TargetError):
        adaround_(model, data, layers=["conv"])
    with pytest.raises(CalibrationError):
        adaround_(model, [])
    for wrong in ({"iterations": 0}, {"learning_rate": -1}, {"warm_up": 1.0}):
        with pytest.raises(ArgumentError):
            adaround_(model, data, **wrong)
