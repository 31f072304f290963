from __future__ import annotations

import pytest
import torch
from torch import nn

from distiller_ng.errors import ArgumentError, TargetError
from distiller_ng.names import ParameterIndex, canonical_name, unwrap


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU())
        self.encoder = nn.Embedding(5, 4)
        self.decoder = nn.Linear(4, 5)
        self.decoder.weight = self.encoder.weight
        self.attention = nn.MultiheadAttention(4, 2)
        self.rnn = nn.LSTM(4, 3)
        self.register_buffer("steps", torch.zeros(1))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("module.conv1.weight", "conv1.weight"),
        ("features.module.0.weight", "features.0.weight"),
        ("_orig_mod.module.a.b", "a.b"),
        ("layer._fsdp_wrapped_module.weight", "layer.weight"),
        ("my_module.weight", "my_module.weight"),
        ("conv.weight", "conv.weight"),
    ],
)
def test_canonical_name(name, expected):
    assert canonical_name(name) == expected


def test_wrapped_names_mean_the_same_parameter_both_ways():
    net = Net()
    bare, wrapped = ParameterIndex(net), ParameterIndex(nn.Sequential())
    assert bare.match("features.module.0.weight") == ["features.0.weight"]
    assert bare.match("module.features.0.weight") == ["features.0.weight"]
    holder = nn.Module()
    holder.module = net
    wrapped = ParameterIndex(holder)
    assert wrapped.match("features.0.weight") == ["features.0.weight"]
    assert wrapped.raw_name("features.0.weight") == "module.features.0.weight"
    assert wrapped["module.features.0.weight"] is net.features[0].weight


def test_compiled_models_keep_names():
    net = nn.Sequential(nn.Linear(2, 2))
    compiled = torch.compile(net, backend="eager")
    assert list(ParameterIndex(compiled)) == ["0.weight", "0.bias"]
    assert unwrap(compiled) is net


def test_tied_parameters_appear_once_under_their_first_name():
    index = ParameterIndex(Net())
    assert "encoder.weight" in list(index) and "decoder.weight" not in list(index)
    assert index.find("decoder.weight") == "encoder.weight"


def test_prunable_covers_attention_and_recurrent_weights_not_norms_or_biases():
    assert ParameterIndex(Net()).prunable() == [
        "features.0.weight",
        "encoder.weight",  # the tied decoder's weight
        "attention.in_proj_weight",
        "attention.out_proj.weight",
        "rnn.weight_ih_l0",
        "rnn.weight_hh_l0",
    ]


def test_patterns_match_whole_names_in_model_order():
    index = ParameterIndex(Net())
    assert index.match(r"re:features\.\d\.weight") == ["features.0.weight", "features.1.weight"]
    assert index.select(["rnn.weight_hh_l0", "re:rnn.weight.*"]) == ["rnn.weight_hh_l0", "rnn.weight_ih_l0"]


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("features.0.wieght", "Did you mean 'features.0.weight'"),
        ("features.0", "is a module, not a parameter. Did you mean 'features.0.weight'"),
        ("steps", "is a buffer"),
        ("re:features", r"only the beginning of 'features.0.weight'.*features\.\*"),
        ("re:nothing.*", "matches no parameter"),
        ("", "matches no parameter"),
    ],
)
def test_unmatched_targets_say_why(target, message):
    with pytest.raises(TargetError, match=message) as caught:
        ParameterIndex(Net()).match(target, argument=("weights", 3))
    assert caught.value.argument == ("weights", 3)


def test_invalid_regular_expression():
    with pytest.raises(ArgumentError, match="not a valid regular expression"):
        ParameterIndex(Net()).match("re:(")


def test_modules_really_called_module_still_resolve():
    outer = nn.Module()
    outer.module = nn.Linear(2, 2)
    outer.weight = nn.Parameter(torch.zeros(1))
    index = ParameterIndex(outer)
    assert index["weight"] is outer.weight
    assert index["module.weight"] is outer.module.weight


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)
        self.head = nn.Linear(2, 4)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("linear.weight", "Did you mean 'head.weight'?"),
        ("fc.weight", "Did you mean 'head.weight'?"),
        ("conv.weight", "Did you mean 'conv1.weight'?"),
        ("features.batchnorm.bias", "Did you mean 'bn1.bias'?"),
        ("encoder.weight", "Layers to prune: conv1.weight, head.weight"),
        ("head.wieght", "Did you mean 'head.weight' or"),
    ],
)
def test_hints_look_at_layers_not_at_the_ends_of_names(name, hint):
    with pytest.raises(TargetError) as caught:
        ParameterIndex(Classifier()).match(name)
    assert str(caught.value).startswith(f"{name!r} matches no parameter of the model. {hint}")
