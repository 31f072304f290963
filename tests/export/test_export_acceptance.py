"""Odd models through quantize() and convert(), from the outside."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import distiller_ng
from distiller_ng.errors import CalibrationError, ExportError
from distiller_ng.quantization.bias_correction import correct_biases_


class Reader(nn.Module):
    def __init__(self, kind: type[nn.RNNBase], bidirectional: bool) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 6)
        self.layer = kind(6, 8, batch_first=True, bidirectional=bidirectional)
        self.head = nn.Linear(16 if bidirectional else 8, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.layer(self.table(tokens))[0][:, -1])


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(6, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        return {"out": self.c(F.elu(self.a(x) - self.b(y))), "aux": self.a(x)}


#: Recurrent layers stay in floating point unless they are named.
AS_INTEGERS = {"layer.*": {"bits_weights": 8}}


@pytest.mark.parametrize(("kind", "bidirectional"), [(nn.LSTM, False), (nn.GRU, True)])
def test_recurrent_models_are_quantized_and_take_any_batch(kind: type[nn.RNNBase], bidirectional: bool) -> None:
    torch.manual_seed(0)
    model = Reader(kind, bidirectional)
    tokens = [torch.randint(0, 20, (16, 3)) for _ in range(4)]
    quantized = distiller_ng.quantize(model, tokens, effort="fast", overrides=AS_INTEGERS)
    assert quantized.sqnr_db > 20 and type(model.layer) is kind
    report = quantized.convert("onnx")  # with one sample
    assert not report.notes and not report.floating
    for batch in (tokens[0][:1], tokens[1][:5]):
        assert (report.model(batch) - model(batch)).abs().max() < 0.1
        assert report.model(batch).shape == (len(batch), 3)


def test_keyword_inputs_leave_the_batch_free() -> None:
    torch.manual_seed(0)
    data = [{"x": torch.randn(16, 4), "y": torch.randn(16, 6)} for _ in range(4)]
    report = distiller_ng.quantize(TwoInputs(), data, effort="fast").convert("onnx")
    assert report.notes == ()
    assert report.model(x=data[0]["x"][:7], y=data[0]["y"][:7])[0].shape == (7, 2)


def test_biases_of_recurrent_layers_are_corrected_against_torchs_own() -> None:
    torch.manual_seed(0)
    model = Reader(nn.LSTM, False)
    tokens = [torch.randint(0, 20, (16, 3)) for _ in range(2)]
    quantized = distiller_ng.quantize(model, tokens, effort="fast", overrides=AS_INTEGERS)
    added = correct_biases_(quantized.model, copy.deepcopy(model), tokens)
    assert set(added) == {"layer.cells.0.fc_gate_x", "layer.cells.0.fc_gate_h", "head"}
    assert all(value.abs().max() < 0.1 for value in added.values())


class FixedBatch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.layer(x[place : place + 1]) for place in range(len(x))])


def test_a_model_whose_batch_is_fixed_keeps_the_batch_of_the_example() -> None:
    data = [torch.randn(1, 4) for _ in range(8)]
    quantized = distiller_ng.quantize(FixedBatch(), data, effort="fast")
    report = quantized.convert("onnx", dummy_input=data[0])
    assert "(1, 4)" in report.notes[0]
    assert report.model(data[1]).shape == (1, 3)
    with pytest.raises(ExportError, match=r"takes .*\[1, 4\]; got .*\[2, 4\]"):
        report.model(torch.randn(2, 4))


def test_quantize_says_its_steps_in_lines_for_debugging(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="distiller_ng.export.automatic"):
        quantized = distiller_ng.quantize(nn.Sequential(nn.Linear(4, 3)), [torch.randn(8, 4)] * 4, effort="fast")
    assert [record.getMessage() for record in caplog.records if "automatic" in record.name] == list(quantized.steps)
    assert all(record.levelno == logging.DEBUG for record in caplog.records if record.name.endswith("automatic"))


def test_data_of_another_shape_is_told() -> None:
    with pytest.raises(CalibrationError, match="does not run on the calibration data: RuntimeError"):
        distiller_ng.quantize(nn.Sequential(nn.Linear(4, 3)), [torch.randn(8, 5)] * 4)
