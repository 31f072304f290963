"""One battery over every registered pruner: what all of them promise, and that each has a test of its numbers.

A pruner registered in this package without an entry in ``MINIMAL`` and ``LITERAL_TESTS`` fails here.
"""

import ast
import functools
import inspect
import warnings
from pathlib import Path

import pytest
import torch
from pruning_helpers import ConvNet, context, decide

from distiller_ng.core.masks import MaskRegistry
from distiller_ng.core.window import PolicyWindow
from distiller_ng.errors import ArgumentError, ScheduleWarning
from distiller_ng.names import ParameterIndex
from distiller_ng.pruning import PRUNERS
from distiller_ng.pruning._observing import ObservingPruner

WEIGHTS = ["conv1.weight", "conv2.weight"]
FILTERS = {"group_type": "Filters", "weights": WEIGHTS}
AGP = {"initial_sparsity": 0.1, "final_sparsity": 0.6}
# The smallest arguments that make each pruner prune something in epoch 2 of the window below.
MINIMAL = {
    "ACDCPruner": {"weights": WEIGHTS, "compression_sparsity": 0.5},
    "ActivationAPoZRankedFilterPruner": {**FILTERS, "desired_sparsity": 0.5},
    "ActivationAPoZRankedFilterPruner_AGP": {**FILTERS, **AGP},
    "ActivationMeanRankedFilterPruner": {**FILTERS, "desired_sparsity": 0.5},
    "ActivationMeanRankedFilterPruner_AGP": {**FILTERS, **AGP},
    "AutomatedGradualPruner": {**AGP, "weights": WEIGHTS},
    "BaiduRNNPruner": {"q": 0.05, "ramp_epoch_offset": 1, "ramp_slope_mult": 2, "weights": WEIGHTS},
    "BernoulliFilterPruner": {**FILTERS, "desired_sparsity": 0.5},
    "BernoulliFilterPruner_AGP": {**FILTERS, **AGP},
    "ConstantPruner": {"weights": WEIGHTS, "pattern": "1:2"},
    "DenseSparseDense": {"weights": WEIGHTS, "sparsity": 0.5},
    "FMReconstructionChannelPruner": {"group_type": "Channels", "weights": WEIGHTS, "desired_sparsity": 0.5},
    "GradientRankedFilterPruner": {**FILTERS, "desired_sparsity": 0.5},
    "GradientRankedFilterPruner_AGP": {**FILTERS, **AGP},
    "GroupPruner": {**FILTERS, "sparsity": 0.5},
    "L1RankedStructureParameterPruner": {**FILTERS, "desired_sparsity": 0.5},
    "L1RankedStructureParameterPruner_AGP": {**FILTERS, **AGP},
    "L2RankedStructureParameterPruner": {**FILTERS, "desired_sparsity": 0.5},
    "L2RankedStructureParameterPruner_AGP": {**FILTERS, **AGP},
    "LpRankedStructureParameterPruner": {**FILTERS, "desired_sparsity": 0.5, "magnitude_fn": "max"},
    "MFACPruner": {"weights": WEIGHTS, "sparsity": 0.5, "num_grads": 2},
    "MagnitudeParameterPruner": {"thresholds": {"conv1.weight": 0.05, "*": 0.02}},
    "MagnitudePruner": {"weights": WEIGHTS, "sparsity": 0.5},
    "MovementPruner": {"weights": WEIGHTS, "init_sparsity": 0.6, "final_sparsity": 0.7},
    "OBSPruner": {"weights": WEIGHTS, "sparsity": 0.5, "num_grads": 2, "fisher_block_size": 10},
    "RandomLevelStructureParameterPruner": {**FILTERS, "sparsity_range": [0.3, 0.6]},
    "RandomRankedFilterPruner": {**FILTERS, "desired_sparsity": 0.5},
    "RandomRankedFilterPruner_AGP": {**FILTERS, **AGP},
    "RigLPruner": {"weights": WEIGHTS, "final_sparsity": 0.6, "sparsity_strategy": "uniform"},
    "SensitivityPruner": {"sensitivities": dict.fromkeys(WEIGHTS, 0.5)},
    "SparseGPTPruner": {"weights": WEIGHTS, "sparsity": 0.5},
    "SparsityLevelParameterPruner": {"levels": dict.fromkeys(WEIGHTS, 0.5)},
    "SplicingPruner": {"sensitivities": dict.fromkeys(WEIGHTS, 0.2), "low_thresh_mult": 0.9, "hi_thresh_mult": 1.1},
    "StructureParameterPruner": {
        "model": None,
        "reg_regims": {"conv1.weight": [0.1, "Filters"], "conv2.weight": [0.085, "Filters"]},
        "threshold_criteria": "Mean_Abs",
    },
    "WandaPruner": {"weights": WEIGHTS, "sparsity": 0.5},
    "StructuredPruner": {"weights": WEIGHTS, "init_sparsity": 0.5, "final_sparsity": 0.6},
}
# Which tests hold each pruner to literal values or a float64 reference.
LITERAL_TESTS = {
    "ACDCPruner": ["test_acdc_is_dense_and_compressed_in_turn"],
    "ActivationAPoZRankedFilterPruner": ["test_b8_apoz_prunes_the_filters_that_are_zero_most_often"],
    "ActivationAPoZRankedFilterPruner_AGP": ["test_activation_agp_follows_its_statistic"],
    "ActivationMeanRankedFilterPruner": ["test_b5_mean_prunes_the_least_active_filters"],
    "ActivationMeanRankedFilterPruner_AGP": ["test_activation_agp_follows_its_statistic"],
    "AutomatedGradualPruner": ["test_agp_prunes_by_the_cubic_curve"],
    "BaiduRNNPruner": ["test_baidu_threshold_rises_slowly_then_fast"],
    "BernoulliFilterPruner": ["test_b7_bernoulli_masks_are_rescaled", "test_bernoulli_rate_is_the_level"],
    "BernoulliFilterPruner_AGP": ["test_bernoulli_agp_drops_at_the_scheduled_rate"],
    "ConstantPruner": ["test_constant_holds_the_zeros_that_are_there"],
    "DenseSparseDense": ["test_dsd_holds_one_mask_for_its_window", "test_dsd_with_a_schedule_decides_every_time"],
    "FMReconstructionChannelPruner": ["test_refitted_weights_agree_with_numpys_least_squares"],
    "GradientRankedFilterPruner": ["test_filters_of_lowest_signed_taylor_score_go"],
    "GradientRankedFilterPruner_AGP": ["test_gradient_agp_follows_the_scores"],
    "GroupPruner": ["test_the_lowest_groups_go_whole"],
    "L1RankedStructureParameterPruner": ["test_l1_prunes_the_filters_of_lowest_norm"],
    "L1RankedStructureParameterPruner_AGP": ["test_norm_rankers_lose_0_7_and_8_of_16_filters"],
    "L2RankedStructureParameterPruner": ["test_l2_and_max_rank_by_their_own_norm"],
    "L2RankedStructureParameterPruner_AGP": ["test_l2_agp_ranks_by_l2"],
    "LpRankedStructureParameterPruner": ["test_l2_and_max_rank_by_their_own_norm"],
    "MFACPruner": ["test_scores_pruned_set_and_weights_equal_the_dense_reference"],
    "MagnitudeParameterPruner": ["test_magnitude_keeps_what_exceeds_the_threshold"],
    "MagnitudePruner": ["test_magnitude_pruner_by_layer_and_globally"],
    "MovementPruner": ["test_movement_prunes_what_shrinks"],
    "OBSPruner": ["test_scores_pruned_set_and_weights_equal_the_dense_reference"],
    "RandomLevelStructureParameterPruner": ["test_random_level_prunes_the_lowest_to_a_drawn_level"],
    "RandomRankedFilterPruner": ["test_b8_random_filters_exact_count_and_anew_each_time"],
    "RandomRankedFilterPruner_AGP": ["test_random_agp_has_the_exact_count"],
    "RigLPruner": ["test_rigl_drops_the_smallest_and_grows_by_gradient"],
    "SensitivityPruner": ["test_sensitivity_agrees_with_a_float64_reference"],
    "SparseGPTPruner": ["test_sparsegpt_equals_the_papers_algorithm"],
    "SparsityLevelParameterPruner": ["test_level_prunes_the_smallest_magnitudes"],
    "SplicingPruner": ["test_splicing_prunes_keeps_and_brings_back"],
    "WandaPruner": ["test_wanda_equals_its_formula"],
    "StructureParameterPruner": ["test_structures_above_the_threshold_stay"],
    "StructuredPruner": ["test_structured_prunes_filters_and_channels_by_norm"],
}
# Structured pruners have few structures here, so the pattern is one that every one of them feels.
EXTRAS = {
    "schedule": {"schedule": {"class": "Linear", "initial_sparsity": 0.3, "final_sparsity": 0.7}},
    "global": {"scope": "global"},
    "pattern": {"pattern": "1:2"},
    "all three": {"schedule": {"class": "Constant", "sparsity": 0.6}, "scope": "global", "pattern": "2:3"},
}
WINDOW, EPOCH = (1, 4, 1), 2
OURS = [name for name in PRUNERS.names() if PRUNERS.get(name).cls.__module__.startswith("distiller_ng.pruning.")]


