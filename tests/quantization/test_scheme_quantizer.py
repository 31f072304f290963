"""Quantization by schemes, as recipes write it: which tensors of which layers, and the older properties."""

import pytest
import torch
from torch import nn

import distiller_ng as distiller
from distiller_ng.errors import ArgumentError, ScheduleWarning, TargetError
from distiller_ng.ops.fake_quantize import fake_quantize_with
from distiller_ng.policies.quantization import QuantizationPolicy
from distiller_ng.quantization.scheme_quantizer import SchemeQuantizer
from distiller_ng.quantization.schemes import QuantizationScheme, TensorScheme


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3))
        self.classifier = nn.Linear(16, 3)

    def forward(self, x):
        return self.classifier(self.features(x).flatten(1))


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.fc = nn.Embedding(9, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.fc(self.words(x).mean(1))


def prepared(model, **settings):
    torch.manual_seed(0)
    quantizer = SchemeQuantizer(model, torch.optim.SGD(model.parameters(), lr=0.01), **settings)
    quantizer.prepare_model(torch.randn(2, 1, 6, 6) if isinstance(model, Net) else torch.arange(6).reshape(2, 3))
    return quantizer


def parts(model):
    """``{layer: (input bits, weight bits, output bits)}``."""
    found = {}
    for name, module in model.named_modules():
        weights = getattr(module, "quantized_parameters", None)
        if weights is not None:
            bits = [getattr(getattr(module, f"{end}_quant", None), "num_bits", None) for end in ("input", "output")]
            found[name] = (bits[0], weights["weight"].num_bits if "weight" in weights else None, bits[1])
    return found


def test_by_default_inputs_are_asymmetric_and_weights_symmetric():
    scheme = QuantizationScheme.read(None)
    assert scheme == QuantizationScheme.read("deepsparse") == QuantizationScheme.read("default")
    assert scheme.input_activations == TensorScheme(8, False) and scheme.weights == TensorScheme(8, True)
    assert scheme.output_activations is None
    assert QuantizationScheme.read("tensorrt").input_activations == TensorScheme(8, True)
    own = QuantizationScheme.read({"weights": {"num_bits": 4, "strategy": "channel"}, "input_activations": "null"})
    assert own.weights == TensorScheme(4, False, True) and own.input_activations is None
    model = Net()
    prepared(model)
    assert parts(model) == dict.fromkeys(("features.0", "features.3", "classifier"), (8, 8, None))


def test_a_layer_computes_with_quantized_inputs_and_weights():
    model = nn.Sequential(nn.Linear(6, 3))
    weight, bias = model[0].weight.detach().clone(), model[0].bias.detach().clone()
    quantizer = SchemeQuantizer(model, torch.optim.SGD(model.parameters(), lr=0.01))
    quantizer.prepare_model()
    x = torch.randn(16, 6)
    found = model(x)  # the first minibatch gives the range
    low, high = min(x.min().item(), 0.0), max(x.max().item(), 0.0)
    step = (high - low) / 255
    zero = round(-low / step)
    quantized_x = (torch.clamp(torch.round(x / step) + zero, 0, 255) - zero) * step
    edge = weight.abs().max() / 127.5
    quantized_w = torch.clamp(torch.round(weight / edge), -128, 127) * edge
    torch.testing.assert_close(found, quantized_x @ quantized_w.T + bias, rtol=1e-4, atol=1e-4)
    grid = model[0].quantization_parameters("weight")
    torch.testing.assert_close(fake_quantize_with(weight, grid), quantized_w)


def test_names_parts_and_types_are_overridden_or_ignored():
    model = Net()
    channel = {"num_bits": 4, "symmetric": True, "strategy": "channel"}
    overrides = {
        "Conv2d": {"input_activations": None, "weights": channel},
        "features.3": "default",
    }
    prepared(model, scheme_overrides=overrides, ignore=["classifier"])
    assert parts(model) == {"features.0": (None, 4, None), "features.3": (8, 8, None)}
    assert model.features[0].quantization_parameters("weight").scale.numel() == 4
    model = Net()
    prepared(model, ignore=["features"], scheme={"output_activations": {"num_bits": 8}})
    assert parts(model) == {"classifier": (8, 8, 8)}


@pytest.mark.parametrize(
    ("settings", "where"),
    [
        ({"ignore": ["classifyer"]}, ("ignore", 0)),
        ({"scheme_overrides": {"Conv3d": "default"}}, ("scheme_overrides", "Conv3d")),
        ({"submodules": ["feat"]}, ("submodules", 0)),
    ],
)
def test_names_that_match_nothing_are_errors_if_strict(settings, where):
    with pytest.raises(TargetError) as caught:
        prepared(Net(), **settings)
    assert caught.value.argument == where
    prepared(Net(), strict=False, **{key: value for key, value in settings.items() if key != "submodules"})


@pytest.mark.parametrize(
    ("settings", "where"),
    [
        ({"scheme": "tensort"}, ("scheme",)),
        ({"scheme": {"inputs": None}}, ("scheme", "inputs")),
        ({"scheme": {"weights": 8}}, ("scheme", "weights")),
        ({"scheme": {"weights": {"num_bits": 1}}}, ("scheme", "weights", "num_bits")),
        ({"scheme": {"weights": {"bits": 8}}}, ("scheme", "weights", "bits")),
        ({"scheme": {"weights": {"strategy": "group"}}}, ("scheme", "weights", "strategy")),
        ({"scheme": {"weights": {"symmetric": "yes"}}}, ("scheme", "weights", "symmetric")),
        (
            {"scheme_overrides": {"Linear": {"weights": {"num_bits": 99}}}},
            ("scheme_overrides", "Linear", "weights", "num_bits"),
        ),
        ({"scheme_overrides": ["Linear"]}, ("scheme_overrides",)),
        ({"ignore": {"Linear": 1}}, ("ignore",)),
        ({"strict": "yes"}, ("strict",)),
        ({"fuse": 1}, ("fuse",)),
    ],
)
def test_schemes_that_cannot_be(settings, where):
    with pytest.raises(ArgumentError) as caught:
        prepared(Net(), **settings)
    assert caught.value.argument == where


def test_embeddings_take_integers_and_have_asymmetric_weights_in_older_recipes():
    model, notes = Words(), []
    arguments = SchemeQuantizer.from_recipe({"quantize_embeddings": True, "weight_bits": 6}, notes.append)
    prepared(model, **arguments)
    assert parts(model) == {"words": (None, 6, 8), "fc": (8, 6, 8)}
    assert model(torch.arange(6).reshape(2, 3)).shape == (2, 2) and notes == []
    assert arguments["scheme_overrides"]["Embedding"]["weights"] == {"num_bits": 6, "symmetric": False}


@pytest.mark.parametrize(
    ("older", "expected"),
    [
        (
            {"quantize_linear_activations": False},
            {"features.0": (8, 8, 8), "features.3": (8, 8, 8), "classifier": (8, 8, None)},
        ),
        ({"submodules": ["features"]}, {"features.0": (8, 8, 8), "features.3": (8, 8, 8)}),
        ({"tensorrt": True}, {"features.0": (8, 8, None), "features.3": (8, 8, None), "classifier": (8, 8, None)}),
        ({"reduce_range": True, "exclude_module_types": ["Conv2d"]}, {"classifier": (7, 8, 7)}),
    ],
)
def test_older_properties_become_a_scheme(older, expected):
    model = Net()
    prepared(model, **SchemeQuantizer.from_recipe(older, lambda text: None))
    assert parts(model) == expected


def test_properties_of_both_kinds_are_refused_and_fusing_is_understood():
    with pytest.raises(ArgumentError) as caught:
        SchemeQuantizer.from_recipe({"submodules": ["a"], "ignore": ["b"]}, lambda text: None)
    assert caught.value.argument == ("ignore",)
    notes = []
    fused = [
        SchemeQuantizer.from_recipe({"model_fuse_fn_name": f}, notes.append)["fuse"]
        for f in (None, "no_fuse", "fuse_me")
    ]
    assert fused == [True, False, True] and len(notes) == 1


def test_norms_are_folded_where_there_are_some():
    for fuse, folded in ((True, True), (False, False)):
        model = Net()
        prepared(model, fuse=fuse)
        assert ("folded_norm" in vars(model.features[0])) is folded


def test_in_a_schedule_it_waits_freezes_and_resumes():
    schedule = {
        "version": 1,
        "quantizers": {"q": {"class": "SchemeQuantizer", "ignore": ["classifier"]}},
        "policies": [
            {
                "quantizer": {"instance_name": "q", "args": {"freeze_bn_epoch": 2, "disable_observer_epoch": 1.5}},
                "starting_epoch": 0.5,
                "ending_epoch": -1,
                "frequency": 1,
                "trigger": "step",
            }
        ],
    }
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    scheduler = distiller.dict_config(model, optimizer, schedule, example_inputs=torch.randn(2, 1, 6, 6))
    quantizer = scheduler.schedule[0][0].quantizer
    seen = []
    for epoch in scheduler.epochs(3):
        for step, (x, y) in enumerate(scheduler.minibatches([(torch.randn(8, 1, 6, 6), torch.randint(3, (8,)))] * 2)):
            seen.append((epoch + step / 2, quantizer.is_enabled, quantizer.observes, quantizer.bn_is_frozen))
            optimizer.zero_grad()
            scheduler.backward(nn.functional.cross_entropy(model(x), y))
            optimizer.step()
    assert [row[1] for row in seen] == [False, False, True, True, True, True]
    assert [row[2] for row in seen] == [True, True, True, False, False, False]
    assert [row[3] for row in seen] == [False] * 4 + [True] * 2
    other = Net()
    config = quantizer.config
    again = SchemeQuantizer(other, torch.optim.SGD(other.parameters(), lr=0.1), **(config.arguments or {}))
    again.prepare_model(torch.randn(2, 1, 6, 6))
    other.load_state_dict(model.state_dict())
    x = torch.randn(4, 1, 6, 6)
    torch.testing.assert_close(other.eval()(x), model.eval()(x))


def test_a_model_without_norms_is_warned_about_only():
    model = Words()
    quantizer = SchemeQuantizer(model, torch.optim.SGD(model.parameters(), lr=0.1))
    scheduler = distiller.CompressionScheduler(model)
    with pytest.warns(ScheduleWarning, match="no batch norm"):
        scheduler.add_policy(QuantizationPolicy(quantizer, freeze_bn_epoch=1), starting_epoch=0, ending_epoch=2)


def test_pruned_weights_stay_zero():
    model = Net()
    with torch.no_grad():
        model.classifier.weight[:, ::2] = 0
    prepared(model)
    assert bool((model.classifier.quantized("weight")[:, ::2] == 0).all())
