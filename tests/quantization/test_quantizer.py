"""The quantizer base: who gets which bits, what comes into the model, and what stays as it was."""

from __future__ import annotations

import copy
import io
import warnings
from collections import OrderedDict

import pytest
import torch
from torch import nn

from distiller_ng.errors import ArgumentError, LifecycleError, ScheduleWarning, TargetError
from distiller_ng.quantization.base import Quantizer
from distiller_ng.quantization.q_utils import QBits


class Wrapper(nn.Module):
    def __init__(self, module, note=None):
        super().__init__()
        self.wrapped, self.note = module, note

    def forward(self, x):
        return self.wrapped(x)


def add_bits(parameter, meta):
    return parameter + meta.num_bits


class Dummy(Quantizer):
    """Adds the number of bits to parameters, wraps ReLU."""

    def __init__(self, model, optimizer=None, acts=None, wts=None, bias=None, overrides=None, fp_copy=False):
        super().__init__(model, optimizer, acts, wts, bias, overrides, train_with_fp_copy=fp_copy)

        def wrap(module, name, qbits_map, note=None):
            return module if qbits_map[name].acts is None else Wrapper(module, note)

        self.replacement_factory[nn.ReLU] = wrap
        self.param_quantization_fn = add_bits


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.relu1 = nn.Conv2d(3, 4, 3), nn.ReLU()
        self.conv2, self.relu2 = nn.Conv2d(4, 4, 3), nn.ReLU()

    def forward(self, x):
        return self.relu2(self.conv2(self.relu1(self.conv1(x))))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.block1, self.bn, self.fc = Block(), nn.BatchNorm2d(4), nn.Linear(4, 2)

    def forward(self, x):
        return self.fc(self.bn(self.block1(x)).mean((2, 3)))


@pytest.fixture(params=[False, True], ids=["bare", "data_parallel"])
def model(request):
    torch.manual_seed(0)
    return nn.DataParallel(Net()) if request.param else Net()


def inner(model):
    return model.module if isinstance(model, nn.DataParallel) else model


def make(model, *args, **kwargs):
    return Dummy(model, torch.optim.SGD(model.parameters(), lr=0.1), *args, **kwargs)


def bits(quantizer, name):
    prefix = "module." if isinstance(quantizer.model, nn.DataParallel) else ""
    return quantizer.module_qbits_map[prefix + name]


# -- overrides ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({}, {"block1.conv1": 4, "block1.conv2": 4, "fc": 4}),
        ({"fc": {"bits_weights": None}}, {"block1.conv1": 4, "fc": None}),
        ({"fc": None}, {"block1.conv1": 4, "fc": None}),
        ({r"block1\.conv1": {"bits_weights": 2}}, {"block1.conv1": 2, "block1.conv2": 4}),
        ({r"block1\.(conv)(\d)": {"bits_weights": 2}, "(f)c": {"bits_weights": 3}}, {"block1.conv2": 2, "fc": 3}),
        ({r".*conv.": {"bits_weights": 2}, r"block1\.conv1": {"bits_weights": 8}}, {"block1.conv1": 2}),
        ({r".*conv.": {"bits_weights": 2}, "block1.conv1": {"bits_weights": 8}}, {"block1.conv1": 8}),
        ({"module.fc": {"bits_weights": 7}}, {"fc": 7}),
        ({r"module\.block1\.conv.": {"bits_weights": 7}}, {"block1.conv1": 7, "block1.conv2": 7, "fc": 4}),
    ],
    ids=["none", "null", "null_entry", "regex", "b23_groups", "first_wins", "exact_wins", "wrapper", "wrapper_regex"],
)
def test_which_override_holds(model, overrides, expected):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ScheduleWarning)
        quantizer = make(model, 8, 4, overrides=OrderedDict(overrides), fp_copy=True)
    assert {name: bits(quantizer, name).wts for name in expected} == expected


def test_b23_capture_groups_do_not_shift_the_pattern_that_counts(model):
    overrides = {r"(b)(l)(o)ck1\.(conv1)": {"bits_weights": 2}, r"(fc)": {"bits_weights": 3}}
    quantizer = make(model, 8, 4, overrides=overrides)
    assert [bits(quantizer, name).wts for name in ("block1.conv1", "block1.conv2", "fc")] == [2, 4, 3]


