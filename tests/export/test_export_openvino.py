"""OpenVINO models: integer kernels, both files, refusals."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from distiller_ng.errors import ArgumentError, ExportError
from distiller_ng.export import export_model
from distiller_ng.export.openvino_runtime import OpenVinoModule
from distiller_ng.quantization import QuantAwareTrainRangeLinearQuantizer

X86 = {"activations": "ASYMMETRIC_UNSIGNED", "weights": "SYMMETRIC_RESTRICTED"}


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn1, self.relu1 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()
        self.conv2, self.fc = nn.Conv2d(8, 8, 3), nn.Linear(8, 5)

    def forward(self, x):
        return self.fc(self.conv2(self.relu1(self.bn1(self.conv1(x)))).amax((2, 3)))


def quantized(bits=8, mode=X86):
    model = Net()
    made = QuantAwareTrainRangeLinearQuantizer(
        model, torch.optim.SGD(model.parameters(), 0.1), bits, 8, mode=mode, per_channel_wts=True
    )
    made.prepare_model()
    model.train()(torch.randn(8, 3, 8, 8))
    model.eval()
    return made


@pytest.mark.slow
def test_both_files_are_written_and_run_as_integers(tmp_path):
    x = torch.randn(8, 3, 8, 8)
    report = quantized().convert("openvino", tmp_path / "net", x, threads=1)
    assert [path.name for path in report.paths] == ["net.xml", "net.bin"]
    assert report.bytes == sum(path.stat().st_size for path in tmp_path.iterdir())
    # Without a grid behind it too: OpenVINO rounds no output that the model does not round.
    assert list(report.quantized) == ["conv1", "conv2"] and report.details["kernels"]["Convolution u8"] == 2
    assert report.agreement.sqnr_db > 40
    assert torch.allclose(OpenVinoModule(report.path)(x[:2]), report.model(x)[:2], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("bits", [4, 12, 16])
def test_other_widths_keep_their_values(bits):
    assert quantized(bits).convert("openvino", None, torch.randn(8, 3, 8, 8)).agreement.sqnr_db > 30


@pytest.mark.slow
def test_zero_points_that_differ_are_told():
    made = quantized(mode="ASYMMETRIC_UNSIGNED")
    report = made.convert("openvino", None, torch.randn(8, 3, 8, 8))
    assert "different zero points" in report.floating["conv2"]


def test_refusals_leave_nothing(tmp_path):
    with pytest.raises(ExportError, match="not kept"):
        quantized().convert("openvino", tmp_path / "net", torch.randn(4, 3, 8, 8), tolerance=0.0, reduce_range=True)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ArgumentError, match="unknown option"):
        export_model(Net(), "openvino", torch.randn(1, 3, 8, 8), tmp_path / "net", speed=3)
    with pytest.raises(ExportError, match="OpenVINO refuses"):
        OpenVinoModule(tmp_path / "missing.xml")
