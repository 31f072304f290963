"""LAPQ: vectors and dictionaries, starts layer by layer, the search over all layers."""

from __future__ import annotations

import argparse
import copy
import logging
from collections import OrderedDict

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import distiller_ng as distiller
import distiller_ng.quantization.ptq_coordinate_search as lapq
from distiller_ng.checkpoint import load_checkpoint, save_checkpoint
from distiller_ng.data_loggers import collect_quant_stats
from distiller_ng.errors import ArgumentError, CalibrationError, TargetError
from distiller_ng.model_transforms import fold_batch_norms
from distiller_ng.modules import EltwiseAdd
from distiller_ng.quantization import ClipMode, PostTrainLinearQuantizer
from distiller_ng.quantization.ptq_search_inputs import LayerInputs
from distiller_ng.quantization.ptq_search_vector import SearchSpace
from distiller_ng.quantization.range_linear import RangeLinearQuantParamLayerWrapper

pytestmark = pytest.mark.filterwarnings("ignore::distiller_ng.errors.ScheduleWarning")

DRAW = torch.Generator().manual_seed(0)
IMAGES = torch.randn(64, 1, 6, 6, generator=DRAW)
IMAGES[0] *= 6  # an outlier, which makes ranges too wide


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn, self.relu = nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU()
        self.conv2, self.add = nn.Conv2d(4, 4, 3, padding=1), EltwiseAdd()
        self.relu2, self.fc = nn.ReLU(), nn.Linear(144, 3)

    def forward(self, x):
        y = self.relu(self.bn(self.conv1(x)))
        return self.fc(self.relu2(self.add(self.conv2(y), y)).flatten(1))


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(0)
    model = Net()
    for _ in range(3):
        model(torch.randn(32, 1, 6, 6))
    model.eval()
    with torch.no_grad():
        targets = model(IMAGES)
    return model, targets


def loss_of(targets):
    def loss(model):
        model.eval()
        return F.mse_loss(model(IMAGES), targets)

    return loss


# -- vectors -----------------------------------------------------------------------------------------------------------


def test_scales_to_a_vector_and_back():
    scales = OrderedDict([("a.output_scale", torch.tensor([4.0])), ("a.w_scale", torch.tensor([[1.0], [3.0]]))])
    keys, values = lapq.quant_params_dict2vec(scales)
    assert keys == ("a.output_scale", "a.w_scale")
    assert values.tolist() == [4.0, 2.0]
    back = lapq.quant_params_vec2dict(keys, np.array([-5.0, 4.0]), like=scales)
    assert list(back) == list(keys)
    assert back["a.output_scale"] == 5.0
    assert back["a.w_scale"].tolist() == [[2.0], [6.0]]
    assert lapq.quant_params_vec2dict(["a"], [0.0])["a"] > 0


def test_ranges_to_a_vector_and_back():
    ranges = OrderedDict([("a.output_clipping", torch.tensor([-1.0, 2.0])), ("b.weight_clipping", (-3.0, 3.0))])
    keys, values = lapq.quant_params_dict2vec(ranges, search_clipping=True)
    assert keys == (
        *("a.output_clipping_min", "a.output_clipping_max", "b.weight_clipping_min", "b.weight_clipping_max"),
    )
    assert values.tolist() == [-1.0, 2.0, -3.0, 3.0]
    back = lapq.quant_params_vec2dict(keys, [2.0, -1.0, -3.0, 4.0], search_clipping=True)
    assert {name: value.tolist() for name, value in back.items()} == {
        "a.output_clipping": [-1.0, 2.0],
        "b.weight_clipping": [-3.0, 4.0],
    }


def test_ranges_beside_scales_of_single_channels():
    start = OrderedDict([("a.output_clipping", torch.tensor([-1.0, 2.0])), ("a.w_scale", torch.tensor([1.0, 3.0]))])
    keys, values = lapq.quant_params_dict2vec(start, search_clipping=True)
    assert keys == ("a.output_clipping_min", "a.output_clipping_max", "a.w_scale")
    assert values.tolist() == [-1.0, 2.0, 2.0]
    back = lapq.quant_params_vec2dict(keys, [-1.0, 3.0, -4.0], search_clipping=True, like=start)
    assert {name: value.tolist() for name, value in back.items()} == {
        "a.output_clipping": [-1.0, 3.0],
        "a.w_scale": [2.0, 6.0],
    }