def test_bits_of_every_module(model):
    quantizer = make(model, 8, 4, 32)
    assert bits(quantizer, "block1.conv1") == bits(quantizer, "fc") == QBits(8, 4, 32)
    assert bits(quantizer, "bn") == bits(quantizer, "block1.relu1") == QBits(8, None, None)
    assert len(quantizer.module_qbits_map) == len(list(model.named_modules()))


def test_the_seed_example_matches_by_its_beginning(model):
    """``block1\\.conv*`` means, as a regular expression, ``block1.con`` and any number of v."""
    with pytest.warns(ScheduleWarning, match=r"'block1\\\\.conv\*' matches no module's whole name.*conv\.\*'"):
        quantizer = make(model, 8, 8, overrides={r"block1\.conv*": {"bits_weights": 2, "bits_activations": None}})
    assert bits(quantizer, "block1.conv1") == bits(quantizer, "block1.conv2") == QBits(None, 2, None)
    assert bits(quantizer, "fc").wts == 8


def test_the_seed_example_of_overlapping_patterns(model):
    overrides = {
        r"block1\.conv1": {"bits_weights": 4, "bits_activations": None},
        r"block1\.conv*": {"bits_weights": 2, "bits_activations": None},
    }
    with pytest.warns(ScheduleWarning, match="whole name"):
        quantizer = make(model, 8, 8, overrides=overrides)
    assert [bits(quantizer, f"block1.conv{i}").wts for i in (1, 2)] == [4, 2]


def test_a_pattern_behind_a_broader_one_is_reported(model):
    overrides = {r"block1\..*": {"bits_weights": 2}, r"block1\.conv1": {"bits_weights": 4}}
    with pytest.warns(ScheduleWarning, match=r"'block1\\\\.conv1' is never used.*Move the more specific"):
        make(model, 8, 8, overrides=overrides)


def test_a_pattern_that_matches_nothing_is_an_error_with_the_nearest_name(model):
    with pytest.raises(TargetError, match=r"'block1\.cnov1' matches no module.*Did you mean 'block1\.conv1'") as caught:
        make(model, 8, 4, overrides={"block1.cnov1": {"bits_weights": 2}})
    assert caught.value.argument == ("overrides", "block1.cnov1")


@pytest.mark.parametrize("overrides", [[("fc", {"bits_weights": 2})], {"fc"}, "fc", {"fc": 3}, {"fc": [2]}, {3: {}}])
def test_overrides_of_a_wrong_type_are_type_errors(overrides):
    with pytest.raises(TypeError):
        make(Net(), 8, 4, overrides=overrides)


@pytest.mark.parametrize("key", ["acts", "wts", "bias"])
def test_the_oldest_keys_are_value_errors_that_name_the_new_ones(key):
    with pytest.raises(ValueError, match=f"'{key}' is no longer supported, write 'bits_"):
        make(Net(), 8, 4, overrides={"fc": {key: 2}})


@pytest.mark.parametrize("value", [0, -1, 33, 2.5, "4", True])
def test_wrong_bits(value):
    with pytest.raises(ArgumentError, match="from 1 to 32") as caught:
        make(Net(), 8, 4, overrides={"fc": {"bits_weights": value}})
    assert caught.value.argument == ("overrides", "fc", "bits_weights")
    with pytest.raises(ArgumentError) as caught:
        make(Net(), value)
    assert caught.value.argument == ("bits_activations",)


def test_globs_and_the_root():
    with pytest.raises(ArgumentError, match=r"write '\.\*\.conv'"):
        make(Net(), 8, 4, overrides={"*.conv": {"bits_weights": 2}})
    quantizer = make(Net(), 8, 4, overrides={"": {"bits_weights": 2}})
    assert bits(quantizer, "fc").wts == 4


def test_a_pattern_that_is_no_regular_expression():
    with pytest.raises(ArgumentError, match="not a valid regular expression"):
        make(Net(), 8, 4, overrides={"conv(": {"bits_weights": 2}})


