"""Greedy search of post-training quantization."""

from __future__ import annotations

import argparse
import copy

import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import nn

from distiller_ng.data_loggers import collect_quant_stats
from distiller_ng.errors import ArgumentError
from distiller_ng.modules import EltwiseAdd
from distiller_ng.quantization import ClipMode, LinearQuantMode, PostTrainLinearQuantizer
from distiller_ng.quantization.ptq_greedy_search import (
    input_override_generator,
    layers_quant_order,
    load_overrides,
    module_override_generator,
    ptq_greedy_search,
    save_overrides,
)

pytestmark = pytest.mark.filterwarnings("ignore::distiller_ng.errors.ScheduleWarning")

IMAGES = torch.randn(32, 1, 6, 6, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn, self.relu = nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU()
        self.conv2, self.add = nn.Conv2d(4, 4, 3, padding=1), EltwiseAdd()
        self.relu2, self.fc = nn.ReLU(), nn.Linear(144, 3)

    def forward(self, x):
        y = self.relu(self.bn(self.conv1(x)))
        return self.fc(self.relu2(self.add(self.conv2(y), y)).flatten(1))


@pytest.fixture
def net():
    torch.manual_seed(0)
    model = Net()
    model(torch.randn(32, 1, 6, 6))
    return model.eval()


def score_against(model):
    with torch.no_grad():
        expected = model(IMAGES)
    return lambda model: -F.mse_loss(model.eval()(IMAGES), expected)


def test_what_is_tried():
    assert list(module_override_generator(nn.Linear(1, 1)))[1] == {
        "clip_acts": "AVG", "bits_weights": 8, "bits_activations": 8, "bits_bias": 32,
    }  # fmt: skip
    assert [one["clip_acts"] for one in input_override_generator(nn.Linear(1, 1))] == [
        "NONE", "AVG", "GAUSS", "LAPLACE",
    ]  # fmt: skip


def test_layers_in_order(net):
    assert layers_quant_order(net, IMAGES[:1]) == ["conv1", "bn", "relu", "conv2", "add", "relu2", "fc"]


def test_the_search(net, tmp_path):
    seen = []

    def four_bits(module):
        seen.append(type(module).__name__)
        for clip in ("NONE", "LAPLACE"):
            yield {"clip_acts": clip, "bits_weights": 6, "bits_activations": 4}

    fresh, score = copy.deepcopy(net), score_against(net)
    args = argparse.Namespace(arch="mynet", qe_no_quant_layers=["fc"], qe_per_channel=True)
    model, overrides = ptq_greedy_search(
        net, IMAGES[:1], score, args=args, module_override_gen_fn=four_bits, save_dir=tmp_path
    )
    assert model is net
    assert seen == ["Conv2d", "Conv2d", "EltwiseAdd"]
    assert list(overrides) == ["conv1", "conv2", "add"]
    assert overrides["conv2"]["bits_activations"] == 4
    assert set(overrides["conv1"]["input_overrides"]) == {0}
    assert type(model.fc) is nn.Linear
    assert model.conv1.output_quant_settings.quant_mode is LinearQuantMode.ASYMMETRIC_SIGNED
    assert model.conv1.w_scale.numel() == 4

    path = tmp_path / "mynet.ptq_greedy_search.yaml"
    loaded = load_overrides(path)
    assert loaded == overrides
    assert yaml.safe_load(path.read_text())["add"]["clip_acts"] in ("NONE", "LAPLACE")
    quantizer = PostTrainLinearQuantizer(
        fresh, None, None, overrides=loaded, mode="ASYMMETRIC_SIGNED", model_activation_stats=collected(fresh)
    )
    quantizer.prepare_model(IMAGES[:1])
    assert fresh.conv2.output_quant_settings.clip_mode is ClipMode[overrides["conv2"]["clip_acts"]]


def collected(model):
    return collect_quant_stats(model, lambda model: model.eval()(IMAGES))


def test_functions_are_decided_where_they_run():
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.conv2, self.fc = nn.Conv2d(1, 4, 1), nn.Conv2d(4, 4, 1), nn.Linear(144, 3)

        def forward(self, x):
            y = F.relu(self.conv1(x))
            return self.fc((self.conv2(y) + y).flatten(1))

    torch.manual_seed(0)
    model = Functional().eval()
    _, overrides = ptq_greedy_search(model, IMAGES[:1], score_against(model))
    assert list(overrides) == ["conv1", "conv2", "add", "fc"]


def test_it_is_not_worse_than_no_clipping(net):
    def three_bits(module):
        for clip in ("NONE", "AVG", "GAUSS", "LAPLACE"):
            yield {"clip_acts": clip, "bits_weights": 8, "bits_activations": 3}

    score, plain = score_against(net), copy.deepcopy(net)
    bits = {"bits_activations": 3, "bits_weights": 8}
    PostTrainLinearQuantizer(
        plain, None, None, mode="ASYMMETRIC_SIGNED", model_activation_stats=collected(plain),
        overrides={name: dict(bits) for name in ("conv1", "conv2", "add", "fc")},
    ).prepare_model(IMAGES[:1])  # fmt: skip
    before = score(plain)
    model, _ = ptq_greedy_search(net, IMAGES[:1], score, act_stats=collected(net), module_override_gen_fn=three_bits)
    assert score(model) > before


def test_statistics_are_collected_behind_what_is_quantized(net):
    passes = []

    def calibrate(model):
        passes.append(type(model.conv1).__name__)
        model(IMAGES)

    def one(module):
        yield {"clip_acts": "NONE", "bits_weights": 2, "bits_activations": 2}

    ptq_greedy_search(net, IMAGES[:1], score_against(net), calibrate, module_override_gen_fn=one,
                      input_override_gen_fn=lambda module: iter(()))  # fmt: skip
    assert passes == ["Conv2d"] + 3 * ["RangeLinearQuantParamLayerWrapper"]
    assert "input_overrides" not in net.state_dict()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"eval_fn": lambda model: "good"}, "one number"),
        ({"args": {"qe_no_quant_layers": ["fcc"]}}, "'fc'"),
        ({"module_override_gen_fn": lambda module: iter([{"clip_act": "AVG"}])}, "clip_act"),
        ({"eval_fn": None}, "function"),
    ],
)
def test_mistakes_leave_the_model_alone(net, arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    arguments = {"eval_fn": score_against(net), **arguments}
    with pytest.raises((ValueError, TypeError), match=message):
        ptq_greedy_search(net, IMAGES[:1], **arguments)
    assert before.keys() == net.state_dict().keys()
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert not list(tmp_path.iterdir())


def test_files(tmp_path):
    overrides = {"layer1.0.conv1": {"clip_acts": "AVG", "input_overrides": {0: {"clip_acts": "NONE"}}}}
    path = save_overrides(tmp_path / "new" / "o.yaml", overrides)
    assert load_overrides(path) == overrides
    path.write_text("- 1")
    with pytest.raises(ArgumentError, match="mapping"):
        load_overrides(path)
    path.write_text("a: [")
    with pytest.raises(ArgumentError, match="YAML"):
        load_overrides(path)