def make(name, **extra):
    entry = PRUNERS.get(name)
    arguments = {**MINIMAL[name], **extra}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ScheduleWarning)
        return entry.cls("p", **arguments)


def prepared():
    """A model with gradients, and a pass over data for the pruners that watch."""
    torch.manual_seed(7)
    model = ConvNet()
    data = torch.randn(8, 3, 6, 6)
    model(data).square().mean().backward()
    return model.eval(), data


def masks_of(pruner, model, data, *, masks=None, epoch=EPOCH):
    pruner.bind(ParameterIndex(model) if masks is None else masks.parameters)
    if isinstance(pruner, ObservingPruner):
        with pruner.observing(model), torch.no_grad():
            model(data)
    ctx = context(model, epoch=epoch, window=WINDOW, masks=masks, inputs=data)
    torch.manual_seed(11)
    return decide(pruner, model, ctx), ctx


@pytest.mark.parametrize("name", OURS)
def test_every_pruner_has_arguments_here_and_a_test_of_its_numbers(name):
    assert name in MINIMAL, f"add {name} to MINIMAL"
    assert LITERAL_TESTS.get(name), f"write a test with literal values for {name} and name it in LITERAL_TESTS"
    for test in LITERAL_TESTS[name]:
        assert test in _functions_of_other_files(), f"{test} does not exist"
        asserts = [node for node in ast.walk(_functions_of_other_files()[test]) if isinstance(node, ast.Assert)]
        assert asserts, f"{test} asserts nothing"


