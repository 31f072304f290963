"""Functions in a model's forward are quantized as modules are."""

from __future__ import annotations

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import distiller_ng as distiller
from distiller_ng.data_loggers import QuantCalibrationStatsCollector, collect_quant_stats, collector_context
from distiller_ng.errors import CalibrationError, ScheduleWarning, TargetError
from distiller_ng.graph.functional_calls import Outside, OwnsCalls
from distiller_ng.modules import BatchMatmul, Concat, EltwiseAdd, EltwiseDiv, EltwiseMult, EltwiseSub, Stack
from distiller_ng.quantization import (
    FPWrapper,
    PostTrainLinearQuantizer,
    RangeLinearFakeQuantWrapper,
    RangeLinearQuantConcatWrapper,
    RangeLinearQuantEltwiseAddWrapper,
    RangeLinearQuantEltwiseMultWrapper,
    RangeLinearQuantMatmulWrapper,
)
from distiller_ng.quantization.exporting import exporting

pytestmark = pytest.mark.filterwarnings("ignore::distiller_ng.errors.ScheduleWarning")


def images(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def seeded(kind, *args):
    torch.manual_seed(0)
    return kind(*args).eval()


def quantized(model, *inputs, **settings):
    stats = collect_quant_stats(model, lambda model: model(*inputs))
    quantizer = PostTrainLinearQuantizer(model, model_activation_stats=stats, **settings)
    quantizer.prepare_model(inputs if len(inputs) > 1 else inputs[0])
    model.eval()
    return quantizer


class Written(nn.Module):
    """All operations as modules."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.relu = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()
        self.conv2, self.add, self.mul, self.cat = nn.Conv2d(4, 4, 1), EltwiseAdd(), EltwiseMult(), Concat(1)
        self.bmm, self.sub, self.div, self.stack = BatchMatmul(), EltwiseSub(), EltwiseDiv(), Stack(1)
        self.pool, self.softmax, self.fc = nn.AdaptiveAvgPool2d(2), nn.Softmax(-1), nn.Linear(16, 5)

    def forward(self, x):
        x = self.relu(self.bn(self.conv(x)))
        y = self.add(x, self.conv2(x))
        y = self.cat(self.mul(x, y), y)
        y = self.bmm(y.flatten(0, 1), y.flatten(0, 1)).view_as(y)
        y = self.stack([self.sub(y, x.repeat(1, 2, 1, 1)), self.div(y, 3.0)]).flatten(1, 2)
        y = self.pool(y)[:, ::4].flatten(1)
        return self.softmax(self.fc(y))


class Called(nn.Module):
    """The same as functions."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.conv2, self.fc = nn.Conv2d(4, 4, 1), nn.Linear(16, 5)

    def forward(self, x):
        x = F.relu(self.bn(self.conv(x)), inplace=True)
        y = x + self.conv2(x)
        y = torch.cat([x * y, y], dim=1)
        y = torch.bmm(y.flatten(0, 1), y.flatten(0, 1)).view_as(y)
        y = torch.stack((y - x.repeat(1, 2, 1, 1), y / 3.0), 1).flatten(1, 2)
        y = F.adaptive_avg_pool2d(y, 2)[:, ::4].flatten(1)
        return F.softmax(self.fc(y), dim=-1)


@pytest.mark.parametrize("settings", [{}, {"mode": "ASYMMETRIC_UNSIGNED", "per_channel_wts": True, "clip_acts": "AVG"}])
def test_functions_give_what_modules_give(settings):
    x = images(4, 3, 4, 4)
    written, called = seeded(Written), seeded(Called)
    called.load_state_dict(written.state_dict())
    torch.testing.assert_close(called(x), written(x))
    quantized(written, x, **settings)
    quantizer = quantized(called, x, **settings)
    assert torch.equal(called(x), written(x))
    assert isinstance(called.relu, nn.Identity)  # taken into the convolution
    assert called.conv.fuses_relu
    kinds = {
        "add": RangeLinearQuantEltwiseAddWrapper,
        "mul": RangeLinearQuantEltwiseMultWrapper,
        "cat": RangeLinearQuantConcatWrapper,
        "bmm": RangeLinearQuantMatmulWrapper,
        **dict.fromkeys(("sub", "div", "stack", "adaptive_avg_pool2d", "softmax"), RangeLinearFakeQuantWrapper),
    }
    assert {name: type(called.get_submodule(name)) for name in kinds} == kinds
    names = {name for name, _ in quantizer.named_linear_quant_params()}
    assert {"add.output_scale", "softmax.output_zero_point"} <= names
    assert {"add", "mul", "cat", "bmm", "sub", "div"} <= {row.module for row in quantizer.plan().rows}


def test_copies_states_and_programs_of_the_prepared_model():
    model, x = seeded(Called), images(4, 3, 4, 4)
    fresh = copy.deepcopy(model)
    stats = collect_quant_stats(model, lambda model: model(x))
    for one in (model, fresh):
        PostTrainLinearQuantizer(one, model_activation_stats=stats).prepare_model(x)
        one.eval()
    expected = model(x)
    assert torch.equal(copy.deepcopy(model)(x), expected)
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh(x), expected)
    with io.BytesIO() as file:
        torch.save(model, file)
        file.seek(0)
        assert torch.equal(torch.load(file, weights_only=False)(x), expected)
    assert type(model).__name__ == "Called" and isinstance(model, Called)
    with exporting(model):
        exported = model(x)
        program = torch.export.export(model, (x,), strict=False)
    assert torch.equal(program.module()(x), exported)
    assert (exported - expected).abs().max() <= 2.001 / float(model.softmax.output_scale)
    assert torch.equal(model(x), expected)


