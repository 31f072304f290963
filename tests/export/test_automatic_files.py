"""Files written of what ``quantize`` chose: compared on several samples, quiet."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

import distiller_ng as distiller


def net() -> nn.Module:
    torch.manual_seed(2)
    return nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(96, 10))


def test_the_file_is_compared_on_sixteen_samples_held_back_and_nothing_is_warned_of(tmp_path):
    data = [torch.randn(32, 1, 8, 8) for _ in range(3)]
    quantized = distiller.quantize(net(), data, effort="fast")
    assert torch.equal(quantized.example_inputs, data[2][:16])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = quantized.convert("onnx", tmp_path / "net.onnx")
    assert report.agreement.samples == 16
    assert str(report).endswith("16 samples")


def test_own_example_inputs_are_what_is_compared_on(tmp_path):
    own = torch.randn(1, 1, 8, 8)
    quantized = distiller.quantize(net(), [torch.randn(32, 1, 8, 8)], effort="fast", example_inputs=own)
    assert str(quantized.convert("onnx", tmp_path / "net.onnx")).endswith("1 sample")


def test_a_floating_point_file_has_one_line_about_its_layers(tmp_path):
    text = str(distiller.export_model(net(), "onnx", torch.randn(2, 1, 8, 8), tmp_path / "net.onnx")).splitlines()
    assert text[1] == "3 layers in floating point: the model is not quantized"
    assert text[2].startswith("runtime against model: largest difference") and len(text) == 3


class Sequence(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.rnn, self.fc = kind(6, 8, batch_first=True), nn.Linear(8, 4)

    def forward(self, x):
        return self.fc(self.rnn(x)[0][:, -1])


@pytest.mark.parametrize(("kind", "words"), [(nn.LSTM, "see quantize_dynamic"), (nn.GRU, "larger and slower")])
@pytest.mark.parametrize("bits", [8, None])
def test_recurrent_layers_stay_one_operator(tmp_path, kind, words, bits):
    torch.manual_seed(0)
    model, data = Sequence(kind).eval(), [torch.randn(32, 12, 6) for _ in range(2)]
    quantized = distiller.quantize(model, data, effort="fast", bits_activations=bits)
    assert words in quantized.floating["rnn"] and words in quantized.summary()
    report = quantized.convert("onnx", tmp_path / "net.onnx")
    assert report.bytes < 10_000 and "rnn" in report.floating


def test_a_recurrent_layer_that_overrides_name_becomes_integers(tmp_path):
    torch.manual_seed(0)
    model, data = Sequence(nn.GRU).eval(), [torch.randn(32, 4, 6) for _ in range(2)]
    quantized = distiller.quantize(model, data, effort="fast", overrides={"rnn.*": {"bits_weights": 8}})
    report = quantized.convert("onnx", tmp_path / "net.onnx")
    assert {name for name in report.quantized if name.startswith("rnn.")}
