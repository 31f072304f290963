"""Files of quantized models as Distiller wrote them."""

import sys
import types
from collections import OrderedDict
from enum import Enum

import pytest
import torch
from torch import nn

from distiller_ng.checkpoint import load_checkpoint, read_checkpoint
from distiller_ng.data_loggers import collect_quant_stats
from distiller_ng.errors import CheckpointError
from distiller_ng.quantization import PostTrainLinearQuantizer
from distiller_ng.quantization.range_linear import RangeLinearQuantParamLayerWrapper
from distiller_ng.quantization.weight_functions import dorefa_quantize_param

WEIGHT = torch.tensor([[1.0, -0.5, 0.25], [0.75, -1.0, 0.5]])
BIAS = torch.tensor([0.125, -0.25])
X = torch.tensor([[0.2, 0.9, 3.0], [-1.0, 0.4, 0.7]])


def net():
    return nn.Sequential(OrderedDict(relu=nn.ReLU(), fc=nn.Linear(3, 2)))


@pytest.fixture
def quantization():
    """Packages with the classes Distiller's files refer to; gone when the file is read."""
    names = ("distiller", *(f"distiller.quantization{end}" for end in ("", ".clipped_linear", ".range_linear")))
    modules = {name: types.ModuleType(name) for name in names}
    sys.modules.update(modules)
    clipped, linear = (modules[f"distiller.quantization.{end}"] for end in ("clipped_linear", "range_linear"))
    for module, kinds in (
        (clipped, ("DorefaQuantizer", "WRPNQuantizer", "PACTQuantizer")),
        (linear, ("PostTrainLinearQuantizer", "QuantAwareTrainRangeLinearQuantizer", "OtherQuantizer")),
    ):
        for kind in kinds:
            setattr(module, kind, type(kind, (), {"__module__": module.__name__}))
    linear.LinearQuantMode = Enum(
        "LinearQuantMode",
        {"SYMMETRIC": 1, "ASYMMETRIC_UNSIGNED": 3},
        module=linear.__name__,
        qualname="LinearQuantMode",
    )
    linear.ClipMode = Enum("ClipMode", {"NONE": 0, "AVG": 1}, module=linear.__name__, qualname="ClipMode")
    yield types.SimpleNamespace(**vars(clipped), **{k: v for k, v in vars(linear).items() if not k.startswith("__")})
    forget()


def forget():
    for name in [name for name in sys.modules if name.split(".")[0] == "distiller"]:
        del sys.modules[name]


def save(path, state, kind, params, **more):
    metadata = {"type": kind, "params": params, "dummy_input": None} | more.pop("metadata", {})
    wrapped = OrderedDict((f"module.{name}", value) for name, value in state.items())
    content = {"epoch": 9, "state_dict": wrapped, "arch": "mynet", "quantizer_metadata": metadata, **more}
    torch.save(content, path)
    forget()
    return path


def trained_state(**more):
    # the bias comes first: the weight left the parameters and came back as float_weight
    return OrderedDict({"fc.bias": BIAS, "fc.float_weight": WEIGHT, "fc.weight": torch.zeros(2, 3), **more})


DOREFA = {"bits_activations": 2, "bits_weights": 3, "bits_bias": None, "overrides": OrderedDict()}


def test_dorefa(tmp_path, quantization):
    model = net()
    load_checkpoint(model, save(tmp_path / "d.tar", trained_state(), quantization.DorefaQuantizer, DOREFA))
    activations = torch.round(X.clamp(0, 1) * 3) / 3
    v = torch.tanh(WEIGHT) / (2 * torch.tanh(WEIGHT).abs().max()) + 0.5
    weight = 2 * torch.round(v * 7) / 7 - 1
    assert torch.allclose(model.eval()(X), activations @ weight.T + BIAS, atol=1e-6)
    assert torch.equal(model.fc.weight, WEIGHT)
    again = net()
    load_checkpoint(again, tmp_path / "d.tar")
    load_checkpoint(again, tmp_path / "d.tar")