def test_settings_reach_the_replacement_and_unknown_ones_are_type_errors(model):
    quantizer = make(model, 8, 4, overrides={r"block1\.relu1": {"note": "here"}})
    quantizer.prepare_model()
    assert (inner(model).block1.relu1.note, inner(model).block1.relu2.note) == ("here", None)
    for pattern, setting in [(r"block1\.relu1", "nte"), ("fc", "note"), (".*", "nobody")]:
        fresh = Net()
        before = list(fresh.state_dict()), str(fresh)
        quantizer = make(fresh, 8, 4, overrides={pattern: {setting: 1}})
        with pytest.raises(TypeError, match=setting):
            quantizer.prepare_model()
        assert before == (list(fresh.state_dict()), str(fresh))


# -- the plan ----------------------------------------------------------------------------------------------------------


def test_the_plan_says_who_gets_what_and_changes_nothing(model):
    before = str(model)
    quantizer = make(model, 8, 4, 32, overrides={"fc": {"bits_weights": None, "bits_bias": None}}, fp_copy=True)
    plan = quantizer.plan(model)
    assert str(model) == before
    assert [(r.module, r.weights, r.bias, r.activations, r.rule) for r in plan.rows] == [
        ("block1.conv1", 4, 32, None, "default"),
        ("block1.relu1", None, None, 8, "default"),
        ("block1.conv2", 4, 32, None, "default"),
        ("block1.relu2", None, None, 8, "default"),
        ("fc", None, None, None, "fc"),
    ]
    assert not plan["fc"].is_quantized and plan["block1.conv1"].is_quantized
    assert "Weights" in str(plan) and len(plan) == 5


def test_the_plan_warns_of_what_will_not_happen():
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.lstm = nn.LayerNorm(3), nn.LSTM(3, 3)

    warned = " ".join(make(Functional(), 8, 4).plan().warnings)
    assert "no activations will be quantized" in warned and "no weights will be quantized" in warned
    plan = make(Net(), 8, 4, overrides={"block1": {"bits_weights": 2}}).plan()
    assert r"for the modules inside write 'block1\\..*'" in " ".join(plan.warnings)


# -- preparing ---------------------------------------------------------------------------------------------------------


def test_parameters_keep_identity_and_names(model):
    before, names = dict(model.named_parameters()), list(model.state_dict())
    quantizer = make(model, None, 4, 8, fp_copy=True)
    returned = quantizer.prepare_model()
    assert returned is model and list(model.state_dict()) == names
    assert all(parameter is before[name] for name, parameter in model.named_parameters())
    conv = inner(model).block1.conv1
    assert isinstance(conv, nn.Conv2d) and conv.weight is conv.float_weight
    assert "weight_bits=4" in repr(conv)


def test_prepare_model_twice_is_a_runtime_error(model):
    quantizer = make(model, 8, 4, fp_copy=True)
    quantizer.prepare_model()
    with pytest.raises(RuntimeError, match="once"):
        quantizer.prepare_model()


def test_a_float_copy_needs_an_optimizer():
    with pytest.raises(ValueError, match="optimizer"):
        Dummy(Net(), None, 8, 4, fp_copy=True)


def test_quantize_params_in_place(model):
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    quantizer = make(model, 8, 4, 2, overrides={"fc": {"bits_weights": None}})
    quantizer.prepare_model()
    identities = {name: id(p) for name, p in model.named_parameters()}
    quantizer.quantize_params()
    for name, parameter in model.named_parameters():
        short = name.removeprefix("module.")
        added = 0 if short.startswith("bn") or short == "fc.weight" else 4 if short.endswith("weight") else 2
        assert torch.equal(parameter, before[name] + added) and id(parameter) == identities[name]
    assert all(meta.fp_attr_name == meta.q_attr_name for meta in quantizer.params_to_quantize)