def test_a_space_touches_only_what_changed(trained):
    model, _ = copy.deepcopy(trained)
    quantizer = PostTrainLinearQuantizer(model, 4, 4, per_channel_wts=True, save_fp_weights=True)
    quantizer.prepare_model(IMAGES[:1])
    space = SearchSpace(dict(quantizer._wrappers()))
    assert space.keys == ("conv1.w_scale", "conv2.w_scale", "fc.w_scale")
    assert space.origin.tolist() == [1.0, 1.0, 1.0]
    space.set(space.origin)
    for layer in (model.conv1, model.conv2, model.fc):
        layer.force_readjust.fill_(False)
    before = model.conv2.w_scale.clone()
    space.set([1.0, -2.0, 1.0])
    assert torch.allclose(model.conv2.w_scale, before * 2)
    assert [bool(layer.force_readjust) for layer in (model.conv1, model.conv2, model.fc)] == [False, True, False]


@pytest.mark.parametrize("p, expected", [(1, 1.5), (2, 2.5), (3, 4.5)])
def test_losses(p, expected):
    x, y = torch.tensor([0.0, 2.0]), torch.tensor([1.0, 0.0])
    assert lapq.lp_loss(x, y, p) == expected
    assert {1: lapq.l1_loss, 2: lapq.l2_loss, 3: lapq.l3_loss}[p](x, y) == expected
    with pytest.raises(ArgumentError, match="shapes"):
        lapq.lp_loss(x, torch.zeros(3), p)


# -- single layers -----------------------------------------------------------------------------------------------------


def test_inputs_of_a_layer(trained):
    model, _ = trained
    with torch.no_grad():
        expected = model.relu(model.bn(model.conv1(IMAGES)))

    def run(model):
        for batch in IMAGES.split(24):
            model(batch)

    (found,) = lapq.get_input_for_layer(model, "conv2", run)
    assert torch.allclose(found, expected, atol=1e-6)
    first, second = lapq.get_input_for_layer(model, "module.add", run, samples=30)
    assert first.shape == second.shape == (30, 4, 6, 6)
    assert not model.conv2._forward_pre_hooks
    with pytest.raises(TargetError, match="conv2"):
        lapq.get_input_for_layer(model, "conv3", run)
    with pytest.raises(CalibrationError, match="did not run"):
        lapq.get_input_for_layer(model, "fc", lambda model: None)


def test_all_inputs_come_from_one_pass(trained):
    model, _ = trained
    passes = []

    def run(model):
        passes.append(1)
        model(IMAGES)

    inputs = LayerInputs.collect(model, nn.Sequential(), ["conv1", "add", "fc"], run)
    assert len(passes) == 1
    assert [len(inputs.of(name)) for name in ("conv1", "add", "fc")] == [1, 2, 1]
    assert inputs.reference("conv1") is model.conv1


def test_arguments_without_a_batch_stay_whole():
    class Shifted(nn.Module):
        def __init__(self):
            super().__init__()
            self.add, self.shift = EltwiseAdd(), nn.Parameter(torch.ones(6, 6))

        def forward(self, x):
            return self.add(x, self.shift)

    x, shift = lapq.get_input_for_layer(Shifted(), "add", lambda model: [model(batch) for batch in IMAGES.split(8)])
    assert (x.shape, shift.shape) == ((8, 1, 6, 6), (6, 6))


