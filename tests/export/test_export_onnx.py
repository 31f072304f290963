"""ONNX files: integer kernels, exactness, refusals, reports."""

from __future__ import annotations

import copy

import onnx
import pytest
import torch
from torch import nn

from distiller_ng.data_loggers import collect_quant_stats
from distiller_ng.errors import ArgumentError, ExportError, LifecycleError
from distiller_ng.export import export_issues, export_model
from distiller_ng.export.onnx_runtime import OnnxModule
from distiller_ng.quantization import (
    DorefaQuantizer,
    LSQQuantizer,
    PACTQuantizer,
    PostTrainLinearQuantizer,
    QuantAwareTrainRangeLinearQuantizer,
    WRPNQuantizer,
    XNORQuantizer,
)

X86 = {"activations": "ASYMMETRIC_UNSIGNED", "weights": "SYMMETRIC_RESTRICTED"}


class Net(nn.Module):
    """A stem, a depthwise convolution with a residual, a classifier."""

    def __init__(self, activation=nn.ReLU):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn1, self.act1 = nn.BatchNorm2d(8), activation()
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.bn2, self.act2 = nn.BatchNorm2d(8), activation()
        self.fc = nn.Linear(8, 5)
        for norm in (self.bn1, self.bn2):
            nn.init.normal_(norm.weight, 1, 0.5)
            nn.init.normal_(norm.bias, 0, 0.3)

    def forward(self, x):
        x = self.act1(self.bn1(self.conv1(x)))
        x = self.act2(self.bn2(self.conv2(x)))
        return self.fc(x.amax((2, 3)))


def aware(quantizer_class, model=None, wrap=lambda model: model, **settings):
    model = wrap(Net() if model is None else model)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    quantizer = quantizer_class(model, optimizer, **settings)
    quantizer.prepare_model(torch.randn(2, 3, 8, 8))
    model.train()
    for _ in range(3):
        model(torch.randn(8, 3, 8, 8))
    model.eval()
    return quantizer


def linear(**settings):
    return aware(
        QuantAwareTrainRangeLinearQuantizer, **{"bits_activations": 8, "bits_weights": 8, "mode": X86, **settings}
    )


def post_trained(model, x, **settings):
    stats = collect_quant_stats(model, lambda model: model(x))
    settings = {"mode": {"activations": "ASYMMETRIC_UNSIGNED", "weights": "SYMMETRIC"}, **settings}
    quantizer = PostTrainLinearQuantizer(
        model.eval(), 8, 8, per_channel_wts=True, model_activation_stats=stats, **settings
    )
    quantizer.prepare_model(x)
    return quantizer


def test_an_int8_file_computes_what_the_model_computes(tmp_path):
    quantizer, x = linear(per_channel_wts=True), torch.randn(16, 3, 8, 8)
    report = quantizer.convert("onnx", tmp_path / "net", x)
    assert report.path == tmp_path / "net.onnx" and report.bytes == report.path.stat().st_size
    assert list(report.quantized) == ["conv1", "conv2", "fc"] and not report.floating
    assert report.details["kernels"]["QLinearConv"] == 2 and report.details["kernels"]["QGemm"] == 1
    assert report.agreement.sqnr_db > 50 and report.agreement.top1 == 1.0 and report.agreement.samples == 16
    again = OnnxModule(report.path)
    with torch.no_grad():
        expected = quantizer.model(x)
    assert (again(x) - expected).norm() < 0.003 * expected.norm()
    assert torch.equal(again(x[:1]), again(x)[:1])  # any batch


def test_the_report_reads_well(tmp_path):
    text = str(linear().convert("onnx", tmp_path / "net.onnx", torch.randn(4, 3, 8, 8)))
    assert "net.onnx" in text and "3 of 3 layers compute with integers" in text and "SQNR" in text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("quantizer", "bits"),
    [(DorefaQuantizer, (4, 4)), (WRPNQuantizer, (4, 6)), (PACTQuantizer, (4, 5)), (LSQQuantizer, (2, 3))],
)
def test_few_bits_keep_their_values_and_their_biases(quantizer, bits):
    made = aware(quantizer, bits_activations=bits[0], bits_weights=bits[1])
    report = made.convert("onnx", None, torch.randn(8, 3, 8, 8))
    # Biases of int32 lie on steps of input times weight scale, which are coarse for few bits unless weights are stretched.
    assert report.agreement.sqnr_db > 35


@pytest.mark.slow
def test_binary_layers():
    made = aware(XNORQuantizer, Net(nn.Hardtanh))
    report = made.convert("onnx", None, torch.randn(8, 3, 8, 8))
    assert report.agreement.sqnr_db > 40
    assert "output is not quantized" in report.floating["conv1"]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["SYMMETRIC", "ASYMMETRIC_UNSIGNED", "ASYMMETRIC_SIGNED"])