def test_quantize_params_shows_values_with_history_to_the_float_parameter(model):
    quantizer = make(model, 8, 4, 2, fp_copy=True)
    quantizer.prepare_model()
    quantizer.quantize_params()
    assert len(quantizer.params_to_quantize) == 6
    for meta in quantizer.params_to_quantize:
        assert meta.fp_attr_name == "float_" + meta.q_attr_name
        full, shown = getattr(meta.module, meta.fp_attr_name), getattr(meta.module, meta.q_attr_name)
        assert torch.equal(shown, full + meta.num_bits)
        assert shown.grad_fn.name() == "AddBackward0"
        accumulate = shown.grad_fn.next_functions[0][0]
        assert "AccumulateGrad" in accumulate.name() and accumulate.variable is full
        assert meta.num_bits == (2 if meta.q_attr_name == "bias" else 4)
    conv = inner(model).block1.conv1
    assert conv._parameters["weight"] is conv.float_weight and conv.weight is not conv.float_weight
    without = make(Net(), None, 4, fp_copy=True)
    without.prepare_model()
    assert hasattr(without.model.fc, "float_weight") and not hasattr(without.model.fc, "float_bias")


def test_every_forward_pass_computes_with_the_present_weights(model):
    quantizer = make(model, None, 4, fp_copy=True)
    quantizer.prepare_model()
    conv, x = inner(model).block1.conv1, torch.randn(2, 3, 8, 8)
    for _ in range(2):
        expected = nn.functional.conv2d(x, conv.float_weight + 4, conv.bias)
        assert torch.equal(conv(x), expected)
        with torch.no_grad():
            conv.float_weight.mul_(0.5)
    quantizer.quantize_params()  # what it shows is not what later passes compute with
    with torch.no_grad():
        conv.float_weight.mul_(0.5)
    assert torch.equal(conv(x), nn.functional.conv2d(x, conv.float_weight + 4, conv.bias))
    conv(x).sum().backward()
    assert conv.float_weight.grad is not None


def test_a_layer_of_the_users_own_class_with_its_own_forward():
    class Standardized(nn.Conv2d):
        def forward(self, x):
            return self._conv_forward(x, self.weight - self.weight.mean(), self.bias)

    model = nn.Sequential(Standardized(1, 2, 3, bias=False))
    original = model[0].weight
    make(model, None, 4, fp_copy=True).prepare_model()
    x = torch.randn(1, 1, 5, 5)
    quantized = original + 4
    assert torch.equal(model(x), nn.functional.conv2d(x, quantized - quantized.mean()))
    assert isinstance(model[0], Standardized)


def test_shared_modules_are_quantized_once_and_reported():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.relu1 = self.relu2 = nn.ReLU()
            self.a = self.b = nn.Linear(3, 3)

        def forward(self, x):
            return self.relu2(self.b(self.relu1(self.a(x))))

    model = Shared()
    with pytest.warns(UserWarning, match="Module 'relu2' references to same module as 'relu1'"):
        make(model, 8, 4, fp_copy=True).prepare_model()
    assert model.relu1 is model.relu2 and isinstance(model.relu1, Wrapper)
    assert model.a is model.b
    model(torch.randn(2, 3)).sum().backward()
    assert model.a.float_weight.grad is not None


def test_copies_and_pickles_are_models_of_their_own(model):
    quantizer = make(model, None, 4, fp_copy=True)
    quantizer.prepare_model()
    quantizer.quantize_params()
    x = torch.randn(2, 3, 8, 8)
    expected = model.eval()(x)
    duplicate, buffer = copy.deepcopy(model), io.BytesIO()
    torch.save(inner(model), buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)
    for other in (duplicate, loaded):
        assert torch.equal(other(x), expected)
        first = next(other.parameters())
        assert first is not next(model.parameters())
        with torch.no_grad():
            first.add_(1.0)
        assert not torch.equal(other(x), expected) and torch.equal(model(x), expected)


def test_export_and_compile_follow_the_quantized_weights():
    model = Net().eval()
    make(model, 8, 4, 2, fp_copy=True).prepare_model()
    x = torch.randn(2, 3, 8, 8)
    exported = torch.export.export(model, (x,), strict=False).module()
    torch.testing.assert_close(exported(x), model(x))
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), model(x))


def test_identity_is_never_replaced_and_subclasses_are():
    class MyReLU(nn.ReLU):
        pass

    model = nn.Sequential(nn.Identity(), MyReLU(), nn.Linear(2, 2))
    quantizer = make(model, 8, 4)
    quantizer.replacement_factory[nn.Identity] = lambda module, name, bits: Wrapper(module)
    quantizer.prepare_model()
    assert type(model[0]) is nn.Identity and isinstance(model[1], Wrapper)


