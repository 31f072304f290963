"""PostTrainLinearQuantizer: pipeline, parameters, settings."""

from __future__ import annotations

import copy
import random
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import distiller_ng as distiller
from distiller_ng.data_loggers import collect_quant_stats
from distiller_ng.errors import CalibrationError, ScheduleWarning
from distiller_ng.modules import Concat, DistillerLSTM, EltwiseAdd, EltwiseMult
from distiller_ng.quantization.post_train import PostTrainLinearQuantizer
from distiller_ng.quantization.range_linear import (
    ClipMode,
    FPWrapper,
    RangeLinearEmbeddingWrapper,
    RangeLinearFakeQuantWrapper,
    RangeLinearQuantConcatWrapper,
    RangeLinearQuantEltwiseAddWrapper,
    RangeLinearQuantEltwiseMultWrapper,
    RangeLinearQuantParamLayerWrapper,
)

pytestmark = pytest.mark.filterwarnings("ignore::distiller_ng.errors.ScheduleWarning")


def entry(low, high, avg_low, avg_high, mean=0.0, std=0.5):
    return {"min": low, "max": high, "avg_min": avg_low, "avg_max": avg_high, "mean": mean, "std": std}


def made_up_stats(model):
    """Statistics for every leaf, each one's input being the output before."""
    draw = random.Random(0)

    def one():
        low, high = sorted(draw.uniform(-10, 10) for _ in range(2))
        avg_low, avg_high = sorted(draw.uniform(low, high) for _ in range(2))
        return entry(low, high, avg_low, avg_high, (avg_low + avg_high) / 2, draw.random())

    stats, last = {}, None
    for name, module in model.named_modules():
        if not any(module.children()):
            stats[name] = {"inputs": {0: copy.deepcopy(last) if last else one()}, "output": one()}
            last = stats[name]["output"]
    return stats


def calibrated(model, *inputs):
    """Statistics of real passes."""

    def run(model):
        model.eval()
        with torch.no_grad():
            model(*inputs)

    return collect_quant_stats(model, run)


class ConvBnActPool(nn.Module):
    def __init__(self, act=None, as_module=True):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.function = None
        if act and as_module:
            self.act = {"relu": nn.ReLU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid}[act]()
        elif act:
            self.function = {"relu": F.relu, "tanh": torch.tanh, "sigmoid": torch.sigmoid}[act]
        self.pool = nn.MaxPool2d(2)

    def forward(self, x):
        x = self.bn(self.conv(x))
        if self.function is not None:
            x = self.function(x)
        elif hasattr(self, "act"):
            x = self.act(x)
        return self.pool(x)


IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "model, shape",
    [
        (nn.Sequential(nn.ReLU(), nn.BatchNorm1d(5)), (10, 5)),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)), (2, 3, 8, 8)),
        (nn.Sequential(nn.Linear(10, 20), nn.BatchNorm1d(20, track_running_stats=False)), (10, 10)),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(2)), (2, 3, 8, 8)),
    ],
)
def test_nothing_to_fuse(model, shape):
    stats = made_up_stats(model)
    quantizer = PostTrainLinearQuantizer(model, model_activation_stats=copy.deepcopy(stats))
    quantizer.prepare_model(torch.randn(shape))
    assert quantizer.model_activation_stats == stats


def test_statistics_of_a_folded_batch_norm():
    model = ConvBnActPool()
    stats = made_up_stats(model)
    quantizer = PostTrainLinearQuantizer(model, model_activation_stats=copy.deepcopy(stats))
    quantizer.prepare_model(IMAGES)
    expected = copy.deepcopy(stats)
    expected["conv"]["output"] = expected.pop("bn")["output"]
    assert quantizer.model_activation_stats == expected
    assert isinstance(model.bn, nn.Identity)


