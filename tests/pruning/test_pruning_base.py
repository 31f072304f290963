"""What all pruners share: resolving targets, direct calls, a policy's levels, private ranking helpers."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pruning_helpers import ConvNet, Holder, decide, filters_with
from torch import nn

import distiller_ng.pruning as pruning
from distiller_ng.core.masker import USER, ParameterMasker
from distiller_ng.core.masks import RESTORED, create_model_masks_dict
from distiller_ng.core.window import PolicyWindow
from distiller_ng.errors import ArgumentError, CheckpointError, TargetError
from distiller_ng.names import ParameterIndex
from distiller_ng.ops.patterns import NMPattern
from distiller_ng.pruning import PRUNERS, MagnitudeParameterPruner, MagnitudePruner, SparsityLevelParameterPruner
from distiller_ng.pruning._ranking import rank_together


def test_targets_resolve_in_the_order_they_are_named_exact_names_first():
    pruner = SparsityLevelParameterPruner("p", {"re:.*weight": 0.25, "fc.weight": 0.5, "*": 0.75})
    assert pruner.bind(ParameterIndex(ConvNet()))[:4] == ["conv1.weight", "bn1.weight", "conv2.weight", "fc.weight"]
    assert pruner.target_of("fc.weight") == "fc.weight"
    assert pruner.target_of("conv1.weight") == "re:.*weight"
    assert pruner.target_of("conv1.bias") == "*"


def test_names_written_for_wrapped_models_mean_the_same_parameter():
    plain, wrapped = ConvNet(), nn.DataParallel(ConvNet())
    for model, written in ((plain, "module.conv1.weight"), (wrapped, "conv1.weight")):
        pruner = MagnitudePruner("p", [written], sparsity=0.5)
        assert pruner.bind(ParameterIndex(model)) == ["conv1.weight"]
        assert int((decide(pruner, model)["conv1.weight"] == 0).sum()) == 54


@pytest.mark.parametrize("target", ["conv1.wieght", "re:layer.*", "conv1", "__ALL_PRUNEABLE__"])
def test_targets_that_match_nothing_are_errors_where_they_stand(target):
    with pytest.raises(TargetError) as caught:
        MagnitudePruner("p", ["fc.weight", target], sparsity=0.5).bind(ParameterIndex(ConvNet()))
    assert caught.value.argument == ("weights", 1)
    assert MagnitudePruner("p", ["fc.weight", target], sparsity=0.5).bind(ParameterIndex(ConvNet()), strict=False) == [
        "fc.weight"
    ]


def test_direct_call_leaves_other_parameters_alone_and_keeps_other_owners():
    model = ConvNet()
    masks = create_model_masks_dict(model)
    masks["fc.weight"].mask = torch.ones(4, 8)
    pruner = MagnitudePruner("p", "fc.weight", sparsity=0.5)
    pruner.set_param_mask(model.conv1.weight, "conv1.weight", masks, None)
    pruner.set_param_mask(model.fc.weight, "module.fc.weight", masks, {"model": model})
    assert masks["conv1.weight"].mask is None
    assert set(masks["fc.weight"].owners) == {USER, "p"}


def test_direct_call_replaces_a_restored_mask():
    model = ConvNet()
    masks = create_model_masks_dict(model)
    masks.set("fc.weight", torch.zeros(4, 8), owner=RESTORED)
    MagnitudePruner("p", "fc.weight", sparsity=0.5).set_param_mask(model.fc.weight, "fc.weight", masks)
    assert set(masks["fc.weight"].owners) == {"p"}


def test_direct_call_follows_meta():
    masks = {"w": ParameterMasker("w")}
    weight = torch.arange(1.0, 101.0).reshape(10, 10)
    pruner = pruning.AutomatedGradualPruner("p", 0.05, 0.85, "w")
    meta = {"starting_epoch": 0, "ending_epoch": 5, "frequency": 2, "current_epoch": 2}
    pruner.set_param_mask(weight, "w", masks, meta)
    assert int((masks["w"].mask == 0).sum()) == 75


def test_levels_mean_nothing_to_threshold_pruners():
    pruner = MagnitudeParameterPruner("p", {"*": 0.1})
    pruner.levels = None
    with pytest.raises(ArgumentError, match="prunes to no level") as caught:
        pruner.levels = 0.5
    assert caught.value.argument == ("levels",)


def test_levels_override_by_target():
    model = Holder(a=filters_with(1, 2, 3, 4), b=filters_with(1, 2, 3, 4), c=filters_with(1, 2, 3, 4))
    pruner = pruning.L1RankedStructureParameterPruner("p", "Filters", 0.25, "re:.*")
    pruner.levels = {"re:b.*": 0.5, "a.weight": 0.75}
    pruned = {name: int((mask[:, 0] == 0).sum()) for name, mask in decide(pruner, model).items()}
    assert pruned == {"a.weight": 3, "b.weight": 2, "c.weight": 1}
    assert pruner.planned_sparsity("b.weight", PolicyWindow.from_range(0, 1)) == 0.5
    with pytest.raises(ArgumentError) as caught:
        pruner.levels = {"a.weight": 2}
    assert caught.value.argument == ("levels", "a.weight")


def test_stateless_pruners_refuse_a_foreign_state():
    with pytest.raises(CheckpointError):
        MagnitudePruner("p", "a", sparsity=0.5).load_state_dict({"statistics": {}})


def test_pruners_are_known_by_distillers_names():
    distillers = [
        "MagnitudeParameterPruner",
        "SparsityLevelParameterPruner",
        "SensitivityPruner",
        "SplicingPruner",
        "BaiduRNNPruner",
        "AutomatedGradualPruner",
        "StructureParameterPruner",
        "LpRankedStructureParameterPruner",
        "L1RankedStructureParameterPruner",
        "L2RankedStructureParameterPruner",
        "RandomLevelStructureParameterPruner",
        "RandomRankedFilterPruner",
        "BernoulliFilterPruner",
        "GradientRankedFilterPruner",
        "ActivationAPoZRankedFilterPruner",
        "ActivationMeanRankedFilterPruner",
        "FMReconstructionChannelPruner",
        "L1RankedStructureParameterPruner_AGP",
        "L2RankedStructureParameterPruner_AGP",
        "ActivationAPoZRankedFilterPruner_AGP",
        "ActivationMeanRankedFilterPruner_AGP",
        "GradientRankedFilterPruner_AGP",
        "RandomRankedFilterPruner_AGP",
        "BernoulliFilterPruner_AGP",
    ]
    recipes = {entry.name for entry in PRUNERS if entry.recipe_tags}
    one_shot = {"SparseGPTPruner", "WandaPruner"}
    assert set(PRUNERS.names()) - recipes - one_shot == {*distillers, "DenseSparseDense", "GroupPruner"}
    assert recipes >= {"MagnitudePruner", "OBSPruner", "MFACPruner", "ACDCPruner", "ConstantPruner", "MovementPruner"}
    for name in PRUNERS.names():
        assert getattr(pruning, name) is PRUNERS.get(name).cls


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=12), min_size=1, max_size=4),
    st.floats(0, 1),
    st.sampled_from([None, NMPattern(1, 2), NMPattern(2, 4)]),
)
def test_rank_together_prunes_exactly_k_of_the_lowest(values, share, pattern):
    scores = [torch.tensor(row).float() for row in values]
    total = sum(len(row) for row in values)
    k = int(share * total)
    masks = rank_together(scores, k, pattern=pattern)
    zeros = [mask == 0 for mask in masks]
    assert sum(int(z.sum()) for z in zeros) == k
    assert len({mask.untyped_storage().data_ptr() for mask in masks}) == len(masks)
    flat, pruned = torch.cat(scores), torch.cat(zeros)
    if pattern is None and pruned.any() and not pruned.all():
        assert flat[pruned].max() <= flat[~pruned].min()
