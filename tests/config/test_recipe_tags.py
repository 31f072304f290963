"""Every component with a recipe tag can be written, documented and read back."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from distiller_ng.config.frontends.recipe.tags import entries_of_class, find_tag, known_tags
from distiller_ng.config.kinds import KINDS
from distiller_ng.errors import ArgumentError

PAGE = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text(encoding="utf-8")
SPARSEML = [
    "EpochRange",
    "SetLearningRate",
    "LearningRateFunction",
    "LearningRate",
    "SetWeightDecay",
    "TrainableParams",
    "SetParam",
    "GradualParam",
    "SparsificationLogging",
    "ConstantPruning",
    "GMPruning",
    "MagnitudePruning",
    "GlobalMagnitudePruning",
    "MovementPruning",
    "OBSPruning",
    "MFACPruning",
    "ACDCPruning",
    "StructuredPruning",
    "LayerPruning",
    "LayerThinning",
    "TopKASTPruning",
    "RigLPruning",
    "Powerpropagation",
    "Quantization",
    "Distillation",
    "PerLayerDistillation",
    "ASReg",
]


def test_every_modifier_of_sparseml_has_a_component():
    assert {f"{name}Modifier" for name in SPARSEML} <= set(known_tags())


@pytest.mark.parametrize("tag", known_tags())
def test_a_tag_is_documented_with_its_component(tag):
    entry, right = find_tag(tag, {})
    assert right is None
    row = next((line for line in PAGE.splitlines() if line.startswith("|") and f"`{tag}`" in line), None)
    assert row is not None, f"docs/recipes.md does not name {tag}"
    assert re.search(rf"`{entry.registered.name}`", row), (entry.registered.name, row)
    assert entry.kind.section in row


@pytest.mark.parametrize("tag", known_tags())
def test_a_tag_names_arguments_that_exist(tag):
    entry, _ = find_tag(tag, {})
    arguments = entry.component.arguments
    hooked = hasattr(entry.registered.cls, "from_recipe")
    if entry.tag.params is not None:
        assert entry.tag.params in arguments
    if not hooked:
        assert set(entry.tag.renamed.values()) | set(entry.tag.fixed) <= set(arguments)
    policy = {*entry.policy_args.values(), *entry.tag.fixed_policy_args}
    assert policy <= set(KINDS[entry.kind.section].policy_args)
    assert entry in entries_of_class(entry.kind.section, entry.registered.name)


def test_other_spellings_and_unknown_tags():
    assert find_tag("EpochRange", {})[1] == "EpochRangeModifier"
    assert find_tag("MovementPruning", {})[1] == "MovementPruningModifier"
    assert find_tag("OBS", {})[1] == "OBSPruningModifier"
    with pytest.raises(ArgumentError, match="Did you mean 'OBSPruningModifier'"):
        find_tag("OBSPruninModifier", {})
