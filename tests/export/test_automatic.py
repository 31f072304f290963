"""quantize(model, loader): what it keeps, what it leaves, on networks of two or three layers."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from distiller_ng.errors import ArgumentError, CalibrationError
from distiller_ng.export.automatic import quantize
from distiller_ng.quantization.range_linear_params import RangeLinearQuantParamLayerWrapper


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.depthwise, self.conv2 = nn.Conv2d(8, 8, 3, groups=8, padding=1), nn.Conv2d(8, 8, 1)
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        x = x + self.conv2(torch.relu(self.depthwise(x)))
        return self.fc(x.mean((2, 3)))


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.norm = nn.Embedding(20, 8), nn.LayerNorm(8)
        self.up, self.act, self.down, self.head = nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8), nn.Linear(8, 3)

    def forward(self, input_ids, attention_mask=None):
        x = self.embedding(input_ids)
        x = x + self.down(self.act(self.up(self.norm(x))))
        return {"logits": self.head(x)}


def images(count=4, size=8):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(size, 3, 6, 6, generator=generator) for _ in range(count)]


def net():
    torch.manual_seed(0)
    model = Net()
    nn.init.uniform_(model.bn1.weight, 0.2, 3)
    return model


@pytest.fixture(scope="module")
def quantized():
    model = net()
    return model, quantize(model, images(), depthwise="int8")


def test_the_users_model_stays_as_it_is(quantized):
    model, result = quantized
    fresh = net()
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), fresh.state_dict().values(), strict=True))
    assert model.training and type(model.conv1) is nn.Conv2d and not model.conv1._forward_hooks
    assert not result.model.training


def test_the_outputs_are_near_and_the_last_layers_are_not_quantized(quantized):
    model, result = quantized
    x = torch.cat(images())
    want, found = copy.deepcopy(model).eval()(x), result(x)
    assert 10 * torch.log10(want.square().sum() / (want - found).square().sum()) > 25
    assert result.sqnr_db > 25 and 0 <= result.agreement <= 1
    assert isinstance(result.model.conv1, RangeLinearQuantParamLayerWrapper)
    assert isinstance(result.model.fc, RangeLinearQuantParamLayerWrapper) and not result.model.fc.quantizes_output
    assert found.unique().numel() > 150  # no grid of 256 steps


def test_the_summary_names_every_layer_and_what_was_done(quantized):
    _, result = quantized
    text = result.summary()
    for name in ("conv1", "depthwise", "conv2", "fc", "bias correction", "SQNR"):
        assert name in text
    assert result.layers["Name"][:4] == ["conv1", "depthwise", "conv2", "fc"]
    assert result.layers["Weights"][:4] == [8, 8, 8, 8]
    alone = [value for value in result.layers["SQNR alone (dB)"] if value is not None]
    assert len(alone) == 4 and all(20 < value < 80 for value in alone)


def test_depthwise_in_floating_point_and_overrides():
    result = quantize(net(), images(), depthwise="float", effort="fast", overrides={"conv2": {"bits_weights": 4}})
    assert isinstance(result.model.depthwise, nn.Conv2d) and "as asked" in result.floating["depthwise"]
    assert result.model.conv2.wts_quant_settings.num_bits == 4
    assert "left in floating point as asked" in result.summary()


def test_a_target_is_met_by_leaving_layers_in_floating_point():
    plain = quantize(net(), images(), bits_weights=3, effort="fast", depthwise="int8")
    wanted = plain.sqnr_db + 6
    result = quantize(net(), images(), bits_weights=3, effort="fast", depthwise="int8", min_sqnr=wanted)
    assert result.sqnr_db >= wanted
    bits = [row for row in result.layers["Weights"] if row != ""]
    assert set(bits) & {8, "float"} and any("more bits" in step for step in result.steps)


def test_everything_in_floating_point_meets_any_target():
    result = quantize(net(), images(2), effort="fast", min_sqnr=150, depthwise="int8")
    assert result.sqnr_db >= 100 and "to meet the target" in result.summary()


def test_weights_of_few_bits_are_rounded_adaptively():
    fast = quantize(net(), images(), bits_weights=3, effort="fast", depthwise="int8")
    result = quantize(net(), images(), bits_weights=3, depthwise="int8")
    assert result.sqnr_db >= fast.sqnr_db and any("AdaRound" in step for step in result.steps)


def test_a_transformer_keeps_norms_and_activations_and_takes_mappings():
    torch.manual_seed(0)
    data = [{"input_ids": torch.randint(0, 20, (4, 6)), "labels": torch.zeros(4)} for _ in range(3)]
    result = quantize(Encoder(), data, effort="fast")
    for name in ("norm", "act"):
        assert "floating point" in result.floating[name]
    assert isinstance(result.model.norm, nn.LayerNorm)
    assert result.model.up.wts_quant_settings.num_bits == 8
    assert result.sqnr_db > 25
    assert result(**{"input_ids": data[0]["input_ids"]})["logits"].shape == (4, 6, 3)


@pytest.mark.parametrize("form", ["tensors", "pairs", "loader", "one batch"])
def test_loaders_of_every_kind(form):
    batches = images(2)
    data = {
        "tensors": batches,
        "pairs": [(x, torch.zeros(len(x))) for x in batches],
        "loader": torch.utils.data.DataLoader(torch.cat(batches), batch_size=5),
        "one batch": [torch.cat(batches)],
    }[form]
    assert quantize(net(), data, effort="fast", depthwise="float").sqnr_db > 20


def test_weights_alone():
    result = quantize(net(), images(2), bits_activations=None, effort="fast")
    assert result.sqnr_db > 30 and result.model.conv2.wts_quant_settings.num_bits == 8


@pytest.mark.parametrize(
    ("data", "arguments", "error", "text"),
    [
        ([], {}, CalibrationError, "no batches"),
        ([torch.full((2, 3, 6, 6), float("nan"))], {}, CalibrationError, "NaN"),
        (torch.ones(2, 3, 6, 6), {}, ArgumentError, "list of batches"),
        (images(1), {"target": "avr"}, ArgumentError, "x86, arm"),
        (images(1), {"effort": "max"}, ArgumentError, "fast, normal, high"),
        (images(1), {"bits_weights": 1}, ArgumentError, "2 to 8"),
        (images(1), {"min_agreement": 97}, ArgumentError, "0 to 1"),
        (images(1), {"depthwise": True}, ArgumentError, "depthwise"),
    ],
)
def test_mistakes(data, arguments, error, text):
    with pytest.raises(error, match=text):
        quantize(net(), data, **arguments)


def test_a_model_that_computes_nan_is_refused():
    model = net()
    model.fc.bias.data.fill_(float("nan"))
    with pytest.raises(CalibrationError, match="itself"):
        quantize(model, images(1))
