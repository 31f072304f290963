"""Compiled int8 models: fidelity, kernels, files. Compiling takes seconds, so most tests look at the program."""

import copy

import pytest
import torch
from torch import nn

from distiller_ng.errors import ArgumentError, ExportError
from distiller_ng.export.quantized_graph import quantized_graph
from distiller_ng.export.torchao import TorchaoExporter
from distiller_ng.export.torchao_lowering import lower_to_pt2e_
from distiller_ng.export.torchao_runtime import TorchaoModule, load_torchao
from distiller_ng.quantization import QuantAwareTrainRangeLinearQuantizer
from distiller_ng.quantization.exporters import EXPORTERS, export_model

MODES = {"activations": "ASYMMETRIC_UNSIGNED", "weights": "SYMMETRIC_RESTRICTED"}


class SameConv2d(nn.Conv2d):
    """A subclass with a forward of its own, as EfficientNet's."""

    def forward(self, x):
        return nn.functional.conv2d(nn.functional.pad(x, (1, 1, 2, 2)), self.weight, self.bias, groups=self.groups)


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = SameConv2d(3, 8, 3)
        self.relu1 = nn.ReLU()
        self.pool = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(8, 8, 3, groups=8)
        self.relu2 = nn.ReLU6()
        self.fc = nn.Linear(8, 4)

    def forward(self, x):
        x = self.pool(self.relu1(self.conv1(x)))
        return self.fc(self.relu2(self.conv2(x)).amax((2, 3)))


def trained(model, shape=(4, 3, 8, 8), mode=MODES, bits=8, **settings):
    torch.manual_seed(0)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    options = {"per_channel_wts": True, **settings}
    QuantAwareTrainRangeLinearQuantizer(model, optimizer, bits, bits, None, mode=mode, **options).prepare_model()
    model.train()
    for _ in range(3):
        model(torch.randn(shape))
    return model.eval()


def lowered(model, inputs):
    graph = quantized_graph(model, inputs)
    return graph, lower_to_pt2e_(graph)


def operators(graph, name):
    return [n for n in graph.module.graph.nodes if n.op == "call_function" and name in str(n.target)]


@pytest.mark.parametrize("mode", [MODES, "SYMMETRIC", "ASYMMETRIC_SIGNED", "ASYMMETRIC_UNSIGNED"])
@pytest.mark.parametrize("bits", [4, 8, 12])
def test_the_program_computes_what_the_model_computes(mode, bits):
    model = trained(Small(), mode=mode, bits=bits)
    x = torch.randn(6, 3, 8, 8)
    graph, _ = lowered(model, x)
    with torch.no_grad():
        expected, got = model(x), graph.module(x)
    assert (got - expected).norm() <= 0.02 * expected.norm()
    assert not operators(graph, "distiller_ng")


def test_every_layer_is_quantized_whatever_its_class():
    graph, layers = lowered(trained(Small()), torch.randn(2, 3, 8, 8))
    assert {layer.name: layer.reason for layer in layers} == {"conv1": "", "conv2": "", "fc": ""}
    assert len(operators(graph, "dequantize_per_channel")) == 3
    assert not operators(graph, "pad")  # zeros around the input are padding of the convolution now
    for layer in operators(graph, "conv2d"):
        if "dequantize_per_channel" in str(layer.args[1].target):
            assert "dequantize_per_tensor" in str(layer.args[0].target)


def test_uneven_padding_stays_between():
    class Uneven(nn.Module):
        def __init__(self):
            super().__init__()
            self.relu = nn.ReLU()
            self.conv = nn.Conv2d(2, 4, 3, stride=2)

        def forward(self, x):
            return self.conv(nn.functional.pad(self.relu(x), (0, 1, 0, 1)))

    model = trained(Uneven(), (4, 2, 8, 8))
    x = torch.randn(2, 2, 8, 8)
    graph, (layer,) = lowered(model, x)
    assert layer.is_quantized
    (conv,) = operators(graph, "conv2d")
    assert "dequantize_per_tensor" in str(conv.args[0].target)
    assert len(operators(graph, "pad")) == 1
    assert torch.allclose(graph.module(x), model(x), atol=1e-3)


def test_quantization_comes_right_before_the_layer():
    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.relu = nn.ReLU()
            self.fc = nn.Linear(8, 4)

        def forward(self, x):
            return self.fc(nn.functional.max_pool2d(self.relu(x), 2).flatten(1))

    graph, (layer,) = lowered(trained(Pooled(), (4, 2, 4, 4)), torch.randn(2, 2, 4, 4))
    assert layer.is_quantized
    (fc,) = operators(graph, "linear")
    assert "dequantize_per_tensor" in str(fc.args[0].target)