@functools.cache
def _functions_of_other_files():
    """The test functions of the other files of this folder, by name."""
    trees = [ast.parse(path.read_text()) for path in Path(__file__).parent.glob("test_*.py") if path != Path(__file__)]
    return {node.name: node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("name", OURS)
def test_masks_fit_and_are_binary_unless_declared_otherwise(name):
    model, data = prepared()
    pruner = make(name)
    masks, _ = masks_of(pruner, model, data)
    parameters = dict(model.named_parameters())
    assert set(WEIGHTS) <= set(masks)
    for key, mask in masks.items():
        assert mask.shape == parameters[key].shape and mask.dtype == parameters[key].dtype
        assert torch.isfinite(mask).all() and not mask.requires_grad
        assert mask.data_ptr() != parameters[key].data_ptr()
        if pruner.binary_masks:
            assert ((mask == 0) | (mask == 1)).all()
    pruned = torch.cat([masks[key].flatten() == 0 for key in WEIGHTS])
    assert 0 < float(pruned.float().mean()) < 1


@pytest.mark.parametrize("name", OURS)
def test_deciding_touches_no_weight_no_gradient_and_leaves_nothing_on_the_model(name):
    model, data = prepared()
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    gradients = {key: parameter.grad.clone() for key, parameter in model.named_parameters()}
    attributes = {key: set(vars(module)) for key, module in model.named_modules()}
    versions = {key: parameter._version for key, parameter in model.named_parameters()}
    masks_of(make(name), model, data)
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())
    assert all(torch.equal(parameter.grad, gradients[key]) for key, parameter in model.named_parameters())
    assert {key: set(vars(module)) for key, module in model.named_modules()} == attributes
    assert {key: parameter._version for key, parameter in model.named_parameters()} == versions
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in model.modules())
    assert all(set(vars(parameter)) == set() for parameter in model.parameters())


@pytest.mark.parametrize("name", OURS)
def test_the_same_seed_gives_the_same_masks(name):
    model, data = prepared()
    first, _ = masks_of(make(name), model, data)
    second, _ = masks_of(make(name), model, data)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("extra", [{}, {"group_dependency": "Leader"}, {"scope": "global"}], ids=str)
