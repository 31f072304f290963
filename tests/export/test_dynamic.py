import logging

import pytest
import torch
from torch import nn

from distiller_ng.errors import ArgumentError, ExportError
from distiller_ng.export.dynamic import quantize_dynamic
from distiller_ng.export.onnx_runtime import OnnxModule
from distiller_ng.export.quantized_graph import quantized_graph
from distiller_ng.export.torchao_lowering import lower_dynamically_
from distiller_ng.quantization import PostTrainLinearQuantizer
from distiller_ng.quantization.exporters import EXPORTERS, export_issues


class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(30, 16)
        self.rnn = nn.LSTM(16, 32, batch_first=True, bidirectional=True)
        self.tags = nn.Linear(64, 5)

    def forward(self, tokens):
        return self.tags(self.rnn(self.words(tokens))[0])


TOKENS = torch.randint(0, 30, (4, 6), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("types", "kernels", "layers"),
    [
        (None, {"DynamicQuantizeLSTM": 1, "DynamicQuantizeMatMul": 1}, {"rnn", "tags"}),
        ({nn.LSTM, nn.Linear}, {"DynamicQuantizeLSTM": 1, "DynamicQuantizeMatMul": 1}, {"rnn", "tags"}),
        ({"Linear"}, {"DynamicQuantizeMatMul": 1}, {"tags"}),
        ([nn.LSTM], {"DynamicQuantizeLSTM": 1}, {"rnn"}),
    ],
)
def test_the_chosen_layers_run_as_integers(types, kernels, layers):
    model = Tagger().eval()
    report = quantize_dynamic(model, TOKENS, types)
    assert report.details["kernels"] == kernels
    assert set(report.quantized) == layers
    assert all(reason == "its type was not chosen" for reason in report.floating.values())
    assert 0 < report.agreement.noise < 0.05
    assert torch.allclose(report.model(TOKENS[:1]), model(TOKENS[:1]), atol=0.02)  # the batch may vary


def test_the_file_shrinks_and_runs(tmp_path):
    report = quantize_dynamic(Tagger().eval(), TOKENS, {"LSTM", "Linear", "Embedding"}, path=tmp_path / "tagger")
    assert report.path == tmp_path / "tagger.onnx"
    assert report.bytes == report.path.stat().st_size < 0.6 * report.float_bytes
    assert torch.equal(OnnxModule(report.path)(TOKENS), report.model(TOKENS))


def test_convolutions_stay_and_say_so():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 3)).eval()
    report = quantize_dynamic(model, torch.randn(2, 1, 4, 4))
    assert report.floating == {"0": "no dynamic int8 kernel"}
    issues = export_issues(model, "onnx_dynamic", torch.randn(2, 1, 4, 4))
    assert issues == ["layer '0': no dynamic int8 kernel"]


def test_native_code_quantizes_by_the_range_of_each_call():
    model = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    graph = quantized_graph(model, torch.randn(2, 16))
    assert lower_dynamically_(graph) == 2
    for scale in (0.01, 100.0):
        x = scale * torch.randn(5, 16)
        with torch.no_grad():
            expected = model(x)
        assert (graph.module(x) - expected).norm() < 0.03 * expected.norm()


@pytest.mark.slow
def test_native_code_has_int8_kernels(tmp_path):
    model = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    x = torch.randn(6, 16)
    report = quantize_dynamic(model, x, runtime="torchao", path=tmp_path / "net.pt2")
    assert report.details["kernels"] == {"qlinear": 2}
    assert report.agreement.noise < 0.03


def test_names_are_registered():
    assert {"onnx_dynamic", "torchao_dynamic"} <= set(EXPORTERS.names())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"types": {nn.GRU}}, "Linear, LSTM, Embedding; got 'GRU'"),
        ({"types": []}, "got none"),
        ({"types": {nn.LSTM}, "runtime": "torchao"}, "torchao .dynamic.: Linear; got 'LSTM'"),
        ({"runtime": "onx"}, "unknown runtime 'onx'. Did you mean 'onnx'"),
        ({"per_chanel": True}, "unknown option 'per_chanel'. Did you mean 'per_channel'"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ArgumentError, match=message):
        quantize_dynamic(Tagger().eval(), TOKENS, **arguments)


def test_models_it_is_not_for(tmp_path):
    with pytest.raises(ExportError, match="no LSTM or Linear layer to quantize"):
        quantize_dynamic(nn.Sequential(nn.Conv1d(2, 2, 1)), torch.randn(1, 2, 4))
    with pytest.raises(ExportError, match="noise"):
        quantize_dynamic(Tagger().eval(), TOKENS, path=tmp_path / "x.onnx", tolerance=1e-9)
    assert not (tmp_path / "x.onnx").exists()
    model = nn.Sequential(nn.Linear(4, 4))
    PostTrainLinearQuantizer(model, bits_activations=None).prepare_model(torch.randn(1, 4))
    with pytest.raises(ArgumentError, match="quantized already"):
        quantize_dynamic(model, torch.randn(1, 4))


def test_the_root_logger_is_left_alone():
    handlers = list(logging.getLogger().handlers)
    quantize_dynamic(nn.Sequential(nn.Linear(4, 4)).eval(), torch.randn(2, 4))
    assert logging.getLogger().handlers == handlers