def test_a_layer_is_optimized_for_a_function():
    layer = RangeLinearQuantParamLayerWrapper(nn.Linear(2, 2), 8, 8, activation_stats={
        "inputs": {0: {"min": -1, "max": 1}}, "output": {"min": -1, "max": 1}
    })  # fmt: skip
    found = lapq.optimize_for_layer(
        layer,
        lambda layer: (float(layer.output_scale) - 40.0) ** 2 + (float(layer.w_scale) - 20.0) ** 2,
        {"output_scale": 100.0, "w_scale": 30.0},
    )
    assert found["output_scale"] == pytest.approx(40, rel=0.02)
    assert found["w_scale"] == pytest.approx(20, rel=0.02)
    assert float(layer.output_scale) == pytest.approx(found["output_scale"])
    ranges = lapq.optimize_for_layer(layer, lambda layer: abs(float(layer.output_scale) - 127.5), search_clipping=True)
    assert set(ranges) == {"output_clipping", "weight_clipping"}
    with pytest.raises(ArgumentError, match="no 'scale'"):
        lapq.optimize_for_layer(layer, lambda layer: 0.0, {"scale": 1.0})


@pytest.mark.parametrize("mode", ["AVG", "LAPLACE", "GAUSS"])
def test_clippings_as_starts(trained, mode):
    model, targets = copy.deepcopy(trained)
    stats = collect_quant_stats(model, loss_of(targets))
    quantizer = PostTrainLinearQuantizer(model, 4, 4, model_activation_stats=stats, save_fp_weights=True)
    quantizer.prepare_model(IMAGES[:1])
    found = lapq.init_layer_linear_quant_params(quantizer, trained[0], "fc", mode)
    clipped = copy.deepcopy(trained[0])
    expected = PostTrainLinearQuantizer(
        clipped, 4, 4, model_activation_stats=stats, clip_acts=mode, also_clip_weights=True
    )
    expected.prepare_model(IMAGES[:1])
    assert found["fc.output_scale"] == pytest.approx(float(clipped.fc.output_scale))
    assert found["fc.w_scale"] == pytest.approx(float(clipped.fc.w_scale))


@pytest.mark.parametrize("mode", ["L1", "L2", "l3", lapq.l2_loss])
def test_starts_that_change_the_output_least(trained, mode):
    model, targets = copy.deepcopy(trained)
    stats = collect_quant_stats(model, loss_of(targets))
    quantizer = PostTrainLinearQuantizer(
        model, 3, 3, model_activation_stats=stats, save_fp_weights=True, inputs_quant_auto_fallback=False,
        overrides={"conv1": {"inputs_quant_auto_fallback": True}},
    )  # fmt: skip
    original = fold_batch_norms(copy.deepcopy(trained[0]), IMAGES[:1])
    quantizer.prepare_model(IMAGES[:1])
    before = quantizer.linear_quant_params["conv2.output_scale"].item()
    found = lapq.init_linear_quant_params(quantizer, original, loss_of(targets), IMAGES[:1], mode)
    assert set(found) == {
        *("conv1.output_scale", "conv1.w_scale", "conv2.output_scale", "conv2.w_scale", "add.output_scale"),
        *("fc.output_scale", "fc.w_scale"),
    }
    assert found["conv2.output_scale"] > before  # the outlier is cut off
    assert model.conv2.quantize_inputs is True
    with pytest.raises(TargetError, match="conv1"):
        lapq.init_layer_linear_quant_params(quantizer, original, "conv3", mode, eval_fn=loss_of(targets))


def test_unknown_starts():
    with pytest.raises(ArgumentError, match="LAPLACE"):
        lapq.init_linear_quant_params(None, None, None, None, "LAPLACIAN")


