"""The export form: one fake_quantize node for each grid, the same outputs as the simulation, nothing left behind."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from distiller_ng.data_loggers import collect_quant_stats
from distiller_ng.errors import LifecycleError
from distiller_ng.modules import BatchMatmul, Concat, EltwiseAdd, EltwiseMult
from distiller_ng.ops.fake_quantize import fake_quantize_with
from distiller_ng.ops.linear_quantization import LinearQuantMode, QuantizationParameters
from distiller_ng.quantization import (
    DorefaQuantizer,
    LSQQuantizer,
    NCFQuantAwareTrainQuantizer,
    PACTQuantizer,
    PostTrainLinearQuantizer,
    QuantAwareTrainRangeLinearQuantizer,
    SimulatedFoldedBatchNorm,
    WRPNQuantizer,
    XNORQuantizer,
)
from distiller_ng.quantization.exporting import exporting

pytestmark = pytest.mark.filterwarnings("ignore::distiller_ng.errors.ScheduleWarning")
NODE = torch.ops.distiller_ng.fake_quantize.default


def nodes(model, *inputs):
    with exporting(model):
        program = torch.export.export(model, inputs, strict=False)
    return program, [node for node in program.graph.nodes if node.target is NODE]


def images(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


class Mixed(nn.Module):
    """Convolutions of all kinds, a residual sum, a concatenation, a product, a matrix product, a pooling."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.relu = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()
        self.depthwise = nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False)
        self.up = nn.ConvTranspose2d(4, 4, 3, padding=1)
        self.add, self.cat, self.mult, self.product = EltwiseAdd(), Concat(1), EltwiseMult(), BatchMatmul()
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(8, 5)

    def forward(self, x):
        x = self.relu(self.bn(self.conv(x)))
        y = self.add(x, self.depthwise(x))
        z = self.mult(y, self.up(y))
        y = self.cat(y, z)
        y = self.product(y.flatten(0, 1), y.flatten(0, 1)).unflatten(0, (-1, 8))
        return self.fc(self.pool(y).flatten(1))


def quantized_mixed(**settings):
    torch.manual_seed(0)
    model, x = Mixed().eval(), images(4, 3, 6, 6)
    stats = collect_quant_stats(model, lambda model: model(x))
    quantizer = PostTrainLinearQuantizer(model, model_activation_stats=stats, **settings)
    quantizer.prepare_model(x)
    return model.eval(), x


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("mode", ["SYMMETRIC", "SYMMETRIC_RESTRICTED", "ASYMMETRIC_UNSIGNED", "ASYMMETRIC_SIGNED"])
def test_post_training_wrappers(mode, per_channel):
    model, x = quantized_mixed(mode=mode, per_channel_wts=per_channel)
    expected = model(x)
    with exporting(model):
        found = model(x)
    step = 1 / float(model.fc.output_scale)
    # Rounding differs by a step of each module on the way.
    assert (found - expected).abs().max() <= 3 * step
    program, quantizations = nodes(model, x)
    # Four weights; the outputs of conv, depthwise, up, add, mult, cat, product, pool, fc; the inputs of conv, product,
    # twice, and fc, which come from functions.
    assert len(quantizations) == 4 + 9 + 4
    assert torch.equal(program.module()(x), found)
    assert len({node.args[1] for node in quantizations}) == len(quantizations)


@pytest.mark.parametrize(
    "layer, shape",
    [
        (nn.Conv1d(3, 4, 3), (2, 3, 9)),
        (nn.Conv2d(4, 6, 3, groups=2, bias=False), (2, 4, 6, 6)),
        (nn.Conv3d(2, 3, 2), (2, 2, 4, 4, 4)),
        (nn.ConvTranspose2d(4, 6, 3, groups=2), (2, 4, 5, 5)),
        (nn.Linear(5, 3), (2, 4, 5)),
        (nn.Linear(5, 3, bias=False), (4, 5)),
    ],
)
@pytest.mark.parametrize("per_channel", [False, True])
def test_one_layer_within_a_step(layer, shape, per_channel):
    model, x = nn.Sequential(copy.deepcopy(layer), nn.ReLU()).eval(), images(*shape)
    stats = collect_quant_stats(model, lambda model: model(x))
    PostTrainLinearQuantizer(
        model, mode="ASYMMETRIC_UNSIGNED", per_channel_wts=per_channel, model_activation_stats=stats
    ).prepare_model(x)
    model.eval()
    expected = model(x)
    program, quantizations = nodes(model, x)
    found = program.module()(x)
    step = 1 / float(model[0].output_scale)
    assert (found - expected).abs().max() <= 1.001 * step
    assert float(((found - expected).abs() > 0.5 * step).float().mean()) < 0.05
    assert len(quantizations) == 3
    held = program.state_dict | program.constants
    zero_points = {held[_target(program, node.args[2])].dtype for node in quantizations}
    assert zero_points == {torch.uint8}
    assert sorted(_target(program, node.args[1]) for node in quantizations) == [
        "0.input0_export_step",
        "0.output_export_step",
        "0.weight_export_step",
    ]


def _target(program, node):
    signature = program.graph_signature
    return {**signature.inputs_to_parameters, **signature.inputs_to_buffers}[node.name]


def test_the_model_is_what_it_was_afterwards():
    model, x = quantized_mixed()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    expected, classes = model(x), [type(module) for module in model.modules()]
    model.train()
    with exporting(model):
        assert not model.training
        with pytest.raises(LifecycleError, match="already"), exporting(model):
            pass
    assert all(module.training for module in model.modules())
    assert [type(module) for module in model.modules()] == classes
    forwards = {name for name in before if name.endswith("num_forwards")}
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items() if name not in forwards)
    assert torch.equal(model.eval()(x), expected)
    with pytest.raises(RuntimeError, match="channels"), exporting(model):
        model(images(1, 2, 6, 6))
    assert torch.equal(model(x), expected)