@pytest.mark.parametrize("preset", ["x86", "signed", "as_trained"])
def test_every_preset_has_the_same_values(mode, preset):
    report = linear(mode=mode, per_channel_wts=True).convert("onnx", None, torch.randn(8, 3, 8, 8), preset=preset)
    assert report.agreement.sqnr_db > 28 and len(report.quantized) == 3


def test_post_training_models_run_every_layer_as_integers():
    x = torch.randn(16, 3, 8, 8)
    report = post_trained(Net().eval(), x).convert("onnx", None, x)
    assert report.details["kernels"]["QLinearConv"] == 2 and len(report.quantized) == 3
    assert report.agreement.max_steps <= 3


@pytest.mark.slow
def test_floating_point_models_are_written_as_they_are(tmp_path):
    x = torch.randn(1, 3, 8, 8)
    report = export_model(Net().eval(), "onnx", x, tmp_path / "float.onnx")
    assert report.agreement.sqnr_db > 100 and report.details["kernels"]["Conv"] == 2
    assert not report.quantized and set(report.floating) == {"conv1", "conv2", "fc"}


@pytest.mark.slow
def test_data_parallel_and_channels_last():
    wrapped = linear(wrap=nn.DataParallel).convert("onnx", None, torch.randn(4, 3, 8, 8))
    assert list(wrapped.quantized) == ["conv1", "conv2", "fc"]
    last = linear(wrap=lambda model: model.to(memory_format=torch.channels_last))
    assert last.convert("onnx", None, torch.randn(4, 3, 8, 8)).agreement.sqnr_db > 50


@pytest.mark.slow
def test_a_shared_module_and_a_dictionary_of_outputs():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.relu, self.fc = nn.Conv2d(3, 3, 3, padding=1), nn.ReLU(), nn.Linear(3, 4)

        def forward(self, x):
            for _ in range(3):
                x = self.relu(self.conv(x))
            return {"scores": self.fc(x.amax((2, 3))), "features": x}

    quantizer = linear(model=Shared())
    x = torch.randn(4, 3, 8, 8)
    report = quantizer.convert("onnx", None, x)
    assert report.details["kernels"]["QLinearConv"] == 3
    scores, features = report.model(x)
    assert scores.shape == (4, 4) and features.shape == (4, 3, 8, 8)


@pytest.mark.slow
def test_token_numbers_and_keyword_arguments():
    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.first, self.relu = nn.Embedding(20, 16), nn.Linear(16, 16), nn.ReLU()
            self.second = nn.Linear(16, 3)

        def forward(self, ids, mask=None):
            x = self.relu(self.first(self.table(ids)))
            return self.second(x if mask is None else x * mask.unsqueeze(-1)).mean(1)

    model = Words()
    made = QuantAwareTrainRangeLinearQuantizer(model, torch.optim.SGD(model.parameters(), 0.1), 8, 8, mode=X86)
    made.prepare_model()
    inputs = {"ids": torch.randint(0, 20, (3, 7)), "mask": torch.ones(3, 7)}
    model.train()(**inputs)
    model.eval()
    report = made.convert("onnx", None, inputs)
    assert report.agreement.sqnr_db > 40
    assert torch.equal(report.model(**inputs), report.model(inputs["ids"], inputs["mask"]))
    assert report.quantized.keys() == {"table", "first"}  # the product with the mask is not quantized
    assert report.bytes < report.float_bytes * 4


@pytest.mark.slow
def test_seven_bit_weights():
    quantizer, x = linear(per_channel_wts=True), torch.randn(8, 3, 8, 8)
    report = quantizer.convert("onnx", None, x, reduce_range=True)
    weights = [
        onnx.numpy_helper.to_array(one)
        for one in onnx.load_from_string(report.model.content).graph.initializer
        if one.data_type == onnx.TensorProto.INT8 and len(one.dims) > 1
    ]
    assert len(weights) == 3 and all(abs(weight.astype(int)).max() <= 63 for weight in weights)
    assert 25 < report.agreement.sqnr_db < 60


def test_a_file_that_disagrees_is_refused_and_not_written(tmp_path):
    quantizer = linear()
    with pytest.raises(ExportError, match="not kept: noise .* allowed 1e-09"):
        quantizer.convert("onnx", tmp_path / "net.onnx", torch.randn(4, 3, 8, 8), tolerance=1e-9, reduce_range=True)
    assert not list(tmp_path.iterdir())


