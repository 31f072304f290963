"""OpenVINO models: integer kernels, both files, refusals."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import distiller_ng
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


class _SharedZeroPoints(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.up, self.relu, self.head = nn.ConvTranspose2d(8, 8, 2, 2), nn.ReLU(), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.up(self.relu(self.b(self.relu(self.a(x))))))


def test_layers_with_equal_zero_points_run_as_integers_too() -> None:
    torch.manual_seed(0)
    data = [torch.randn(8, 3, 8, 8) for _ in range(4)]
    report = distiller_ng.quantize(_SharedZeroPoints(), data, effort="fast").convert("openvino")
    assert set(report.quantized) == {"a", "b", "up", "head"}
    assert not any(kernel in report.details["kernels"] for kernel in ("Convolution f32", "Deconvolution f32"))


class _Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.norm = nn.Linear(8, 24), nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).unsqueeze(1).chunk(3, dim=-1)
        return (q @ k.transpose(-2, -1)).softmax(-1) @ v


def test_what_the_runtime_fuses_into_a_floating_point_kernel_is_not_called_integer() -> None:
    torch.manual_seed(0)
    data = [torch.randn(8, 5, 8) for _ in range(4)]
    report = distiller_ng.quantize(_Attention(), data, effort="fast").convert("openvino")
    integer = sum(
        count
        for kernel, count in report.details["kernels"].items()
        if kernel.endswith(("MatMul u8", "FullyConnected u8", "MatMul i8"))
    )
    assert len(report.quantized) == integer
    assert all("OpenVINO" in reason for reason in report.floating.values())