@pytest.mark.parametrize(
    "act, as_module, output, expected_output",
    [
        ("relu", True, entry(-5.0, 5.0, -3.0, 3.0), entry(0.0, 5.0, 0, 3.0)),
        ("relu", False, entry(-5.0, 5.0, -3.0, 3.0), entry(0.0, 5.0, 0, 3.0)),
        ("relu", False, entry(1.0, 5.0, 2.0, 3.0), entry(1.0, 5.0, 2.0, 3.0)),
        ("relu", False, entry(-5.0, -1.0, -4.0, -2.0), entry(0.0, 0, 0, 0.0)),
        ("tanh", True, entry(-5.0, 5.0, -3.0, 3.0), entry(-4.0, 4.0, -3.0, 3.0)),
        ("tanh", False, entry(-6.0, 3.0, -5.0, 1.0), entry(-4.0, 3.0, -4.0, 1.0)),
        ("tanh", False, entry(1.0, 6.0, 2.0, 3.0), entry(1.0, 4.0, 2.0, 3.0)),
        ("sigmoid", True, entry(-8.0, 8.0, -7.0, 7.0), entry(-6.0, 6.0, -6.0, 6.0)),
        ("sigmoid", False, entry(-8.0, 3.0, -7.0, 1.0), entry(-6.0, 3.0, -6.0, 1.0)),
        ("sigmoid", False, entry(-2.0, 3.0, -1.0, 2.0), entry(-2.0, 3.0, -1.0, 2.0)),
    ],
)
def test_statistics_before_an_activation(act, as_module, output, expected_output):
    model = ConvBnActPool(act, as_module)
    stats = made_up_stats(model)
    stats["bn"]["output"] = output
    quantizer = PostTrainLinearQuantizer(model, model_activation_stats=copy.deepcopy(stats))
    quantizer.prepare_model(IMAGES)
    expected = copy.deepcopy(stats)
    expected.pop("bn")
    expected["conv"]["output"] = expected_output
    if as_module:
        expected["act"]["inputs"][0] = expected_output
    assert quantizer.model_activation_stats == expected


class SplitActs(nn.Module):
    def __init__(self, first, second):
        super().__init__()
        kinds = {"relu": nn.ReLU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid}
        self.linear, self.bn = nn.Linear(10, 40), nn.BatchNorm1d(40)
        self.act1, self.act2 = kinds[first](), kinds[second]()

    def forward(self, x):
        first, second = self.bn(self.linear(x)).chunk(2, dim=1)
        return self.act1(first) + self.act2(second)


@pytest.mark.parametrize(
    "first, second, output, expected_output",
    [
        ("relu", "relu", entry(-5.0, 5.0, -3.0, 3.0), entry(0.0, 5.0, 0, 3.0)),
        ("relu", "sigmoid", entry(-5.0, 5.0, -3.0, 3.0), entry(-5.0, 5.0, -3.0, 3.0)),
        ("relu", "tanh", entry(-5.0, 5.0, -3.0, 3.0), entry(-5.0, 5.0, -3.0, 3.0)),
        ("tanh", "tanh", entry(-5.0, 5.0, -3.0, 3.0), entry(-4.0, 4.0, -3.0, 3.0)),
        ("tanh", "sigmoid", entry(-8.0, 8.0, -7.0, 7.0), entry(-6.0, 6.0, -6.0, 6.0)),
        ("sigmoid", "sigmoid", entry(-8.0, 8.0, -7.0, 7.0), entry(-6.0, 6.0, -6.0, 6.0)),
    ],
)
def test_statistics_before_a_split(first, second, output, expected_output):
    model = SplitActs(first, second)
    stats = made_up_stats(model)
    stats["bn"]["output"] = output
    quantizer = PostTrainLinearQuantizer(model, model_activation_stats=copy.deepcopy(stats))
    quantizer.prepare_model(torch.randn(10, 10))
    expected = copy.deepcopy(stats)
    expected.pop("bn")
    expected["linear"]["output"] = expected_output
    assert quantizer.model_activation_stats == expected