def test_embeddings_and_weights_alone():
    model, x = nn.Sequential(nn.Embedding(10, 6), nn.Linear(6, 3)), torch.arange(10).reshape(2, 5)
    stats = collect_quant_stats(model, lambda model: model(x))
    PostTrainLinearQuantizer(model, model_activation_stats=stats).prepare_model(x)
    model.eval()
    expected = model(x)
    program, quantizations = nodes(model, x)
    assert (program.module()(x) - expected).abs().max() <= 1.001 / float(model[1].output_scale)
    # Table, its rows, weight, output: the rows need no grid of their own.
    assert len(quantizations) == 4

    model, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), images(2, 3, 5, 5)
    PostTrainLinearQuantizer(model, bits_activations=None, bits_parameters=4, per_channel_wts=True).prepare_model(x)
    expected = model.eval()(x)
    program, quantizations = nodes(model, x)
    torch.testing.assert_close(program.module()(x), expected)
    assert len(quantizations) == 1
    assert quantizations[0].args[3:] == (0, -8, 7)


def test_dynamic_and_wide_activations_stay_in_floating_point():
    model, x = nn.Sequential(nn.Linear(4, 3)), images(5, 4)
    PostTrainLinearQuantizer(model).prepare_model(x)
    assert len(nodes(model.eval(), x)[1]) == 1  # the weight
    stats = {"0": {"inputs": {0: {"min": -3, "max": 3}}, "output": {"min": -3, "max": 3}}}
    model = nn.Sequential(nn.Linear(4, 3))
    PostTrainLinearQuantizer(model, 20, 16, model_activation_stats=stats).prepare_model(x)
    assert len(nodes(model.eval(), x)[1]) == 1


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.relu = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()
        self.conv2, self.relu2 = nn.Conv2d(4, 4, 3), nn.ReLU()
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        x = self.relu2(self.conv2(self.relu(self.bn(self.conv(x)))))
        return self.fc(x.mean((2, 3)))


@pytest.mark.parametrize(
    "kind, settings, count",
    [
        (QuantAwareTrainRangeLinearQuantizer, {"bits_activations": 8, "bits_weights": 8}, 3 + 2 + 1),
        (QuantAwareTrainRangeLinearQuantizer, {"bits_activations": 8, "bits_weights": 4, "fold_bn": True}, 3 + 2 + 1),
        (
            QuantAwareTrainRangeLinearQuantizer,
            {"bits_activations": 4, "bits_weights": 4, "per_channel_wts": True, "mode": "ASYMMETRIC_UNSIGNED"},
            3 + 2 + 1,
        ),
        (QuantAwareTrainRangeLinearQuantizer, {}, 0),
        (NCFQuantAwareTrainQuantizer, {"bits_activations": 8, "bits_weights": 8}, 3 + 2 + 1),
        (DorefaQuantizer, {"bits_activations": 8, "bits_weights": 4}, 3 + 2),
        (DorefaQuantizer, {"bits_activations": 8, "bits_weights": 1}, 3 + 2),
        (DorefaQuantizer, {"bits_activations": None, "bits_weights": 32}, 0),
        (WRPNQuantizer, {"bits_activations": 8, "bits_weights": 4}, 3 + 2),
        (PACTQuantizer, {"bits_activations": 4, "bits_weights": 4}, 3 + 2),
        (LSQQuantizer, {"bits_activations": 4, "bits_weights": 4, "per_channel_wts": True}, 3 + 2),
        (XNORQuantizer, {}, 3 + 3),
    ],
)
def test_quantizers_for_training(kind, settings, count):
    torch.manual_seed(0)
    model, x = Small(), images(4, 3, 8, 8)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    kind(model, optimizer, **settings).prepare_model(x)
    for _ in range(2):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()
    model.eval()
    expected = model(x)
    program, quantizations = nodes(model, x)
    torch.testing.assert_close(program.module()(x), expected, rtol=1e-4, atol=1e-5)
    assert len(quantizations) == count
    targets = {node.args[1].name for node in quantizations}
    assert targets <= {node.name for node in program.graph.nodes if node.op == "placeholder"}  # all are constants
    torch.testing.assert_close(model(x), expected)


def test_a_quantizer_that_waits_exports_the_floating_point_model():
    model, x = Small(), images(2, 3, 8, 8)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    quantizer = PACTQuantizer(model, optimizer, 4, 4)
    quantizer.prepare_model(x)
    quantizer.wait()
    model.eval()
    program, quantizations = nodes(model, x)
    assert not quantizations
    torch.testing.assert_close(program.module()(x), model(x))


class Rounding:
    """Rounds to a grid, and says which."""

    def grid(self, tensor):
        return QuantizationParameters.of_tensor(tensor, 8, LinearQuantMode.SYMMETRIC_RESTRICTED)

    def __call__(self, tensor):
        return fake_quantize_with(tensor, self.grid(tensor))


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("function, count", [(None, 0), (Rounding(), 1), (torch.round, 0)])
def test_a_folded_batch_norm_of_its_own(function, count, frozen):
    torch.manual_seed(0)
    folded = SimulatedFoldedBatchNorm(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), 10, function)
    model, x = nn.Sequential(folded, nn.ReLU()), images(4, 3, 6, 6)
    model(x)
    if frozen:
        folded.freeze()
    model.eval()
    expected = model(x)
    program, quantizations = nodes(model, x)
    torch.testing.assert_close(program.module()(x), expected)
    assert len(quantizations) == count
    assert "export" not in str(list(model.state_dict()) + list(dict(model.named_buffers())))