def test_asymmetric_weights_stay_in_floating_point_and_say_so():
    x = torch.randn(2, 3, 8, 8)
    graph, layers = lowered(trained(Small(), mode="ASYMMETRIC_UNSIGNED"), x)
    assert {layer.reason for layer in layers} == {
        "its weight is quantized asymmetrically, and the int8 kernels take symmetric weights"
    } | {layer.reason for layer in layers if "floating point" in layer.reason}
    assert not operators(graph, "dequantize_per_channel")
    issues = TorchaoExporter().issues(trained(Small(), mode="ASYMMETRIC_UNSIGNED"), x)
    assert any("'conv2'" in issue and "symmetric weights" in issue for issue in issues)


def test_embeddings_are_looked_up_as_integers():
    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(20, 8)
            self.relu = nn.ReLU()
            self.fc = nn.Linear(8, 4)

        def forward(self, tokens):
            return self.fc(self.relu(self.embedding(tokens)))

    model = Words()
    QuantAwareTrainRangeLinearQuantizer(
        model, torch.optim.SGD(model.parameters(), 0.01), 8, 8, None, mode=MODES, quantize_inputs=False
    ).prepare_model()
    tokens = torch.randint(0, 20, (3, 5))
    model.train()(tokens)
    model.eval()
    graph, _ = lowered(model, tokens)
    assert torch.allclose(graph.module(tokens), model(tokens), atol=1e-4)
    assert not operators(graph, "distiller_ng")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """One model, compiled once for all tests that run it."""
    model = trained(Small())
    path = tmp_path_factory.mktemp("torchao") / "net.pt2"
    images = torch.randn(16, 3, 8, 8)
    report = export_model(model, "torchao", images, path)
    return model, path, images, report


@pytest.mark.slow
def test_int8_kernels_run(exported):
    model, path, images, report = exported
    integer = len(report.quantized)
    assert integer >= 2
    assert sum(report.details["kernels"].values()) == integer
    assert not any("int8 kernels of" in note for note in report.notes)
    assert report.agreement.noise < 0.02
    assert report.bytes == path.stat().st_size
    for batch in (1, 3, 16):
        with torch.no_grad():
            expected = model(images[:batch])
        assert (report.model(images[:batch]) - expected).norm() <= 0.05 * expected.norm()


@pytest.mark.slow
def test_files_load_and_compile_again(exported):
    _, path, images, report = exported
    loaded = load_torchao(path, batch_sizes=[16])
    assert "not compiled yet" in repr(loaded)
    assert torch.allclose(loaded(images), report.model(images), atol=1e-3)
    assert torch.allclose(loaded(images[:3]), report.model(images[:3]), atol=1e-3)
    assert copy.deepcopy(loaded).content == loaded.content


def unverified(tmp_path, **options):
    path = tmp_path / "net.pt2"
    return path, export_model(trained(Small()), "torchao", torch.randn(2, 3, 8, 8), path, verify=False, **options)


def test_without_verification_nothing_is_compiled(tmp_path):
    path, report = unverified(tmp_path)
    assert report.agreement is None
    assert report.model.kernels == {}
    assert report.bytes == path.stat().st_size
    assert EXPORTERS.get("torchao").cls is TorchaoExporter
    again = export_model(trained(Small()), "torchao", torch.randn(2, 3, 8, 8), verify=False)
    assert again.paths == () and isinstance(again.model, TorchaoModule)


def test_damaged_files(tmp_path):
    path, _ = unverified(tmp_path)
    content = path.read_bytes()
    for damaged in (b"", b"hello", content[: len(content) // 2], content[:-30]):
        path.write_bytes(damaged)
        with pytest.raises(ExportError, match="damaged, or no file of the torchao exporter"):
            load_torchao(path)
    torch.export.save(torch.export.export(nn.Linear(2, 2), (torch.zeros(1, 2),)), path)
    with pytest.raises(ExportError, match="not of the torchao exporter"):
        load_torchao(path)
    with pytest.raises(FileNotFoundError):
        load_torchao(tmp_path / "none.pt2")


def test_wrong_options(tmp_path):
    with pytest.raises(ArgumentError, match="unknown option 'tolerence'. Did you mean 'tolerance'"):
        unverified(tmp_path, tolerence=1)
    with pytest.raises(ArgumentError, match="batch_sizes are whole numbers"):
        unverified(tmp_path, batch_sizes=[0])
    assert not (tmp_path / "net.pt2").exists()