def test_parameters_of_the_prepared_model(tmp_path):
    model = SplitActs("relu", "tanh")
    quantizer = PostTrainLinearQuantizer(model, model_activation_stats=made_up_stats(model), save_fp_weights=True)
    quantizer.prepare_model(torch.randn(10, 10))
    outputs = {f"{name}.output_{what}" for name in ("linear", "act1", "act2") for what in ("scale", "zero_point")}
    assert set(quantizer.linear_quant_params) == outputs | {"linear.w_scale", "linear.w_zero_point"}
    quantizer.set_linear_quant_param("linear.output_zero_point", 2.0)
    quantizer.set_linear_quant_param("linear.output_scale", 30.0)
    assert dict(model.linear.named_linear_quant_params()) == {
        "output_zero_point": torch.tensor(2.0),
        "output_scale": 30.0,
        "w_scale": model.linear.w_scale.item(),
        "w_zero_point": model.linear.w_zero_point.item(),
    }
    assert model.linear.force_readjust.item() is model.act1.force_readjust.item() is True
    quantizer.update_linear_quant_params({"linear.output_zero_point": 4.0, "act2.output_scale": 50})
    assert model.linear.output_zero_point == 4
    assert model.act2.output_scale == 50
    with pytest.raises(ValueError, match="output_scale"):
        quantizer.update_linear_quant_params({"act2.output_scale": 1.0, "act2.output_scal": 1.0})
    assert model.act2.output_scale == 50
    quantizer.update_clipping_parameters({"act2.output_clipping": (-1.0, 1.0)})
    assert model.act2.output_scale == 127.5
    assert "act2" in quantizer.save_per_layer_parameters(tmp_path).read_text()


