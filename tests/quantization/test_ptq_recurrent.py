"""torch's recurrent layers are calibrated and quantized as what they are made of; attention stays in floating point."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from distiller_ng.data_loggers import QuantCalibrationStatsCollector, collect_quant_stats, load_quant_stats
from distiller_ng.errors import CalibrationError, TargetError
from distiller_ng.modules import DistillerGRU, DistillerLSTM
from distiller_ng.quantization import (
    PostTrainLinearQuantizer,
    RangeLinearQuantEltwiseAddWrapper,
    RangeLinearQuantParamLayerWrapper,
)
from distiller_ng.quantization.exporting import exporting

pytestmark = pytest.mark.filterwarnings("ignore::distiller_ng.errors.ScheduleWarning")

TOKENS = torch.arange(10).reshape(2, 5)


class Language(nn.Module):
    def __init__(self, kind=nn.LSTM, **settings):
        super().__init__()
        self.embedding, self.rnn = nn.Embedding(10, 6), kind(6, 4, batch_first=True, **settings)
        self.fc = nn.Linear(8 if settings.get("bidirectional") else 4, 10)

    def forward(self, x):
        y, _ = self.rnn(self.embedding(x))
        return self.fc(y)


def language(kind=nn.LSTM, **settings):
    torch.manual_seed(0)
    return Language(kind, **settings).eval()


def run(model):
    return model(TOKENS)


@pytest.mark.parametrize("settings", [{}, {"num_layers": 2, "bidirectional": True}, {"bias": False}])
@pytest.mark.parametrize("kind, parts", [(nn.LSTM, DistillerLSTM), (nn.GRU, DistillerGRU)])
def test_static(kind, parts, settings):
    model = language(kind, **settings)
    expected = model(TOKENS)
    stats = collect_quant_stats(model, run)
    assert isinstance(model.rnn, kind)
    assert stats["rnn"]["output"]["max"] == stats["fc"]["inputs"][0]["max"]
    assert {"rnn.cells.0.fc_gate_x", "rnn.cells.0.fc_gate_h"} <= set(stats)
    assert load_quant_stats(stats, model).keys() == stats.keys()
    quantizer = PostTrainLinearQuantizer(model, mode="ASYMMETRIC_UNSIGNED", model_activation_stats=stats)
    assert quantizer.plan()["rnn.cells.0.fc_gate_h"].weights == 8
    assert isinstance(model.rnn, kind)
    quantizer.prepare_model(TOKENS)
    model.eval()
    assert isinstance(model.rnn, parts)
    assert isinstance(model.rnn.cells[0].fc_gate_x, RangeLinearQuantParamLayerWrapper)
    found = model(TOKENS)
    assert (found - expected).abs().max() < 0.05
    with exporting(model):
        assert (model(TOKENS) - found).abs().max() < 0.05


def test_dynamic_and_weights_alone():
    for settings in ({}, {"bits_activations": None}):
        model = language()
        expected = model(TOKENS)
        PostTrainLinearQuantizer(model, **settings).prepare_model(TOKENS)
        model.eval()
        assert isinstance(model.rnn, DistillerLSTM)
        assert (model(TOKENS) - expected).abs().max() < 0.05


def test_overrides_reach_the_parts_and_can_keep_the_layer():
    model = language()
    stats = collect_quant_stats(model, run)
    overrides = {r"rnn\.cells\.0\.eltwiseadd.*": {"bits_activations": 5}}
    PostTrainLinearQuantizer(model, model_activation_stats=stats, overrides=overrides).prepare_model(TOKENS)
    add = model.rnn.cells[0].eltwiseadd_gate
    assert isinstance(add, RangeLinearQuantEltwiseAddWrapper) and add.output_quant_settings.num_bits == 5
    model = language()
    quantizer = PostTrainLinearQuantizer(model, model_activation_stats=stats, overrides={"rnn": None})
    quantizer.prepare_model(TOKENS)
    assert type(model.rnn) is nn.LSTM
    with pytest.raises(TargetError, match="rnn.cells.7"):
        PostTrainLinearQuantizer(language(), model_activation_stats=stats, overrides={"rnn.cells.7": None})


def test_older_statistics_leave_the_layer_alone():
    model = language()
    expected = model(TOKENS)
    stats = {name: entry for name, entry in collect_quant_stats(model, run).items() if not name.startswith("rnn.")}
    quantizer = PostTrainLinearQuantizer(model, model_activation_stats=stats)
    quantizer.prepare_model(TOKENS)
    assert isinstance(model.rnn, nn.LSTM) and "LSTM" in quantizer.plan()["rnn"].note
    assert (model.eval()(TOKENS) - expected).abs().max() < 0.05


def test_shared_layers_cells_and_what_has_no_parts():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = self.second = nn.GRU(3, 3)
            self.cell, self.projected = nn.LSTMCell(3, 3), nn.LSTM(3, 3, proj_size=2)

        def forward(self, x):
            x = self.second(self.first(x)[0])[0]
            return self.projected(x)[0], self.cell(x[0])[0]

    model, x = Net().eval(), torch.rand(4, 2, 3)
    expected = model(x)
    stats = collect_quant_stats(model, lambda model: model(x))
    assert "projected" in stats and "projected.cells" not in str(list(stats)) and "cell.fc_gate_x" in stats
    PostTrainLinearQuantizer(model, model_activation_stats=stats).prepare_model(x)
    model.eval()
    assert model.first is model.second and isinstance(model.first, DistillerGRU)
    assert isinstance(model.projected, nn.LSTM)
    for one, other in zip(model(x), expected):
        assert (one - other).abs().max() < 0.05


def test_a_collector_that_fails_puts_the_layers_back():
    model = language()
    collector = QuantCalibrationStatsCollector(model)
    with pytest.raises(TargetError, match="nowhere"):
        collector.start(["nowhere"])
    assert isinstance(model.rnn, nn.LSTM) and not collector.is_collecting
    collector.start(["rnn"])
    assert isinstance(model.rnn, DistillerLSTM) and collector.is_collecting
    model(TOKENS)
    collector.stop()
    assert isinstance(model.rnn, nn.LSTM) and not collector.is_collecting
    assert all(name.startswith("rnn") for name in collector.value())
    with pytest.raises(CalibrationError, match="another model"):
        load_quant_stats({**collector.value(), "rnn.cells.9.act_i": {"output": {"min": 0, "max": 1}}}, model)


def test_attention_stays_in_floating_point_and_the_plan_says_so():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.attention = nn.Linear(4, 4), nn.MultiheadAttention(4, 2, batch_first=True)

        def forward(self, x):
            x = self.fc(x)
            return x + self.attention(x, x, x, need_weights=False)[0]

    torch.manual_seed(0)
    model, x = Net().eval(), torch.rand(2, 3, 4)
    expected, weight = model(x), model.attention.in_proj_weight.clone()
    stats = collect_quant_stats(model, lambda model: model(x))
    quantizer = PostTrainLinearQuantizer(model, mode="ASYMMETRIC_UNSIGNED", model_activation_stats=stats)
    quantizer.prepare_model(x)
    model.eval()
    assert torch.equal(model.attention.in_proj_weight, weight)
    assert "attention" in quantizer.plan()["attention.out_proj"].note.lower()
    assert "MultiheadAttention" in quantizer.plan()["attention"].note
    assert (model(x) - expected).abs().max() < 0.02
    assert quantizer._factory.left == {}