def test_lazy_layers_are_refused_before_anything_changes():
    model = nn.Sequential(nn.LazyLinear(3), nn.ReLU())
    quantizer = Dummy(model, torch.optim.SGD([torch.zeros(1)], lr=0.1), 8, 4, fp_copy=True)
    with pytest.raises(LifecycleError, match="run the model once"):
        quantizer.prepare_model()
    assert type(model[1]) is nn.ReLU


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused_before_anything_changes(value):
    model = Net()
    with torch.no_grad():
        model.fc.weight[0, 0] = value
    with pytest.raises(ArgumentError, match=r"fc\.weight holds NaN"):
        make(model, 8, 4, fp_copy=True).prepare_model()
    assert type(model.block1.relu1) is nn.ReLU
    make(model, 8, 4, fp_copy=True, overrides={"fc": None}).prepare_model()


def test_optimizers_made_with_names_get_named_groups():
    from distiller_ng.quantization import PACTQuantizer

    model = Net()
    optimizer = torch.optim.SGD(model.named_parameters(), lr=0.1)
    PACTQuantizer(model, optimizer, 8, 4).prepare_model()
    assert optimizer.param_groups[1]["param_names"] == ["block1.relu1.clip_val", "block1.relu2.clip_val"]


def test_weights_that_are_computed_stay_and_are_named():
    model = nn.Sequential(torch.nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)), nn.Linear(3, 3))
    plan = make(model, None, 4, fp_copy=True).plan()
    assert plan["0"].weights is None and "computed" in plan["0"].note
    assert "weights of 0 (ParametrizedLinear) stay" in " ".join(plan.warnings)
    assert make(model, None, 4, fp_copy=True, overrides={"0": None}).plan().warnings == ()


def test_a_model_quantized_otherwise_is_refused(model):
    make(model, None, 4, fp_copy=True).prepare_model()
    with pytest.raises(LifecycleError, match="already quantized by Dummy"):
        make(model, None, 8, fp_copy=True).prepare_model()


def test_attention_and_recurrent_weights_stay_in_floating_point_and_the_plan_says_so():
    model = nn.Sequential(nn.MultiheadAttention(4, 2), nn.LSTM(4, 4), nn.Linear(4, 4))
    plan = make(model, None, 4, fp_copy=True).plan()
    assert "attention" in plan["0.out_proj"].note and "LSTM" in plan["1"].note
    assert (plan["0.out_proj"].weights, plan["1"].weights, plan["2"].weights) == (None, None, 4)


# -- waiting -----------------------------------------------------------------------------------------------------------


def test_a_disabled_quantizer_computes_what_the_model_did(model):
    x = torch.randn(2, 3, 8, 8)
    expected = model.eval()(x)
    quantizer = make(model, 8, 4, fp_copy=True)
    quantizer.prepare_model()
    quantized = model(x)
    assert not torch.equal(quantized, expected)
    quantizer.disable()
    assert torch.equal(model(x), expected) and torch.equal(copy.deepcopy(model)(x), expected)
    assert isinstance(inner(model).block1.relu1, Wrapper)
    quantizer.enable()
    assert torch.equal(model(x), quantized) and type(inner(model).block1.relu1) is Wrapper


def test_state_of_the_switches():
    quantizer = make(Net(), 8, 4, fp_copy=True)
    quantizer.prepare_model()
    quantizer.disable()
    quantizer.freeze_batch_norms()
    other = make(Net(), 8, 4, fp_copy=True)
    other.prepare_model()
    other.load_state_dict(quantizer.state_dict())
    assert not other.is_enabled and other.bn_is_frozen
    other.model.train()
    assert not other.model.bn.training and other.model.fc.training
    assert isinstance(copy.deepcopy(other.model).train().bn, nn.BatchNorm2d)


def test_quantize_params_before_prepare_model():
    with pytest.raises(LifecycleError, match="prepare_model"):
        make(Net(), 8, 4).quantize_params()
