"""MACs and volumes of layers, against counts done by hand."""

import pytest
import torch
from torch import nn

from distiller_ng.reports.compute import (
    COMPUTE_COLUMNS,
    layer_costs,
    model_performance_summary,
    model_performance_tbl_summary,
)


class Simplenet(nn.Module):
    """Two convolutions and three linear layers for 3 x 32 x 32 images."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 5)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.pool = nn.MaxPool2d(2)
        self.drop = nn.Dropout(0.5)
        self.bn = nn.BatchNorm2d(16)
        self.fc1, self.fc2, self.fc3 = nn.Linear(400, 120), nn.Linear(120, 84), nn.Linear(84, 10)

    def forward(self, x):
        x = self.pool(self.conv1(x).relu())
        x = self.pool(self.bn(self.conv2(x)).relu())
        return self.fc3(self.fc2(self.fc1(self.drop(x.flatten(1))).relu()).relu())


def test_simplenet():
    table = model_performance_summary(Simplenet(), torch.randn(1, 3, 32, 32), 1)
    assert table["MACs"] == [352800, 240000, 48000, 10080, 840]
    assert table.columns == COMPUTE_COLUMNS == (
        "Name", "Type", "Attrs", "IFM", "IFM volume", "OFM", "OFM volume", "Weights volume", "MACs"
    )  # fmt: skip
    assert table.rows[0] == ("conv1", "Conv2d", "k=(5, 5)", "(1, 3, 32, 32)", 3072, "(1, 6, 28, 28)", 4704, 450, 352800)
    assert table.rows[4] == ("fc3", "Linear", "", "(1, 84)", 84, "(1, 10)", 10, 840, 840)


def test_text():
    text = model_performance_tbl_summary(Simplenet(), torch.randn(1, 3, 32, 32), 1)
    assert text.splitlines()[3].split()[:2] == ["conv1", "Conv2d"] and "352800" in text


def test_a_batch_counts_for_every_layer():
    costs = layer_costs(Simplenet(), torch.randn(4, 3, 32, 32))
    assert [c.macs for c in costs] == [4 * macs for macs in (352800, 240000, 48000, 10080, 840)]


def test_the_model_is_left_as_it_was():
    net = Simplenet()
    net.bn.eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    layer_costs(net, torch.randn(2, 3, 32, 32))
    assert net.training and not net.bn.training and net.drop.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not any(module._forward_hooks for module in net.modules())


def test_hooks_go_when_the_forward_pass_fails():
    net = Simplenet()
    with pytest.raises(RuntimeError):
        layer_costs(net, torch.randn(1, 1, 32, 32))
    assert net.training and not any(module._forward_hooks for module in net.modules())


@pytest.mark.parametrize(
    ("layer", "shape", "volume", "macs"),
    [
        (nn.Conv1d(4, 6, 3), (1, 4, 10), 72, 6 * 8 * 4 * 3),
        (nn.Conv2d(4, 8, 3, padding=1, groups=2), (2, 4, 5, 5), 144, 2 * 8 * 25 * 2 * 9),
        (nn.Conv2d(32, 32, 3, stride=2, padding=1, groups=32), (1, 32, 8, 8), 288, 32 * 16 * 9),
        (nn.Conv3d(2, 3, 2), (1, 2, 4, 4, 4), 48, 3 * 27 * 2 * 8),
        (nn.ConvTranspose2d(4, 6, 2, stride=2), (1, 4, 5, 5), 96, 4 * 25 * 6 * 4),
        (nn.ConvTranspose1d(4, 6, 3, groups=2), (2, 4, 5), 36, 2 * 4 * 5 * 3 * 3),
        (nn.Linear(8, 3), (2, 5, 8), 24, 2 * 5 * 8 * 3),
    ],
)
def test_layers(layer, shape, volume, macs):
    (cost,) = layer_costs(nn.Sequential(layer), torch.randn(shape))
    assert (cost.weights_volume, cost.macs, cost.name) == (volume, macs, "0")


def test_bilinear():
    (cost,) = layer_costs(nn.Bilinear(3, 4, 5), (torch.randn(2, 3), torch.randn(2, 4)))
    assert (cost.weights_volume, cost.macs) == (60, 2 * 5 * 12)


def test_attention_projections():
    attention = nn.MultiheadAttention(8, 2, kdim=6, vdim=4, batch_first=True)
    inputs = {"query": torch.randn(2, 5, 8), "key": torch.randn(2, 7, 6), "value": torch.randn(2, 7, 4)}
    into, out = layer_costs(attention, inputs)
    assert (into.name, into.weights_volume) == ("in_proj", 8 * (8 + 6 + 4))
    assert into.macs == 2 * 8 * (5 * 8 + 7 * 6 + 7 * 4)
    assert (out.name, out.weights_volume, out.macs) == ("out_proj", 64, 2 * 5 * 64)


def test_transformer_encoder_in_evaluation_mode():
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 1).eval()
    costs = {c.name: c.macs for c in layer_costs(encoder, torch.randn(1, 5, 8))}
    assert costs == {
        "layers.0.self_attn.in_proj": 5 * 192,
        "layers.0.self_attn.out_proj": 5 * 64,
        "layers.0.linear1": 5 * 128,
        "layers.0.linear2": 5 * 128,
    }


def test_recurrent_layers():
    lstm = nn.LSTM(3, 4, num_layers=2, bidirectional=True)
    weights = 2 * (16 * 3 + 16 * 4) + 2 * (16 * 8 + 16 * 4)
    (cost,) = layer_costs(lstm, torch.randn(5, 2, 3))
    assert (cost.weights_volume, cost.macs, cost.ofm) == (weights, 5 * 2 * weights, "(5, 2, 8)")
    packed = nn.utils.rnn.pack_sequence([torch.randn(5, 3), torch.randn(2, 3)])
    (cost,) = layer_costs(lstm, (packed,))
    assert cost.macs == 7 * weights


def test_a_layer_that_runs_twice_costs_twice():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x):
            return self.fc(input=self.fc(x))

    assert model_performance_summary(nn.DataParallel(Twice()), torch.randn(1, 4))["Name"] == ["fc", "fc"]