def test_pact_with_its_optimizer(tmp_path, quantization):
    buffers = {"state": {index: {"momentum_buffer": torch.full(shape, float(index))}
                         for index, shape in enumerate([(2,), (2, 3), (1,)])}}  # fmt: skip
    plain = {"lr": 0.1, "momentum": 0.9, "dampening": 0, "weight_decay": 0, "nesterov": False}
    groups = [{**plain, "params": [0, 1]}, {**plain, "weight_decay": 0.5, "params": [2]}]
    path = save(
        tmp_path / "p.tar", trained_state(**{"relu.clip_val": torch.tensor([3.0])}), quantization.PACTQuantizer, DOREFA,
        optimizer_type=torch.optim.SGD, optimizer_state_dict={**buffers, "param_groups": groups},
    )  # fmt: skip
    model = net()
    _, _, optimizer, _ = load_checkpoint(model, path)
    activations = torch.round(X.clamp(0, 3)) * 1.0
    weight = dorefa_quantize_param(WEIGHT, types.SimpleNamespace(num_bits=3, q_attr_name="weight"))
    assert torch.allclose(model.eval()(X), activations @ weight.T + BIAS, atol=1e-6)
    assert optimizer.state[model.fc.bias]["momentum_buffer"].tolist() == [0.0, 0.0]
    assert optimizer.state[model.fc.weight]["momentum_buffer"].sum() == 6
    assert optimizer.param_groups[1]["params"][0] is model.relu.clip_val
    assert optimizer.param_groups[1]["weight_decay"] == 0.5


def test_the_oldest_names_of_settings(tmp_path, quantization):
    params = {"bits_activations": 2, "bits_weights": 3, "quantize_bias": False,
              "bits_overrides": OrderedDict(fc=OrderedDict(acts=None, wts=None))}  # fmt: skip
    state = OrderedDict({"fc.weight": WEIGHT, "fc.bias": BIAS})
    model = net()
    load_checkpoint(model, save(tmp_path / "d.tar", state, quantization.WRPNQuantizer, params))
    assert torch.allclose(model.eval()(X), torch.round(X.clamp(0, 1) * 3) / 3 @ WEIGHT.T + BIAS, atol=1e-6)


def ranges(scale, zero_point, low, high):
    values = {"tracked_min_biased": low, "tracked_min": low, "tracked_max_biased": high, "tracked_max": high}
    values |= {"iter_count": 5.0, "scale": scale, "zero_point": zero_point}
    return {"ema_decay": torch.tensor(0.9), **{name: torch.tensor([value]) for name, value in values.items()}}


@pytest.mark.parametrize("mode", ["ASYMMETRIC_UNSIGNED", "SYMMETRIC"])
def test_range_linear_computes_as_it_was_trained(tmp_path, quantization, mode):
    """Also where Distiller called asymmetric quantization symmetric (B3)."""
    weight = torch.tensor([[2.0, -0.45, 0.25], [0.75, -1.0, 0.55]])  # range -1 .. 2: steps of 0.2, nothing half way
    x = torch.tensor([[0.21, 0.93, 3.0], [-1.0, 0.44, 0.77]])
    state = trained_state(
        **{"fc.weight_scale": torch.tensor(5.0), "fc.weight_zero_point": torch.tensor(-5.0)},
        **{f"relu.fake_q.{name}": value for name, value in ranges(5.0, 0.0, 0.0, 3.0).items()},
        **{f"inputs_quant.{name}": value for name, value in ranges(5.0, -5.0, -1.0, 2.0).items()},
    )
    state["fc.float_weight"] = weight
    params = {"bits_activations": 4, "bits_weights": 4, "bits_bias": None, "overrides": OrderedDict(), "mode": mode,
              "ema_decay": 0.9, "per_channel_wts": False, "quantize_inputs": True}  # fmt: skip
    model = net()
    load_checkpoint(model, save(tmp_path / "q.tar", state, quantization.QuantAwareTrainRangeLinearQuantizer, params))

    def on_grid(x, scale, zero_point, levels=15):
        return ((scale * x - zero_point).round().clamp(0, levels) + zero_point) / scale

    inputs = on_grid(x, 5.0, -5.0)
    expected = on_grid(inputs.relu(), 5.0, 0.0) @ on_grid(weight, 5.0, -5.0).T + BIAS
    assert torch.allclose(model.eval()(x), expected, atol=1e-5)


