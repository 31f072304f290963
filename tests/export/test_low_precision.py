import pytest
import torch
from torch import nn

from distiller_ng.errors import ArgumentError, ExportError
from distiller_ng.export.low_precision import convert_precision
from distiller_ng.export.onnx_runtime import OnnxModule
from distiller_ng.export.packed_loading import load_packed
from distiller_ng.export.sparse import save_sparse
from distiller_ng.quantization import PostTrainLinearQuantizer
from distiller_ng.quantization.exporters import export_issues, export_model


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.position = nn.Parameter(torch.randn(8))
        self.fc = nn.Linear(8, 5)
        self.softmax = nn.Softmax(-1)

    def forward(self, x):
        return self.softmax(self.fc(self.norm(self.conv(x)).amax((2, 3)) + self.position))


IMAGES = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("name", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
def test_weights_are_converted_and_norms_are_not(name, dtype):
    model = Net().eval()
    report = convert_precision(model, name, IMAGES)
    assert report.tensors["conv.weight"] == report.tensors["position"] == dtype
    assert report.tensors["norm.weight"] == report.tensors["norm.running_var"] == torch.float32
    assert set(report.kept) == {"norm", "softmax"}
    assert report.model(IMAGES).dtype == torch.float32
    assert 0 < report.agreement.noise < 0.02
    assert model.conv.weight.dtype == torch.float32 and type(model) is Net
    assert report.bytes < 0.65 * report.float_bytes
    assert "kept in float32: norm" in str(report)


def test_named_modules_are_kept():
    report = convert_precision(Net(), torch.bfloat16, IMAGES, keep=["fc"])
    assert report.tensors["fc.weight"] == torch.float32
    assert report.kept["fc"] == "as asked"


def test_weights_beyond_the_format_are_refused_by_name():
    model = Net()
    with torch.no_grad():
        model.fc.weight[0, 0] = 70000.0
    with pytest.raises(ExportError, match="fc.weight has the value 70000, and float16 ends at 65504"):
        convert_precision(model, "fp16")
    assert export_issues(model, "onnx_fp16", IMAGES)[0].startswith("fc.weight has the value 70000")
    assert convert_precision(model, "bf16").tensors["fc.weight"] == torch.bfloat16
    with torch.no_grad():
        model.fc.weight[0, 0] = float("nan")
    with pytest.raises(ExportError, match="fc.weight has the value nan"):
        convert_precision(model, "bf16")


def test_activations_that_overflow_are_refused_by_name():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    with torch.no_grad():
        model[0].weight.fill_(60000.0)
    with pytest.raises(ExportError, match="output of '0' is not finite"):
        convert_precision(model, "fp16", torch.ones(1, 4))


def test_weights_that_vanish_are_counted():
    model = nn.Sequential(nn.Linear(4, 4, bias=False))
    with torch.no_grad():
        model[0].weight.fill_(1e-9)
    assert convert_precision(model, "fp16").vanished == {"0.weight": 16}


def test_tied_weights_stay_tied():
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5, bias=False))
    model[1].weight = model[0].weight
    report = convert_precision(model, "bf16", torch.arange(3))
    assert report.model[0].weight is report.model[1].weight
    with pytest.raises(ExportError, match="0.weight is tied to a tensor that stays"):
        convert_precision(model, "bf16", keep=["1"])


def test_transformers_run():
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
    report = convert_precision(layer, "bf16", torch.randn(2, 3, 16))
    assert set(report.kept) == {"norm1", "norm2"}
    assert report.agreement.noise < 0.02


def test_files_come_back(tmp_path):
    report = convert_precision(Net(), "fp16")
    save_sparse(report.model, tmp_path / "net.safetensors")
    loaded = load_packed(lambda: convert_precision(Net(), "fp16").model, tmp_path / "net.safetensors")
    with torch.no_grad():
        assert torch.equal(loaded(IMAGES), report.model(IMAGES))


def test_onnx_files_are_half_as_large(tmp_path):
    model = nn.Sequential(nn.Linear(256, 256), nn.LayerNorm(256), nn.Linear(256, 8)).eval()
    x = torch.randn(4, 256)
    report = export_model(model, "onnx_fp16", x, tmp_path / "net")
    assert report.path == tmp_path / "net.onnx"
    assert report.bytes == report.path.stat().st_size < 0.55 * report.float_bytes
    assert 0 < report.agreement.noise < 0.01
    assert OnnxModule(report.path)(x).dtype == torch.float32


def test_wrong_arguments():
    with pytest.raises(ArgumentError, match="'fp16' or 'bf16', got 'fp8'"):
        convert_precision(Net(), "fp8")
    with pytest.raises(ArgumentError, match="Did you mean 'conv'"):
        convert_precision(Net(), "fp16", keep=["convv"])
    with pytest.raises(ArgumentError, match="write a list"):
        convert_precision(Net(), "fp16", keep="conv")
    with pytest.raises(ArgumentError, match="unknown option 'tolerence'"):
        export_model(Net(), "onnx_fp16", IMAGES, tolerence=1)
    with pytest.raises(ExportError, match="noise"):
        convert_precision(Net(), "bf16", IMAGES, tolerance=1e-9)
    model = nn.Sequential(nn.Linear(4, 4))
    PostTrainLinearQuantizer(model, bits_activations=None).prepare_model(torch.randn(1, 4))
    with pytest.raises(ArgumentError, match="the model is quantized"):
        convert_precision(model, "fp16")