def test_nothing_is_left_of_a_model_that_cannot_be_exported(tmp_path):
    class Branching(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    x = torch.randn(2, 3)
    with pytest.raises(ExportError, match="cannot be traced"):
        export_model(Branching(), "onnx", x, tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())
    assert "cannot be traced" in export_issues(Branching(), "onnx", x)[0]


@pytest.mark.slow
def test_half_precision_is_refused():
    with pytest.raises(ExportError):
        export_model(linear().model.bfloat16(), "onnx", torch.randn(2, 3, 8, 8).bfloat16())


def test_issues_name_every_layer_in_floating_point():
    quantizer = linear(overrides={"conv2": {"bits_weights": None}})
    assert quantizer.issues("onnx", torch.randn(4, 3, 8, 8)) == ["layer 'conv2': its weight is in floating point"]


def test_wrong_use_is_told():
    model = Net()
    quantizer = QuantAwareTrainRangeLinearQuantizer(model, torch.optim.SGD(model.parameters(), 0.1), 8, 8)
    with pytest.raises(LifecycleError, match="prepare_model"):
        quantizer.convert("onnx", None, torch.randn(1, 3, 8, 8))
    quantizer.prepare_model()
    with pytest.raises(ArgumentError, match="example of the model's inputs"):
        quantizer.convert("onnx")
    with pytest.raises(ArgumentError, match="unknown exporter class 'onxx'. Did you mean 'onnx'"):
        quantizer.convert("onxx", None, torch.randn(1, 3, 8, 8))
    with pytest.raises(ArgumentError, match="unknown option 'presset'. Did you mean 'preset'"):
        quantizer.convert("onnx", None, torch.randn(1, 3, 8, 8), presset="x86")
    with pytest.raises(ArgumentError, match="unknown preset 'arm'"):
        quantizer.convert("onnx", None, torch.randn(1, 3, 8, 8), preset="arm")


@pytest.mark.slow
def test_modules_of_onnx_runtime_copy_and_count_their_inputs():
    report = export_model(Net().eval(), "onnx", torch.randn(2, 3, 8, 8))
    x = torch.randn(3, 3, 8, 8)
    assert torch.equal(copy.deepcopy(report.model)(x), report.model(x))
    with pytest.raises(ArgumentError, match="takes 1 inputs"):
        report.model(x, x)
    with pytest.raises(LifecycleError, match="nothing was written"):
        _ = report.path
    with pytest.raises(ExportError, match="ONNX Runtime refuses"):
        OnnxModule(b"no model")


@pytest.mark.slow
def test_distillers_conversion():
    x = torch.randn(8, 3, 8, 8)
    quantizer = post_trained(Net().eval(), x)
    integer = quantizer.convert_to_pytorch(x, backend="fbgemm")
    with torch.no_grad():
        expected = quantizer.model(x)
    assert isinstance(integer, nn.Module) and (integer(x) - expected).norm() < 0.05 * expected.norm()
    for arguments, message in (((None,), "dummy_input is needed"), ((x, "mkl"), "unknown backend 'mkl'")):
        with pytest.raises(ValueError, match=message):
            quantizer.convert_to_pytorch(*arguments)
    with pytest.raises(ValueError, match="only models of PostTrainLinearQuantizer"):
        linear().convert_to_pytorch(x)


@pytest.mark.slow
def test_recurrent_classifiers_with_time_first():
    class Text(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.lstm, self.fc = nn.Embedding(30, 8), nn.LSTM(8, 12), nn.Linear(12, 5)

        def forward(self, ids):  # [time, batch]
            return self.fc(self.lstm(self.table(ids))[0][-1])

    ids = torch.randint(0, 30, (3, 4))
    quantizer = post_trained(Text().eval(), ids)
    report = quantizer.convert("onnx", None, ids)
    assert report.details["kernels"]["QGemm"] == 7  # two for each step, one for the classifier
    assert report.agreement.sqnr_db > 28
    assert report.model(torch.randint(0, 30, (3, 9))).shape == (9, 5)  # any batch, wherever it stands
    with pytest.raises(ExportError, match="the ONNX model takes"):
        report.model(torch.randint(0, 30, (5, 4)))  # the steps are written one by one


@pytest.mark.slow
def test_attention_runs_as_integers():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.fc = nn.Embedding(30, 8), nn.Linear(8, 5)
            self.q, self.k, self.v = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, ids):
            x = self.table(ids)
            scores = torch.softmax(self.q(x) @ self.k(x).transpose(1, 2) / 3, -1)
            return self.fc((scores @ self.v(x)).mean(1))

    ids = torch.randint(0, 30, (4, 7))
    report = post_trained(Attention().eval(), ids).convert("onnx", None, ids)
    assert report.details["kernels"]["QLinearMatMul"] == 2 and report.details["kernels"]["QGemm"] == 4
    assert not report.floating and report.agreement.sqnr_db > 25


@pytest.mark.slow
def test_padding_with_zeros_stays_on_the_grid():
    class Padded(nn.Module):
        def __init__(self):
            super().__init__()
            self.pad, self.conv = nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(3, 4, 3, stride=2)
            self.relu, self.last = nn.ReLU(), nn.Conv2d(4, 4, 3, groups=4)

        def forward(self, x):
            return self.last(nn.functional.pad(self.relu(self.conv(self.pad(x))), (1, 1, 1, 1)))

    x = torch.randn(4, 3, 8, 8)
    report = post_trained(Padded().eval(), x).convert("onnx", None, x)
    assert list(report.quantized) == ["conv", "last"] and report.details["kernels"]["QLinearConv"] == 2
    assert report.agreement.sqnr_db > 40