# -- the search --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, ratio",
    [
        ({}, 0.7),
        ({"init_mode": "L3", "per_channel_wts": True}, 0.95),
        ({"init_mode": ClipMode.GAUSS, "method": "Nelder-Mead", "maxfev": 60, "maxiter": None}, 0.95),
        ({"init_mode": "L2", "mode": "ASYMMETRIC_UNSIGNED", "search_clipping": True}, 0.7),
        ({"init_mode": "L2", "mode": "ASYMMETRIC_UNSIGNED", "search_clipping": True, "per_channel_wts": True}, 0.9),
        ({"basinhopping": True, "basinhopping_niter": 1, "maxfev": 30}, 0.95),
    ],
)
def test_the_loss_at_four_bits_falls(trained, options, ratio):
    model, targets = copy.deepcopy(trained)
    options = {"maxiter": 1, **options}
    settings = {name: options.pop(name) for name in ("mode", "per_channel_wts") if name in options}
    stats = collect_quant_stats(model, loss_of(targets))
    plain = copy.deepcopy(model)
    PostTrainLinearQuantizer(plain, 4, 4, model_activation_stats=stats, **settings).prepare_model(IMAGES[:1])
    before = loss_of(targets)(plain)
    quantizer = PostTrainLinearQuantizer(model, 4, 4, model_activation_stats=stats, clip_acts="AVG", **settings)
    result, best = lapq.ptq_coordinate_search(quantizer, IMAGES[:1], loss_of(targets), **options)
    assert result is model
    after = loss_of(targets)(model)
    assert after < ratio * before
    if options.get("search_clipping"):
        quantizer.update_clipping_parameters(best)
    else:
        assert all(name.endswith("_scale") for name in best)
        quantizer.update_linear_quant_params(best)
    assert loss_of(targets)(model) == pytest.approx(float(after), rel=1e-3)


def test_statistics_are_collected_and_the_result_is_saved(trained, tmp_path, caplog):
    model, targets = copy.deepcopy(trained)
    quantizer = PostTrainLinearQuantizer(model, 4, 4)
    seen = []

    def test_fn(model):
        seen.append(model)
        return {"top1": 12.5}

    with caplog.at_level(logging.INFO, "distiller_ng.quantization.ptq_coordinate_search"):
        lapq.ptq_coordinate_search(quantizer, IMAGES[:1], loss_of(targets), test_fn, maxiter=1)
    assert "loss in floating point: 0.0000" in caplog.text
    assert "step 1: best loss" in caplog.text
    assert "top1 12.5" in caplog.text
    assert seen[0] is model
    assert not any("float_weight" in name for name in model.state_dict())
    path = save_checkpoint(0, None, model, dir=tmp_path)
    fresh = Net()
    load_checkpoint(fresh, path)
    assert torch.equal(fresh.eval()(IMAGES), model(IMAGES))


def test_the_same_seed_gives_the_same_scales(trained):
    found = []
    for _ in range(2):
        model, targets = copy.deepcopy(trained)
        quantizer = PostTrainLinearQuantizer(model, 4, 4, save_fp_weights=True)
        _, best = lapq.ptq_coordinate_search(
            quantizer,
            IMAGES[:1],
            loss_of(targets),
            basinhopping=True,
            basinhopping_niter=1,
            maxiter=1,
            maxfev=20,
            seed=3,
        )
        found.append(best)
        assert "fc.float_weight" in model.state_dict()
    assert found[0] == found[1]


def test_evaluations_are_limited(trained):
    model, targets = copy.deepcopy(trained)
    calls = []

    def counted(model):
        calls.append(1)
        return loss_of(targets)(model)

    lapq.ptq_coordinate_search(PostTrainLinearQuantizer(model, 4, 4), IMAGES[:1], counted, maxfev=10)
    assert len(calls) == 4 + 10  # floating point, calibration, before and after initializing


def test_weights_alone(trained):
    model, targets = copy.deepcopy(trained)
    quantizer = PostTrainLinearQuantizer(model, None, 3)
    _, best = lapq.ptq_coordinate_search(quantizer, IMAGES[:1], loss_of(targets), maxiter=1, init_mode="L2")
    assert set(best) == {"conv1.w_scale", "conv2.w_scale", "fc.w_scale"}