class Kinds(nn.Module):
    """Numbers, parameters, settings, in-place operations, several of one kind, names that are taken."""

    def __init__(self):
        super().__init__()
        self.fc, self.fc2, self.shift = nn.Linear(6, 6), nn.Linear(6, 6), nn.Parameter(torch.linspace(-1, 1, 6))
        self.add = "an attribute of the model's own"
        self.register_buffer("table", torch.arange(12.0).reshape(2, 6) / 6)

    def forward(self, x):
        x = self.fc(x) + self.shift
        y = 1.0 + x
        y += x
        y = torch.add(y, x, alpha=2)
        y *= 0.5
        z = y.clone()
        z[:, :3] += 1
        scores = z @ y.T
        scores = scores + torch.triu(torch.full_like(scores, -1e9), 1)
        first, second = (scores.softmax(1) @ y).chunk(2, dim=1)
        y = self.fc2(torch.cat((torch.tanh(first), second.sigmoid()), -1))
        return y + (self.table * 2.0)[0] - x.mean(1, keepdim=True)


def test_numbers_parameters_masks_and_names_that_are_taken():
    model, x = seeded(Kinds), images(5, 6)
    expected = model(x)
    stats = collect_quant_stats(model, lambda model: model(x))
    quantizer = PostTrainLinearQuantizer(model, 8, 8, mode="ASYMMETRIC_UNSIGNED", model_activation_stats=stats)
    assert "add_1" in quantizer.module_qbits_map and "add_1" in str(quantizer.plan())
    assert not any(isinstance(module, OwnsCalls | Outside) for module in model.modules())  # nothing changed yet
    quantizer.prepare_model(x)
    model.eval()
    found = model(x)
    assert model.add == "an attribute of the model's own"
    assert (found - expected).abs().max() < 0.15
    combining = {name for name, m in model.named_modules() if isinstance(m, RangeLinearQuantEltwiseAddWrapper)}
    # x + shift, y += x, y + table; neither 1.0 + x nor alpha=2 nor z += 1 nor the mask.
    assert combining == {"add_1", "add_3", "add_7"}
    why = {row.module: row.note for row in quantizer.plan().rows if row.note}
    assert "mask" in why["add_6"]
    assert "constants alone" in why["mul_1"]
    x.requires_grad_(True)
    assert torch.equal(model(x), found)


def test_in_place_functions_write_where_the_function_would():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(3, 3)

        def forward(self, x):
            y = self.fc(x)
            alias = y
            y += x
            F.hardtanh(y, -1.0, 1.0, inplace=True)
            y[:, 1:].mul_(2)
            return alias

    model, x = seeded(Net), images(64, 3)
    expected = model(x)
    quantized(model, x)
    found = model(x)
    assert (found - expected).abs().max() < 0.1
    assert {"add", "hardtanh", "mul"} <= set(model._modules)


@pytest.mark.parametrize("settings", [{"make_identity": True}, {"fake": True}, {"quantize_inputs": False}])
def test_settings_of_wrappers_hold_for_functions(settings):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(3, 3)

        def forward(self, x):
            return self.fc(x) + x

    model, x = seeded(Net), images(4, 3)
    expected = model.fc(x) if "make_identity" in settings else model(x)
    quantized(model, x, overrides={"add": settings})
    assert (model(x) - expected).abs().max() < 0.05
    with exporting(model):
        assert (model(x) - expected).abs().max() < 0.05


