"""Grids for activations that training left in floating point, observed on data at export."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import distiller_ng as distiller
from distiller_ng.errors import ArgumentError, CalibrationError, ExportError
from distiller_ng.export import export_model, quantized_graph
from distiller_ng.export.added_grids import with_missing_grids
from distiller_ng.quantization import QuantAwareTrainRangeLinearQuantizer

X86 = {"activations": "ASYMMETRIC_UNSIGNED", "weights": "SYMMETRIC_RESTRICTED"}


class Block(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1, self.relu1 = nn.BatchNorm2d(outputs), nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2, self.relu2 = nn.BatchNorm2d(outputs), nn.ReLU()
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if stride > 1 else nn.Identity()

    def forward(self, x):
        y = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        return self.relu2(y + self.shortcut(x))


class Residual(nn.Module):
    """Like ResNet-20: a stem, blocks with and without a convolution beside them, average pooling, a classifier."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.relu = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()
        self.block1, self.block2 = Block(8, 8, 1), Block(8, 16, 2)
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(16, 5)

    def forward(self, x):
        x = self.block2(self.block1(self.relu(self.bn(self.conv(x)))))
        return self.fc(self.pool(x).flatten(1))


def aware(model, shape=(3, 8, 8), **settings):
    settings = {"bits_activations": 8, "bits_weights": 8, "mode": X86, "per_channel_wts": True, **settings}
    quantizer = QuantAwareTrainRangeLinearQuantizer(model, torch.optim.SGD(model.parameters(), 0.01), **settings)
    quantizer.prepare_model(torch.randn(2, *shape))
    model.train()
    for _ in range(3):
        model(torch.randn(16, *shape))
    model.eval()
    return quantizer


def test_a_residual_network_runs_as_integers_all_through(tmp_path):
    quantizer, images = aware(Residual()), torch.randn(200, 3, 8, 8)
    model = quantizer.model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    names, hooks = [name for name, _ in model.named_modules()], [len(m._forward_hooks) for m in model.modules()]

    report = quantizer.convert("onnx", tmp_path / "net.onnx", images[:32])
    assert report.details["kernels"]["QLinearConv"] == 3 and report.details["added_grids"] == {}
    assert list(report.floating) == ["block1.conv2", "block2.conv2", "block2.shortcut", "fc"]
    (note,) = report.notes
    assert note.startswith("4 layers with integer weights would compute with integers")
    assert "calibration_data=images" in note

    added = quantizer.convert("onnx", tmp_path / "int8.onnx", images[:32], calibration_data=images)
    kernels = added.details["kernels"]
    assert kernels["QLinearConv"] == 6 and kernels["QLinearAdd"] == 2 and kernels["QGemm"] == 1
    assert "Conv" not in kernels and "FusedConv" not in kernels and not added.floating
    grids = added.details["added_grids"]
    assert list(grids) == ["block1.conv2", "block2.conv2", "block2.shortcut", "pool.adaptive_avg_pool2d"]
    assert grids["block1.conv2"][0] < 0 < grids["block1.conv2"][1] and grids["pool.adaptive_avg_pool2d"][0] >= 0
    (note,) = added.notes
    assert note.startswith("calibration_data added 4 grids of 8 bits: block1.conv2 (-") and "200 samples" in note
    assert added.agreement.sqnr_db > 28 and added.agreement.top1 >= 0.9
    with torch.no_grad():
        expected, got = model(images), added.model(images)
    assert (got - expected).norm() < 0.04 * expected.norm()
    assert (got.argmax(1) == expected.argmax(1)).double().mean() > 0.95

    after = model.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[name], before[name]) for name in before)
    assert names == [name for name, _ in model.named_modules()] and not model.training
    assert hooks == [len(m._forward_hooks) for m in model.modules()]


def test_ranges_span_everything_the_data_does():
    class Add(nn.Module):
        def __init__(self):
            super().__init__()
            self.relu, self.conv = nn.ReLU(), nn.Conv2d(1, 1, 1, bias=False)
            nn.init.constant_(self.conv.weight, -2.0)

        def forward(self, x):
            x = self.relu(x)
            return self.conv(x) + x

    quantizer = aware(Add(), (1, 2, 2), mode="SYMMETRIC", per_channel_wts=False, quantize_inputs=False)
    x = torch.tensor([[-1.0, 0.0], [0.2, 0.5]]).reshape(1, 1, 2, 2)
    graph = quantized_graph(quantizer.model, x)
    batches = [x, (x / 3, torch.tensor([1]))]  # images alone, and with labels
    made = with_missing_grids(graph, quantizer.model, batches)
    (low, high) = made.added_grids["conv"]
    assert low == pytest.approx(-1, abs=0.02) and high == 0  # -2 times the largest
    rounding = [node for node in made.module.graph.nodes if "fake_quantize" in str(node.target)]
    grid = made.grids.written(rounding[-1])
    assert float(grid.scale) == pytest.approx(-low / 255) and int(grid.zero_point) == 255
    assert grid.zero_point.dtype == torch.uint8


