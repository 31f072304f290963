"""Quantization-aware training with batch norms folded: names stay, and what is quantized is what will be deployed."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import distiller_ng as distiller
from distiller_ng.checkpoint import load_checkpoint, save_checkpoint
from distiller_ng.errors import ScheduleWarning
from distiller_ng.quantization import QuantAwareTrainRangeLinearQuantizer, QuantizedLayer


class Net(nn.Module):
    def __init__(self, bias=False):
        super().__init__()
        self.conv1, self.bn1, self.relu1 = nn.Conv2d(2, 4, 3, bias=bias), nn.BatchNorm2d(4), nn.ReLU()
        self.conv2, self.fc = nn.Conv2d(4, 4, 3), nn.Linear(4, 3)

    def forward(self, x):
        return self.fc(self.conv2(self.relu1(self.bn1(self.conv1(x)))).mean((2, 3)))


def prepared(model, bits=16, **kwargs):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    quantizer = QuantAwareTrainRangeLinearQuantizer(
        model, optimizer, None, bits, bits, fold_bn=True, quantize_inputs=False, **kwargs
    )
    quantizer.prepare_model((torch.zeros(2, 2, 8, 8),))
    return quantizer


def new(bias=False):
    torch.manual_seed(0)
    return Net(bias)


def batch():
    torch.manual_seed(1)
    return torch.randn(8, 2, 8, 8)


@pytest.mark.parametrize("bias", [False, True])
def test_folded_training_is_the_training_of_the_two_layers(bias):
    model, plain, x = new(bias), new(bias), batch()
    names = list(dict(model.named_parameters()))
    quantizer = prepared(model)
    assert list(dict(model.named_parameters())) == names
    other = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9)
    for _ in range(4):
        for net, optimizer in ((model, quantizer.optimizer), (plain, other)):
            optimizer.zero_grad()
            net(x).square().mean().backward()
            optimizer.step()
    for (name, a), b in zip(model.named_parameters(), plain.parameters(), strict=True):
        if name != "conv1.bias":
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5, msg=name)
    torch.testing.assert_close(model.bn1.running_mean, plain.bn1.running_mean)
    torch.testing.assert_close(model.bn1.running_var, plain.bn1.running_var)
    torch.testing.assert_close(model.eval()(x), plain.eval()(x), rtol=1e-3, atol=1e-4)


def test_the_folded_weight_is_on_the_grid():
    model = new()
    with torch.no_grad():
        model.bn1.weight.copy_(torch.tensor([0.1, 1.0, 5.0, -2.0]))
        model.bn1.running_var.copy_(torch.tensor([0.5, 1.0, 2.0, 4.0]))
    prepared(model, 4, per_channel_wts=True)
    factor = model.bn1.weight / (model.bn1.running_var + model.bn1.eps).sqrt()
    folded = (model.conv1.weight * factor.reshape(-1, 1, 1, 1)).detach()
    step = folded.abs().amax((1, 2, 3), keepdim=True) / 7.5
    expected = torch.round(folded / step).clamp(-8, 7) * step
    torch.testing.assert_close(model.conv1.quantized("weight"), expected)
    torch.testing.assert_close(model.state_dict()["conv1.weight_scale"], (1 / step).flatten())
    seen = []
    model.relu1.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    x = batch()
    model.eval()(x)
    bias = model.conv1.quantized("bias")
    torch.testing.assert_close(seen[0], nn.functional.conv2d(x, expected, bias), rtol=1e-4, atol=1e-5)


def test_waiting_copies_export_and_freezing():
    model, plain, x = new(), new(), batch()
    quantizer = prepared(model, 8)
    quantizer.disable()
    assert torch.equal(model.train()(x), plain.train()(x))
    quantizer.enable()
    assert not torch.equal(model.eval()(x), plain.eval()(x))
    assert torch.equal(copy.deepcopy(model)(x), model(x))
    torch.testing.assert_close(torch.export.export(model, (x,), strict=False).module()(x), model(x))
    quantizer.freeze_batch_norms()
    before = model.bn1.running_mean.clone()
    model.train()(3 * x)
    assert torch.equal(model.bn1.running_mean, before)
    assert torch.equal(model.train()(x), model.eval()(x))


def test_pruned_weights_stay_zero_and_a_checkpoint_knows_the_pairs(tmp_path):
    model, x = new(), batch()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    linear = {"class": "QuantAwareTrainRangeLinearQuantizer", "bits_activations": 8, "bits_weights": 8, "fold_bn": True}
    schedule = {
        "pruners": {"p": {"class": "SparsityLevelParameterPruner", "levels": {"conv1.weight": 0.5}}},
        "quantizers": {"q": linear},
        "policies": [
            {"pruner": {"instance_name": "p"}, "starting_epoch": 0, "ending_epoch": 2},
            {"quantizer": {"instance_name": "q"}, "starting_epoch": 1, "ending_epoch": 3},
        ],
    }
    scheduler = distiller.dict_config(model, optimizer, schedule, example_inputs=(x,))
    for _ in scheduler.epochs(3):
        for part in scheduler.minibatches([x, x]):
            optimizer.zero_grad()
            scheduler.backward(model(part).square().mean())
            optimizer.step()
    quantized = model.conv1.quantized("weight")
    assert float((quantized == 0).double().mean()) >= 0.5
    path = save_checkpoint(2, "net", model, optimizer, scheduler, dir=tmp_path)
    loaded = load_checkpoint(Net(), path)[0]
    assert torch.equal(loaded.eval()(x), model.eval()(x))


def test_nothing_to_fold_is_said():
    model = nn.Sequential(nn.Linear(3, 3))
    quantizer = QuantAwareTrainRangeLinearQuantizer(model, torch.optim.SGD(model.parameters(), lr=0.1), fold_bn=True)
    with pytest.warns(ScheduleWarning, match="no batch norm directly follows"):
        quantizer.prepare_model()
    assert isinstance(model[0], QuantizedLayer)