# -- after training ----------------------------------------------------------------------------------------------------


def quantized_afterwards(stats, mode):
    model = net()
    with torch.no_grad():
        model.fc.weight.copy_(WEIGHT)
        model.fc.bias.copy_(BIAS)
    PostTrainLinearQuantizer(model, mode=mode, model_activation_stats=stats).prepare_model(X)
    return model.eval()


def as_distiller(model, *, integer_bias):
    """The state as Distiller wrote it: integers without zero point, scales without dimensions, buffers of its own."""
    state = OrderedDict()
    for name, value in model.state_dict().items():
        state[name] = value.reshape(()) if name.endswith(("output_scale", "output_zero_point")) else value.clone()
    wrapper: RangeLinearQuantParamLayerWrapper = model.fc
    state["fc.wrapped_module.weight"] -= wrapper.w_zero_point
    state["fc.is_simulated_quant_weight_shifted"] = torch.tensor(False)
    state["fc.accum_scale"] = torch.ones(1)
    if integer_bias:
        state["fc.fp_bias"] = state["fc.wrapped_module.bias"].clone()
        state["fc.wrapped_module.bias"] *= 1000
    return state


@pytest.mark.parametrize("mode", ["SYMMETRIC", "ASYMMETRIC_UNSIGNED"])
def test_post_training_with_statistics(tmp_path, quantization, mode):
    stats = collect_quant_stats(net(), lambda model: model(X))
    before = quantized_afterwards(stats, mode)
    params = {"bits_activations": 8, "bits_parameters": 8, "bits_accum": 32, "mode": quantization.LinearQuantMode[mode],
              "clip_acts": "NONE", "per_channel_wts": False, "fp16": False, "clip_n_stds": None,
              "inputs_quant_auto_fallback": True, "model_activation_stats": OrderedDict(stats)}  # fmt: skip
    path = save(
        tmp_path / "p.tar", as_distiller(before, integer_bias=True), quantization.PostTrainLinearQuantizer, params,
        metadata={"dummy_input": X},
    )  # fmt: skip
    model = net()
    load_checkpoint(model, path)
    assert torch.equal(model.eval()(X), before(X))


def test_post_training_without_statistics(tmp_path, quantization):
    before = quantized_afterwards(None, "SYMMETRIC")
    params = {"bits_activations": 8, "bits_parameters": 8, "clip_acts": False, "no_clip_layers": ["fc"]}
    path = save(
        tmp_path / "p.tar", as_distiller(before, integer_bias=False), quantization.PostTrainLinearQuantizer, params,
        metadata={"dummy_input": X},
    )  # fmt: skip
    model = net()
    load_checkpoint(model, path)
    assert torch.equal(model.eval()(X), before(X))


@pytest.mark.parametrize(
    "kind, params, message",
    [
        ("OtherQuantizer", {}, r"OtherQuantizer, which does not exist here \(there are DorefaQuantizer"),
        ("DorefaQuantizer", {**DOREFA, "rounding": "up"}, "made with 'rounding'"),
        ("PostTrainLinearQuantizer", {"bits_activations": 8}, "does not hold .*model_activation_stats"),
        ("DorefaQuantizer", {**DOREFA, "overrides": {"nowhere": {"bits_weights": 2}}}, "cannot be quantized as"),
    ],
)
def test_what_is_missing_is_told(tmp_path, quantization, kind, params, message):
    stats = collect_quant_stats(net(), lambda model: model(X))
    state = as_distiller(quantized_afterwards(stats, "SYMMETRIC"), integer_bias=False)
    path = save(tmp_path / "q.tar", state, getattr(quantization, kind), params)
    model = net()
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(model, path)
    assert type(model.fc) is nn.Linear


def test_no_class_at_all(tmp_path):
    torch.save({"state_dict": {"fc.weight": WEIGHT}, "quantizer_metadata": {"params": {}}}, tmp_path / "q.tar")
    with pytest.raises(CheckpointError, match="by which class"):
        read_checkpoint(tmp_path / "q.tar")