@pytest.mark.parametrize("name", OURS)
def test_state_makes_the_next_decision_the_same(name, extra, tmp_path):
    if "group_dependency" in extra and "group_dependency" not in inspect.signature(PRUNERS.get(name).cls).parameters:
        extra = {}
    model, data = prepared()
    if "group_dependency" in extra:
        model.conv2 = torch.nn.Conv2d(4, 4, 3, padding=1)
        model.fc = torch.nn.Linear(4, 4)
        if MINIMAL[name].get("group_type") == "Channels":
            model.conv1, model.bn1, model.conv2 = (
                torch.nn.Conv2d(3, 3, 1),
                torch.nn.BatchNorm2d(3),
                torch.nn.Conv2d(3, 4, 3),
            )
        model(data).square().mean().backward()
    pruner = make(name, **extra)
    _, ctx = masks_of(pruner, model, data)
    path = tmp_path / "state.pt"
    torch.save({"pruner": pruner.state_dict(), "masks": ctx.masks.state_dict()}, path)
    saved = torch.load(path, weights_only=True)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    resumed = make(name, **extra)
    masks = MaskRegistry(ParameterIndex(model))
    masks.load_state_dict(saved["masks"])
    resumed.load_state_dict(saved["pruner"])
    decisions = []
    for one, registry in ((pruner, ctx.masks), (resumed, masks)):
        torch.manual_seed(12)
        later = context(model, epoch=EPOCH + 1, window=WINDOW, masks=registry, inputs=data)
        decisions.append(decide(one, model, later))
    assert decisions[0].keys() == decisions[1].keys()
    assert all(torch.equal(decisions[0][key], decisions[1][key]) for key in decisions[0])


@pytest.mark.parametrize("extra", EXTRAS)
@pytest.mark.parametrize("name", OURS)
def test_schedule_scope_and_pattern_are_understood(name, extra):
    model, data = prepared()
    pruner = make(name, **EXTRAS[extra])
    masks, ctx = masks_of(pruner, model, data)
    assert set(WEIGHTS) <= set(masks)
    pruner.check(PolicyWindow.from_range(*WINDOW), ctx.parameters)
    planned = [pruner.planned_sparsity(key, ctx.window) for key in WEIGHTS]
    assert all(level is None or 0 <= level <= 1 for level in planned)


# These draw how much they prune, and may draw less than the pattern drops.
@pytest.mark.parametrize("name", [n for n in OURS if not n.startswith(("Bernoulli", "RandomLevel"))])
def test_a_pattern_leaves_at_most_n_of_m(name):
    model, data = prepared()
    masks, _ = masks_of(make(name, pattern="1:2"), model, data)
    by_filter = "reg_regims" in MINIMAL[name] or name == "StructuredPruner"
    group_type = MINIMAL[name].get("group_type") or ("Filters" if by_filter else "elements")
    for key in WEIGHTS:
        live = masks[key] != 0
        if group_type != "elements":
            live = live.transpose(0, int(group_type == "Channels")).flatten(1).any(dim=1, keepdim=True).t()
        pairs = live.shape[1] // 2 * 2
        assert (live[:, 0:pairs:2].int() + live[:, 1:pairs:2].int() <= 1).all()


@pytest.mark.parametrize("name", OURS)
def test_constructor_follows_the_common_signature(name):
    entry = PRUNERS.get(name)
    parameters = list(inspect.signature(entry.cls).parameters.values())
    assert parameters[0].name == "name" and "name" in entry.injected
    by_name = {parameter.name: parameter for parameter in parameters}
    for common in ("schedule", "scope", "pattern"):
        assert by_name[common].kind is inspect.Parameter.KEYWORD_ONLY
    for parameter in parameters:
        assert parameter.annotation is not inspect.Parameter.empty, parameter.name
        assert not isinstance(parameter.default, list | dict | set)
    assert entry.cls.__doc__ and entry.cls.__doc__.strip()
    for wrong in ({"scope": "everything"}, {"pattern": "4:2"}, {"schedule": {"class": "Nope"}}):
        with pytest.raises(ArgumentError) as caught:
            make(name, **wrong)
        assert caught.value.argument[0] in wrong
