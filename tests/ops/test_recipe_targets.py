"""Names of recipes and ours: the same parameters, in both directions."""

from __future__ import annotations

import re

import pytest
from torch import nn

from distiller_ng.errors import TargetError
from distiller_ng.names import ParameterIndex
from distiller_ng.ops.recipe_targets import from_recipe_target, to_recipe_target

MODEL = nn.ModuleDict(
    {
        "conv": nn.Conv2d(1, 2, 1),
        "bn": nn.BatchNorm2d(2),
        "emb": nn.Embedding(3, 2),
        "fc": nn.Linear(2, 2),
        "rnn": nn.LSTM(2, 2),
    }
)
EVERY = [name for name, _ in MODEL.named_parameters()]


def matched_by_sparseml(entry):
    pattern = entry.removeprefix("re:")
    return [name for name in EVERY if re.match(pattern, name)]


@pytest.mark.parametrize(
    "entry",
    [
        "re:conv",
        "re:.*weight",
        "re:c|f",
        "re:.*weight$",
        "re:fc\\.w",
        "re:(?i)FC",
        "re:.*",
        "re:(conv|bn).b",
        "re:bn\\.*",
    ],
)
def test_patterns_match_from_the_start(entry):
    index = ParameterIndex(MODEL)
    assert index.match(from_recipe_target(entry)) == matched_by_sparseml(entry)
    again = to_recipe_target(from_recipe_target(entry))
    assert matched_by_sparseml(again) == matched_by_sparseml(entry)


@pytest.mark.parametrize("pattern", ["re:fc.*weight", "re:conv.weight|fc.weight", "re:.*", "re:(?:fc).*"])
def test_our_patterns_match_in_full_in_recipes_too(pattern):
    index = ParameterIndex(MODEL)
    assert matched_by_sparseml(to_recipe_target(pattern)) == index.match(pattern)


def test_what_can_be_pruned():
    index = ParameterIndex(MODEL)
    assert index.match(from_recipe_target("__all_prunable__")) == ["conv.weight", "emb.weight", "fc.weight"]
    assert "rnn.weight_ih_l0" in index.match("__ALL_PRUNABLE__") and "emb.weight" not in index.match("__ALL_PRUNABLE__")
    assert index.match(from_recipe_target("__ALL__")) == EVERY
    assert to_recipe_target(from_recipe_target("__ALL_PRUNABLE__")) == "__ALL_PRUNABLE__"


def test_a_module_stands_for_its_weight():
    index = ParameterIndex(MODEL)
    assert index.match(from_recipe_target("fc")) == ["fc.weight"]
    assert index.match(from_recipe_target("rnn.weight_ih_l0")) == ["rnn.weight_ih_l0"]
    assert to_recipe_target(from_recipe_target("blocks.1.conv-a")) == "blocks.1.conv-a"
    with pytest.raises(TargetError, match="'fd' is no parameter of the model, nor a module with a weight"):
        index.match(from_recipe_target("fd"))


def test_parameters_of_the_model_itself():
    assert ParameterIndex(nn.Linear(1, 1)).match(from_recipe_target(".weight")) == ["weight"]
    assert ParameterIndex(nn.Linear(1, 1)).match(from_recipe_target("__ALL_PRUNABLE__")) == ["weight"]