class Language(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.rnn, self.softmax = nn.Embedding(41, 20), DistillerLSTM(20, 8, 1), nn.Softmax(dim=-1)

    def forward(self, x):
        y, h = self.rnn(self.embedding(x))
        return self.softmax(y), h


@pytest.mark.parametrize(
    "override, clip, stds",
    [(None, ClipMode.AVG, 0), ({"clip_acts": "NONE"}, ClipMode.NONE, 0),
     ({"clip_acts": "N_STD", "clip_n_stds": 2}, ClipMode.N_STD, 2)],
)  # fmt: skip
def test_lstm_and_embedding(override, clip, stds):
    torch.manual_seed(0)
    model, tokens = Language(), torch.randint(0, 41, (10, 1))
    expected = model.eval()(tokens)[0]
    overrides = override and {"rnn.cells.0.eltwisemult_hidden": override}
    quantizer = PostTrainLinearQuantizer(
        model, clip_acts="AVG", clip_n_stds=0, overrides=overrides, model_activation_stats=calibrated(model, tokens)
    )
    quantizer.prepare_model(tokens)
    product = model.rnn.cells[0].eltwisemult_hidden
    assert isinstance(product, RangeLinearQuantEltwiseMultWrapper)
    assert (product.output_quant_settings.clip_mode, product.output_quant_settings.clip_n_stds) == (clip, stds)
    assert isinstance(model.embedding, RangeLinearEmbeddingWrapper)
    quantizer.update_linear_quant_params({"embedding.w_scale": torch.tensor(59.0)})
    assert model.embedding.w_scale == 59.0
    assert (model(tokens)[0] - expected).abs().max() < 0.05


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn1, self.relu1 = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU()
        self.conv2, self.bn2 = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.add, self.mult, self.cat = EltwiseAdd(), EltwiseMult(), Concat(1)
        self.relu2, self.pool, self.drop = nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Dropout()
        self.fc = nn.Linear(12, 5)

    def forward(self, x):
        y = self.relu1(self.bn1(self.conv1(x)))
        z = self.relu2(self.add(self.bn2(self.conv2(y)), y))
        return self.fc(self.drop(self.pool(self.cat(y, z, self.mult(y, z))).flatten(1)))


def residual():
    torch.manual_seed(0)
    model = Residual()
    model(torch.randn(8, 3, 8, 8))
    return model.eval()


@pytest.mark.parametrize("mode", ["SYMMETRIC", "SYMMETRIC_RESTRICTED", "ASYMMETRIC_SIGNED", "ASYMMETRIC_UNSIGNED"])
@pytest.mark.parametrize("per_channel", [False, True])
def test_a_whole_model(mode, per_channel):
    model = residual()
    expected = model(IMAGES).detach()
    stats = calibrated(model, IMAGES)
    kept = copy.deepcopy(stats)
    quantizer = PostTrainLinearQuantizer(
        model, mode=mode, per_channel_wts=per_channel, model_activation_stats=stats, clip_acts="none"
    )
    print(quantizer.plan())
    assert quantizer.prepare_model(IMAGES) is model
    assert stats == kept
    kinds = {name: type(module) for name, module in model.named_children()}
    assert kinds == {
        "conv1": RangeLinearQuantParamLayerWrapper, "bn1": nn.Identity, "relu1": nn.Identity,
        "conv2": RangeLinearQuantParamLayerWrapper, "bn2": nn.Identity,
        "add": RangeLinearQuantEltwiseAddWrapper, "mult": RangeLinearQuantEltwiseMultWrapper,
        "cat": RangeLinearQuantConcatWrapper, "relu2": nn.Identity, "pool": RangeLinearFakeQuantWrapper,
        "drop": nn.Dropout, "fc": RangeLinearQuantParamLayerWrapper,
    }  # fmt: skip
    output = model.eval()(IMAGES)
    assert (output - expected).abs().max() < 0.06 * expected.abs().max()
    assert torch.equal(output, model(IMAGES))
    with pytest.raises(RuntimeError, match="once"):
        quantizer.prepare_model(IMAGES)
    with pytest.raises(RuntimeError, match="eval"):
        model.train()(IMAGES)


def test_dynamic():
    model = residual()
    expected = model(IMAGES).detach()
    quantizer = PostTrainLinearQuantizer(model, mode="ASYMMETRIC_UNSIGNED")
    with pytest.warns(ScheduleWarning, match="stay in floating point"):
        quantizer.prepare_model(IMAGES)
    assert isinstance(model.add, EltwiseAdd)
    assert isinstance(model.relu1, nn.ReLU)
    assert (model(IMAGES) - expected).abs().max() < 0.05 * expected.abs().max()


def test_weights_only_and_activations_only():
    expected = residual()(IMAGES).detach()
    model = residual()
    PostTrainLinearQuantizer(model, bits_activations=None, bits_parameters=8).prepare_model(IMAGES)
    weight = model.fc.wrapped_module.weight
    assert weight.unique().numel() <= 256
    assert isinstance(model.add, EltwiseAdd)
    assert (model(IMAGES) - expected).abs().max() < 0.05 * expected.abs().max()

    model = residual()
    stats = calibrated(model, IMAGES)
    PostTrainLinearQuantizer(model, bits_parameters=None, model_activation_stats=stats).prepare_model(IMAGES)
    assert isinstance(model.fc, RangeLinearFakeQuantWrapper)
    assert isinstance(model.fc.wrapped_module, nn.Linear)
    assert (model(IMAGES) - expected).abs().max() < 0.05 * expected.abs().max()


def test_overrides():
    model = residual()
    overrides = {
        "conv1": {"bits_activations": None, "bits_weights": None},
        "conv2": {"fpq_module": 16},
        "pool": {"make_identity": True},
        "fc": {
            "bits_weights": 4,
            "mode": {"activations": "ASYMMETRIC_UNSIGNED", "weights": "SYMMETRIC_RESTRICTED"},
            "clip_acts": "NONE",
            "input_overrides": {0: {"clip_acts": "AVG", "bits_activations": 6}},
        },
    }
    stats = calibrated(model, IMAGES)
    PostTrainLinearQuantizer(model, overrides=overrides, clip_acts="AVG", model_activation_stats=stats).prepare_model(
        IMAGES
    )
    assert isinstance(model.conv1, nn.Conv2d)
    assert isinstance(model.conv2, FPWrapper)
    assert model.conv2.wrapped_module.weight.dtype == torch.float16
    assert isinstance(model.pool.wrapped_module, nn.Identity)
    assert model.fc.wts_quant_settings.num_bits == 4
    assert model.fc.output_quant_settings.clip_mode is ClipMode.NONE
    assert model.fc.input_overrides[0].num_bits == 6
    # relu1 is behind a layer in floating point and stays a module of its own.
    assert isinstance(model.relu1, RangeLinearFakeQuantWrapper)


@pytest.mark.parametrize(
    "arguments, match",
    [
        ({"mode": "symmetrc"}, "mode"),
        ({"clip_acts": "N_STD"}, "n_stds"),
        ({"clip_acts": "average"}, "AVG"),
        ({"bits_activations": 0}, "bits"),
        ({"fpq_module": 8}, "16, 32 or 64"),
        ({"overrides": {"fc": {"clip_act": "AVG"}}}, "clip_act"),
        ({"overrides": {"fcc": {"clip_acts": "AVG"}}}, "fcc"),
        ({"overrides": {"fc": {"input_overrides": {0: {"bits": 3}}}}}, "bits"),
        ({"per_channel_wts": "yes"}, "per_channel_wts"),
    ],
)
def test_wrong_settings_leave_the_model_alone(arguments, match):
    model = residual()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    kinds = [type(module) for module in model.modules()]
    with pytest.raises((ValueError, TypeError), match=match):
        PostTrainLinearQuantizer(model, **arguments).prepare_model(IMAGES)
    assert [type(module) for module in model.modules()] == kinds
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_statistics_of_another_model_and_missing_dummy_input():
    model = residual()
    with pytest.raises(CalibrationError, match="another model"):
        PostTrainLinearQuantizer(model, model_activation_stats=made_up_stats(ConvBnActPool("relu")))
    with pytest.raises(FileNotFoundError):
        PostTrainLinearQuantizer(model, model_activation_stats="nowhere.yaml")
    with pytest.raises(ValueError, match="dummy_input"):
        PostTrainLinearQuantizer(model).prepare_model()


def test_functions_that_older_statistics_do_not_have_are_named():
    model = SplitActs("relu", "tanh")
    with pytest.warns(ScheduleWarning, match="no statistics of chunk, add"):
        PostTrainLinearQuantizer(model, model_activation_stats=made_up_stats(model)).prepare_model(torch.randn(4, 10))


def test_a_statistics_file_and_the_schedule_shape(tmp_path):
    model = residual()
    collect_quant_stats(model, lambda model: model.eval()(IMAGES), save_dir=tmp_path)
    path = tmp_path / "acts_quantization_stats.yaml"
    schedule = tmp_path / "ptq.yaml"
    schedule.write_text(
        f"""
quantizers:
  post_train_quantizer:
    class: PostTrainLinearQuantizer
    bits_activations: 8
    bits_parameters: 8
    bits_accum: 32
    mode:
      activations: ASYMMETRIC_UNSIGNED
      weights: SYMMETRIC
    model_activation_stats: {path}
    per_channel_wts: True
    clip_acts: AVG
    inputs_quant_auto_fallback: False
    overrides:
      conv1:
        input_overrides:
          0:
            from_output: True
      fc:
        clip_acts: NONE
        input_overrides:
          0:
            clip_acts: AVG
"""
    )
    expected = model(IMAGES).detach()
    quantizer = distiller.config_component_from_file_by_class(model, str(schedule), "PostTrainLinearQuantizer")
    quantizer.prepare_model(IMAGES)
    assert model.fc.input_overrides[0].clip_mode is ClipMode.AVG
    assert model.conv1.inputs_quant_auto_fallback is False
    assert (model(IMAGES) - expected).abs().max() < 0.2 * expected.abs().max()


def test_the_oldest_order_of_arguments():
    model = residual()
    stats = calibrated(model, IMAGES)
    with pytest.warns(DeprecationWarning, match="order of arguments"):
        quantizer = PostTrainLinearQuantizer(model, 8, 8, 32, None, "SYMMETRIC", "AVG", ["fc"], True, stats)
    quantizer.prepare_model(IMAGES)
    assert model.fc.output_quant_settings.clip_mode is ClipMode.NONE
    assert model.conv2.output_quant_settings.clip_mode is ClipMode.AVG
    assert model.conv2.w_scale.numel() == 4
    with pytest.raises(ValueError, match="per_channel_wts"):
        PostTrainLinearQuantizer(model, 8, 8, 32, None, "SYMMETRIC", "AVG", ["fc"], "stats.yaml")


def test_shared_and_wrapped_models():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(4, 4)
            self.second = self.first
            self.relu = nn.ReLU()

        def forward(self, x):
            return self.relu(self.second(self.relu(self.first(x))))

    torch.manual_seed(0)
    model, x = Twice(), torch.rand(5, 4)
    expected = model(x).detach()
    stats = calibrated(model, x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        PostTrainLinearQuantizer(model, model_activation_stats=stats).prepare_model(x)
    assert model.first is model.second
    assert (model.eval()(x) - expected).abs().max() < 0.05 * expected.abs().max()


def test_a_relu_that_is_called_twice_stays():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
            self.relu = nn.ReLU(inplace=True)

        def forward(self, x):
            y = self.relu(self.first(x))
            return self.relu(self.second(y) + y)

    torch.manual_seed(0)
    model = Block()
    expected = model(IMAGES).detach()
    stats = calibrated(model, IMAGES)
    PostTrainLinearQuantizer(model, model_activation_stats=stats).prepare_model(IMAGES)
    assert isinstance(model.relu.wrapped_module, nn.ReLU)
    assert (model.eval()(IMAGES) - expected).abs().max() < 0.05 * expected.abs().max()


@pytest.mark.parametrize("static", [False, True])
def test_a_transformer_encoder(static):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    model, x = nn.TransformerEncoder(layer, 1).eval(), torch.randn(2, 5, 16)
    with torch.no_grad():
        expected = model(x)
    PostTrainLinearQuantizer(model, model_activation_stats=calibrated(model, x) if static else None).prepare_model(x)
    first = model.layers[0]
    assert isinstance(first.linear1, RangeLinearQuantParamLayerWrapper)
    with torch.no_grad():
        assert 0 < (model(x) - expected).abs().max() < 0.05 * expected.abs().max()
        padded = model(x, src_key_padding_mask=torch.zeros(2, 5, dtype=torch.bool))
    assert (padded - expected).abs().max() < 0.05 * expected.abs().max()


def test_a_single_layer_is_refused():
    with pytest.raises(ValueError, match="Sequential"):
        PostTrainLinearQuantizer(nn.Linear(4, 2)).prepare_model(torch.randn(1, 4))


class _SamePadding(nn.Conv2d):
    """A convolution that keeps its padding as a module, as EfficientNet's of several libraries do."""

    def __init__(self):
        super().__init__(1, 2, 3, stride=2, bias=False)
        self.static_padding = nn.ZeroPad2d((0, 1, 0, 1))

    def forward(self, x):
        return nn.functional.conv2d(self.static_padding(x), self.weight, self.bias, self.stride)


def test_a_convolution_with_its_padding_inside_is_one_layer():
    torch.manual_seed(0)
    model = nn.Sequential(_SamePadding(), nn.BatchNorm2d(2), nn.ReLU()).eval()
    model[1].running_mean.uniform_(-1, 1)
    x = torch.randn(4, 1, 8, 8)
    stats = collect_quant_stats(model, lambda model: model(x))
    assert set(stats) == {"0", "1", "2"}
    expected = model(x)
    model = PostTrainLinearQuantizer(model, model_activation_stats=stats).prepare_model(x)
    assert isinstance(model[0], RangeLinearQuantParamLayerWrapper) and isinstance(model[1], nn.Identity)
    assert torch.allclose(model(x), expected, atol=0.05)