def test_overrides_and_bits_of_functions():
    x = images(4, 3, 4, 4)
    overrides = {
        "add": {"bits_activations": 4, "clip_acts": "AVG"},
        "m.*": {"bits_activations": None},
        "softmax": {"fpq_module": 16},
        "fc": {"bits_weights": None},
    }
    model = seeded(Called)
    quantizer = quantized(model, x, overrides=overrides)
    assert model.add.output_quant_settings.num_bits == 4
    assert not isinstance(model.mul, RangeLinearQuantEltwiseMultWrapper)
    assert isinstance(model.softmax, FPWrapper)
    assert quantizer.plan()["add"].activations == 4
    assert quantizer.plan()["mul"].activations is None
    stats = collect_quant_stats(seeded(Called), lambda model: model(x))
    for wrong in ("add_1", "conv.add", "adds"):
        with pytest.raises(TargetError, match=wrong):
            PostTrainLinearQuantizer(seeded(Called), model_activation_stats=stats, overrides={wrong: {}})


class Blocks(nn.Module):
    """A block used twice, one of the same class, functions in the outer module too."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(2, 2, 1)

        def forward(self, x):
            for part in self.children():  # only the written ones
                x = F.relu(part(x)) + x
            return x

    def __init__(self):
        super().__init__()
        self.first, self.second, self.act = self.Block(), self.Block(), nn.ReLU()

    def forward(self, x):
        return self.act(self.first(self.first(x)) + self.act(self.second(x)))


def test_blocks_that_run_twice_and_parts_that_are_listed():
    model, x = seeded(Blocks), images(2, 2, 3, 3)
    expected = model(x)
    quantizer = quantized(model, x)
    assert (model(x) - expected).abs().max() < 0.1
    assert sorted(quantizer._parts.functions) == ["add", "first.add", "first.relu", "second.add", "second.relu"]
    assert model.first.add.num_forwards == 2  # one run
    assert [name for name, _ in model.first.named_children()] == ["conv", "relu", "add"]


class Dense(nn.Sequential):
    """A list of parts whose forward joins what they make, as DenseNet's layers were written."""

    def __init__(self, channels):
        super().__init__(nn.Conv2d(channels, 2, 1), nn.ReLU())

    def forward(self, x):
        return torch.cat([x, super().forward(x)], 1)


class DenseBlock(nn.ModuleDict):
    def __init__(self):
        super().__init__({"a": Dense(2), "b": Dense(4)})

    def forward(self, x):
        for layer in self.values():
            x = layer(x)
        return x * 2 if len(self) == 2 else x


def test_lists_of_parts_stay_lists():
    model, x = nn.Sequential(seeded(DenseBlock), nn.Flatten()), images(2, 2, 3, 3)
    expected = model(x)
    quantized(model, x)
    assert (model(x) - expected).abs().max() < 0.15
    block, dense = model[0], model[0]["a"]
    assert list(block) == ["a", "b"] and len(dense) == 2 and "mul" not in block
    assert dense[-1] is dense[1] and isinstance(dense.cat, RangeLinearQuantConcatWrapper)
    assert [name for name, _ in block.items()] == ["a", "b"]
    assert "0.mul" in dict(model.named_modules())


def test_torch_transformer_layers():
    model = seeded(nn.TransformerEncoder, nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0), 2)
    x = images(2, 5, 8)
    expected = model(x)
    quantizer = quantized(model, x, mode="ASYMMETRIC_UNSIGNED", per_channel_wts=True)
    assert {"layers.0.add", "layers.0.add_1", "layers.0.relu"} <= set(quantizer._parts.functions)
    assert isinstance(model.layers[0].add, RangeLinearQuantEltwiseAddWrapper)
    assert (model(x) - expected).abs().max() < 0.15
    assert "attention" in quantizer.plan()["layers.0.self_attn.out_proj"].note


def test_dynamic_products():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x):
            return torch.softmax(self.fc(x) @ x.T, 1) + 1

    model, x = seeded(Net), images(4, 4)
    expected = model(x)
    quantizer = PostTrainLinearQuantizer(model, overrides={".*matmul": {"bits_activations": 6}})
    assert "matmul" not in quantizer.module_qbits_map
    quantizer.prepare_model(x)
    model.eval()
    assert isinstance(model.matmul, RangeLinearQuantMatmulWrapper)
    assert model.matmul.output_quant_settings.num_bits == 6
    assert (model(x) - expected).abs().max() < 0.1
    with pytest.raises(TargetError, match="bmm"):
        PostTrainLinearQuantizer(seeded(Net), overrides={"bmm": {"bits_activations": 6}}).prepare_model(x)