def test_wrong_use_leaves_the_model_alone(trained):
    model, targets = copy.deepcopy(trained)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    loss = loss_of(targets)
    for settings, error in (
        ({"mode": "ASYMMETRIC_SIGNED"}, "asymmetric weights"),
        ({"mode": {"activations": "ASYMMETRIC_UNSIGNED", "weights": "SYMMETRIC"}}, "activations without a ReLU"),
    ):
        with pytest.raises(ValueError, match=error):
            lapq.ptq_coordinate_search(PostTrainLinearQuantizer(model, **settings), IMAGES[:1], loss)
    for arguments, error in (
        ({"init_mode": "L4"}, "L3"),
        ({"method": "Pauwels"}, "Pauwels"),
        ({"eval_fn": lambda model: "low"}, "one number"),
        ({"eval_fn": 3}, "function"),
        ({"dummy_input": None}, "dummy_input"),
    ):
        arguments = {"dummy_input": IMAGES[:1], "eval_fn": loss, **arguments}
        with pytest.raises(ValueError, match=error):
            lapq.ptq_coordinate_search(PostTrainLinearQuantizer(model), **arguments)
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    quantizer = PostTrainLinearQuantizer(model)
    quantizer.prepare_model(IMAGES[:1])
    with pytest.raises(ValueError, match="prepared already"):
        lapq.ptq_coordinate_search(quantizer, IMAGES[:1], loss)
    with pytest.raises(ValueError, match="PostTrainLinearQuantizer"):
        lapq.ptq_coordinate_search(model, IMAGES[:1], loss)


def test_a_range_from_zero_on_may_be_asymmetric():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 2), nn.ReLU())
    mode = {"activations": "ASYMMETRIC_UNSIGNED", "weights": "SYMMETRIC"}
    quantizer = PostTrainLinearQuantizer(model, 4, 4, mode=mode)
    _, best = lapq.ptq_coordinate_search(quantizer, IMAGES[:1], lambda model: model(IMAGES).sum(), maxfev=3)
    assert "0.output_scale" in best


def test_functions_in_forward_take_part():
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(8, 3)

        def forward(self, x):
            y = F.relu(self.conv(x))
            y = torch.cat([y + x, y], 1)
            return F.softmax(self.fc(F.adaptive_avg_pool2d(y, 1).flatten(1)), dim=-1)

    torch.manual_seed(0)
    model = Functional().eval()
    with torch.no_grad():
        targets = model(IMAGES)
    quantizer = PostTrainLinearQuantizer(model, 4, 4)
    _, best = lapq.ptq_coordinate_search(quantizer, IMAGES[:1], loss_of(targets), maxfev=5, init_mode="L2")
    assert {"add.output_scale", "cat.output_scale", "softmax.output_scale", "conv.w_scale"} <= set(best)


def test_the_schedules_of_lapq(trained, tmp_path):
    """Bits null by default, a mode as a mapping, patterns before exact names, inputs that are not quantized."""
    path = tmp_path / "lapq.yaml"
    path.write_text(
        """
quantizers:
  post_train_quantizer:
    class: PostTrainLinearQuantizer
    bits_activations: null
    bits_parameters: null
    bits_accum: 32
    mode:
      activations: ASYMMETRIC_UNSIGNED
      weights: SYMMETRIC
    per_channel_wts: False
    overrides:
      'conv.*': {bits_weights: 4, bits_activations: 4, quantize_inputs: False}
      'conv2': {bits_weights: 4, bits_activations: null}
      'fc': {bits_weights: 4, quantize_inputs: False}
"""
    )
    model, targets = copy.deepcopy(trained)
    quantizer = distiller.config_component_from_file_by_class(model, str(path), "PostTrainLinearQuantizer")
    assert quantizer.module_qbits_map["conv2"].acts is None  # an exact name beats the pattern before it
    args = argparse.Namespace(lapq_maxiter=1, lapq_method="Powell", lapq_init_mode="L3", qe_lapq=True)
    options = lapq.cmdline_args_to_dict(args)
    assert options == {"maxiter": 1, "method": "Powell", "init_mode": "L3"}
    _, best = lapq.ptq_coordinate_search(quantizer, IMAGES[:1], loss_of(targets), **options)
    assert set(best) == {"conv1.output_scale", "conv1.w_scale", "conv2.w_scale", "fc.w_scale"}