@pytest.mark.parametrize(
    ("data", "error", "text"),
    [
        ([], CalibrationError, "no batches"),
        (torch.zeros(0, 3, 8, 8), CalibrationError, "no batches"),
        ([torch.zeros(0, 3, 8, 8)], CalibrationError, "no samples"),
        (
            torch.zeros(4, 1, 8, 8),
            CalibrationError,
            r"shape \(4, 1, 8, 8\), and the model was traced with \(any, 3, 8, 8",
        ),
        ([torch.zeros(3, 8, 8)], CalibrationError, r"batch 0 of calibration_data: input 'x' has shape \(3, 8, 8\)"),
        ([torch.zeros(2, 3, 8, 8), torch.zeros(2, 3, 8, 9)], CalibrationError, "batch 1 of calibration_data"),
        ([torch.zeros(2, 3, 8, 8, dtype=torch.float64)], CalibrationError, "float64"),
        ([{"x": torch.zeros(2, 3, 8, 8)}], CalibrationError, "0 positional arguments and x"),
        ([torch.full((2, 3, 8, 8), torch.nan)], CalibrationError, "NaN"),
        ([["cat", "dog", 3]], ArgumentError, "no tensor"),
        (5, ArgumentError, "DataLoader or a list of batches"),
        ("images", ArgumentError, "DataLoader or a list of batches"),
    ],
)
def test_unusable_data_is_refused(data, error, text, net_and_graph):
    model, graph = net_and_graph
    with pytest.raises(error, match=text):
        with_missing_grids(graph, model, data)


@pytest.fixture(scope="module")
def net_and_graph():
    torch.manual_seed(0)
    model = aware(Residual()).model
    return model, quantized_graph(model, torch.randn(2, 3, 8, 8))


def test_too_much_noise_is_said_before_anything_is_written(tmp_path):
    quantizer, x = aware(Residual()), torch.randn(4, 3, 8, 8)
    with pytest.raises(ExportError, match="grids that calibration_data adds change the outputs by a noise"):
        quantizer.convert("onnx", tmp_path / "a.onnx", x, calibration_data=x, tolerance=1e-5)
    assert not list(tmp_path.iterdir())
    report = quantizer.convert("onnx", None, x, calibration_data=iter([x]), tolerance=None)
    assert not report.floating


def test_nothing_is_added_where_nothing_is_missing():
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
    x = torch.randn(4, 3, 8, 8)
    report = aware(plain).convert("onnx", None, x, calibration_data=x)
    assert report.notes == ("calibration_data: no activation lacked a grid",)
    assert report.details["added_grids"] == {}
    assert export_model(nn.Linear(3, 2), "onnx", torch.randn(2, 3)).notes == ()


@pytest.mark.slow
@pytest.mark.parametrize("target", ["openvino", "torchao"])
def test_runtimes_that_need_no_outputs_on_grids_get_inputs_only(target):
    quantizer, x = aware(Residual()), torch.randn(16, 3, 8, 8)
    report = quantizer.convert(target, None, x, calibration_data=x)
    assert list(report.details["added_grids"]) == ["pool.adaptive_avg_pool2d"] and not report.floating
    assert report.agreement.sqnr_db > 28


class Joined(nn.Module):
    """A layer in floating point, a concatenation and a sum of three; the features are an output, too."""

    def __init__(self):
        super().__init__()
        self.stem, self.relu = nn.Conv2d(3, 4, 3, padding=1), nn.ReLU()
        self.left, self.right = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, padding=1)
        self.last, self.relu2 = nn.Conv2d(8, 8, 1), nn.ReLU()

    def forward(self, x):
        x = self.relu(self.stem(x))
        left, right = self.left(x), self.right(x)
        features = torch.cat([left + right + x, right], 1)
        return features, self.relu2(self.last(features))


def test_sums_and_concatenations_between_integers_and_outputs_in_floating_point():
    quantizer, x = aware(Joined()), torch.randn(16, 3, 8, 8)
    report = quantizer.convert("onnx", None, x, calibration_data=x, dynamic_batch=False)
    assert list(report.details["added_grids"]) == ["left", "right", "add", "add_1", "cat"]
    kernels = report.details["kernels"]
    assert kernels["QLinearConv"] == 4 and kernels["QLinearAdd"] == 2 and not report.floating
    assert report.agreement.sqnr_db > 28


def test_fixed_batches_are_cut_to_their_size():
    quantizer, x = aware(Residual()), torch.randn(7, 3, 8, 8)
    report = quantizer.convert("onnx", None, x[:4], calibration_data=x, dynamic_batch=False)
    assert not report.floating and "8 samples" in report.notes[0]  # one of them twice


def test_issues_say_how_to_get_the_rest():
    quantizer, x = aware(Residual()), torch.randn(4, 3, 8, 8)
    assert quantizer.issues("onnx", x)[-1].startswith("4 layers with integer weights would compute with integers")
    (only,) = quantizer.issues("onnx", x, calibration_data=x)
    assert only.startswith("calibration_data added 4 grids")


def test_names_at_the_top_level():
    assert distiller.quantize_qat_export is distiller.export.quantize_qat_export


def test_post_training_quantization_needs_no_advice():
    """It looked at every activation: the last layer's output is left in floating point on purpose."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1))
    quantized = distiller.quantize(net, [torch.randn(8, 1, 6, 6) for _ in range(2)], effort="fast")
    report = quantized.convert("onnx")
    assert any(not row.is_quantized for row in report.layers)
    assert not any("calibration_data" in note for note in report.notes)