def test_statistics_without_functions_and_of_other_functions():
    model, x = seeded(Called), images(4, 3, 4, 4)
    expected = model(x)
    stats = collect_quant_stats(model, lambda model: model(x))
    older = {name: entry for name, entry in stats.items() if name in ("conv", "bn", "conv2", "fc")}
    with pytest.warns(ScheduleWarning, match="no statistics of add, mul, cat, .*more"):
        quantizer = PostTrainLinearQuantizer(model, model_activation_stats=older)
        quantizer.prepare_model(x)
    model.eval()
    assert (model(x) - expected).abs().max() < 0.1
    assert not isinstance(model.add, RangeLinearQuantEltwiseAddWrapper)
    assert "statistics" in quantizer.plan()["add"].note
    with pytest.raises(CalibrationError, match="another model"):
        PostTrainLinearQuantizer(seeded(Called), model_activation_stats={**stats, "conv.add": stats["add"]})


def test_what_fails_leaves_the_model_as_it_was():
    model, x = seeded(Called), images(4, 3, 4, 4)
    expected, classes = model(x), [type(module) for module in model.modules()]
    stats = collect_quant_stats(model, lambda model: model(x))
    stats["add"] = {"inputs": stats["add"]["inputs"], "output": {**stats["add"]["output"], "max": float("1e39")}}
    quantizer = PostTrainLinearQuantizer(model, model_activation_stats=stats, overrides={"fc": {"clip_acts": "N_STD"}})
    with pytest.raises(ValueError, match="clip_n_stds"):
        quantizer.prepare_model(x)
    assert [type(module) for module in model.modules()] == classes
    assert not any("function_names" in vars(module) for module in model.modules())
    assert torch.equal(model(x), expected)


def test_statistics_of_the_prepared_model_have_the_same_names():
    model, x = seeded(Called), images(4, 3, 4, 4)
    before = collect_quant_stats(model, lambda model: model(x))
    PostTrainLinearQuantizer(model, model_activation_stats=before).prepare_model(x)
    model.eval()
    collector = QuantCalibrationStatsCollector(model)
    with collector_context(collector):
        model(x)
    # What was folded or fused is an identity now.
    assert set(collector.value()) == set(before) - {"bn", "relu"}


def test_wrapped_layers_answer_as_the_layer():
    model, x = seeded(Called), images(4, 3, 4, 4)
    weight = model.fc.weight.detach().clone()
    quantized(model, x)
    assert model.fc.in_features == 16 and model.conv.kernel_size == (3, 3)
    assert model.fc.weight.dtype == torch.float32
    assert (model.fc.weight - weight).abs().max() <= 0.5001 / float(model.fc.w_scale)
    with pytest.raises(AttributeError, match="no_such"):
        model.fc.no_such  # noqa: B018


def test_attention_as_a_function_computes_in_floating_point_and_the_plan_says_so():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.k, self.v = (nn.Linear(4, 4) for _ in range(3))

        def forward(self, x):
            return F.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x), is_causal=True)

    model, x = seeded(Attention), images(2, 3, 4)
    expected = model(x)
    stats = collect_quant_stats(model, lambda model: model(x))
    quantizer = PostTrainLinearQuantizer(model, model_activation_stats=stats)
    assert "floating point" in quantizer.plan()["scaled_dot_product_attention"].note
    quantizer.prepare_model(x)
    model.eval()
    assert isinstance(model.scaled_dot_product_attention, RangeLinearFakeQuantWrapper)
    row = quantizer.plan()["scaled_dot_product_attention"]
    assert row.activations == 8 and "floating point" in row.note
    assert (model(x) - expected).abs().max() < 0.03


def test_a_checkpoint_of_the_prepared_model_prepares_a_fresh_one(tmp_path):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.rnn, self.fc = nn.Conv2d(3, 4, 3), nn.GRU(4, 4, batch_first=True), nn.Linear(4, 3)

        def forward(self, x):
            y = F.relu(self.conv(x))
            y = (y + y * 0.5).flatten(2).transpose(1, 2)
            return self.fc(self.rnn(y)[0].mean(1))

    model, x = seeded(Net), images(2, 3, 5, 5)
    quantized(model, x)
    distiller.apputils.save_checkpoint(0, "net", model, name="ptq", dir=str(tmp_path))
    loaded = distiller.apputils.load_checkpoint(Net(), str(tmp_path / "ptq_checkpoint.pth.tar"))[0].eval()
    assert isinstance(loaded.add, RangeLinearQuantEltwiseAddWrapper)
    assert torch.equal(loaded(x), model(x))
