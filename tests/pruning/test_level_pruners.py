"""Pruners of single weights to a level: exact counts, schedules, global ranking, N:M patterns."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pruning_helpers import ConvNet, Holder, context, decide

from distiller_ng.core.masks import MaskRegistry
from distiller_ng.core.position import TrainPosition
from distiller_ng.core.window import PolicyWindow
from distiller_ng.errors import ArgumentError, ScheduleWarning, TargetError
from distiller_ng.names import ParameterIndex
from distiller_ng.pruning import (
    AGP,
    AgpPruningRate,
    AutomatedGradualPruner,
    DenseSparseDense,
    Linear,
    MagnitudePruner,
    SparsityLevelParameterPruner,
)

WEIGHT = torch.tensor([[0.2, -0.5, 0.4, 0.1]])


def zeros(mask):
    return int((mask == 0).sum())


# -- SparsityLevelParameterPruner -------------------------------------------------------------------------------------


def test_level_prunes_the_smallest_magnitudes():
    masks = decide(SparsityLevelParameterPruner("p", {"a.weight": 0.5}), Holder(a=WEIGHT, b=WEIGHT))
    assert masks.keys() == {"a.weight"}
    assert masks["a.weight"].tolist() == [[0, 1, 1, 0]]


def test_level_star_is_for_what_no_other_key_names():
    pruner = SparsityLevelParameterPruner("p", {"a.weight": 0.25, "re:c.*": 0.75, "*": 0.5, "d.weight": 0})
    masks = decide(pruner, Holder(a=WEIGHT, b=WEIGHT, c=WEIGHT, d=WEIGHT))
    assert {name: zeros(mask) for name, mask in masks.items()} == {"a.weight": 1, "b.weight": 2, "c.weight": 3}


def test_b10_level_too_small_for_one_weight_prunes_nothing():
    assert decide(SparsityLevelParameterPruner("p", {"*": 0.1}), Holder(a=WEIGHT)) == {}


def test_b10_equal_weights_go_by_index_up_to_the_exact_count():
    masks = decide(SparsityLevelParameterPruner("p", {"*": 0.5}), Holder(a=torch.full((1, 6), 0.3)))
    assert masks["a.weight"].tolist() == [[0, 0, 0, 1, 1, 1]]


def test_a_level_that_falls_to_nothing_gives_a_dense_mask():
    model = Holder(a=WEIGHT)
    ctx = context(model)
    pruner = SparsityLevelParameterPruner("p", {"a.weight": 0.5})
    decide(pruner, model, ctx)
    pruner.levels = {"a.weight": 0.0}
    assert decide(pruner, model, ctx)["a.weight"].tolist() == [[1, 1, 1, 1]]


def test_levels_of_a_policy_replace_the_map_and_its_keys():
    model = Holder(a=WEIGHT, b=WEIGHT)
    ctx = context(model)
    pruner = SparsityLevelParameterPruner("p", {"a.weight": 0.5})
    pruner.bind(ctx.parameters)
    pruner.levels = {"b.weight": 0.25}
    groups = pruner.groups(ctx.parameters)
    assert [group.names for group in groups] == [("b.weight",)]
    assert pruner.compute_masks(groups[0], ctx)["b.weight"].tolist() == [[1, 1, 1, 0]]
    pruner.levels = 0.75
    assert pruner.compute_masks(pruner.groups(ctx.parameters)[0], ctx)["a.weight"].tolist() == [[0, 1, 0, 0]]


def test_global_levels_prune_the_smallest_weights_wherever_they_are():
    model = Holder(a=torch.tensor([[1.0, 2.0, 3.0, 4.0]]), b=torch.tensor([[5.0, 0.5, 6.0, 7.0]]))
    masks = decide(SparsityLevelParameterPruner("p", {"*": 0.5}, scope="global"), model)
    assert masks["a.weight"].tolist() == [[0, 0, 0, 1]]
    assert masks["b.weight"].tolist() == [[1, 0, 1, 1]]


def test_global_levels_of_different_height_add_up():
    model = Holder(a=torch.tensor([[1.0, 2.0, 3.0, 4.0]]), b=torch.tensor([[5.0, 0.5, 6.0, 7.0]]))
    pruner = SparsityLevelParameterPruner("p", {"a.weight": 0.5, "b.weight": 0.25}, scope="global")
    masks = decide(pruner, model)  # 2 + 1 = 3 weights: 0.5, 1, 2
    assert masks["a.weight"].tolist() == [[0, 0, 1, 1]]
    assert masks["b.weight"].tolist() == [[1, 0, 1, 1]]


def test_level_with_a_pattern_prunes_the_patterns_choice_first():
    weight = torch.tensor([[9.0, 8.0, 7.0, 6.0, 1.0, 2.0, 3.0, 4.0]])  # 2:4 drops 7, 6 and 1, 2
    by_level = {
        level: decide(SparsityLevelParameterPruner("p", {"*": level}, pattern="2:4"), Holder(a=weight))["a.weight"]
        for level in (0.25, 0.5, 0.75)
    }
    assert by_level[0.25].tolist() == [[1, 1, 1, 1, 0, 0, 1, 1]]
    assert by_level[0.5].tolist() == [[1, 1, 0, 0, 0, 0, 1, 1]]
    assert by_level[0.75].tolist() == [[1, 1, 0, 0, 0, 0, 0, 0]]


def test_schedule_replaces_levels_but_not_zero_and_says_so():
    with pytest.warns(ScheduleWarning, match="schedule replaces levels"):
        pruner = SparsityLevelParameterPruner("p", {"a.weight": 0.1, "b.weight": 0}, schedule=Linear(final_sparsity=1))
    masks = decide(pruner, Holder(a=WEIGHT, b=WEIGHT), epoch=2, window=(0, 5, 1))
    assert masks.keys() == {"a.weight"}
    assert zeros(masks["a.weight"]) == 2


@pytest.mark.parametrize(
    ("levels", "argument"),
    [
        ({"conv1.weight": 1.5}, ("levels", "conv1.weight")),
        ({"conv1.weight": -0.1}, ("levels", "conv1.weight")),
        ({"conv1.weight": "half"}, ("levels", "conv1.weight")),
        ({"conv1.weight": None}, ("levels",)),
        ({}, ("levels",)),
        (0.5, ("levels",)),
    ],
)
def test_level_arguments_are_checked(levels, argument):
    with pytest.raises(ArgumentError) as caught:
        SparsityLevelParameterPruner("p", levels)
    assert caught.value.argument == argument


# -- MagnitudePruner --------------------------------------------------------------------------------------------------


def test_magnitude_pruner_by_layer_and_globally():
    model = Holder(a=torch.tensor([[1.0, 4.0]]), b=torch.tensor([[2.0, 3.0]]))
    by_layer = decide(MagnitudePruner("p", "re:.*", sparsity=0.5), model)
    assert [mask.tolist() for mask in by_layer.values()] == [[[0, 1]], [[0, 1]]]
    assert decide(MagnitudePruner("p", "re:.*", sparsity=0.25), model) == {}
    globally = decide(MagnitudePruner("p", "re:.*", sparsity=0.25, scope="global"), model)
    assert [mask.tolist() for mask in globally.values()] == [[[0, 1]], [[1, 1]]]


def test_magnitude_pruner_pattern_alone_runs_along_input_channels():
    weight = torch.tensor([0.1, 0.9, 0.2, 0.8]).reshape(1, 4, 1, 1).expand(2, 4, 3, 3).clone()
    mask = decide(MagnitudePruner("p", ["a.weight"], pattern="2:4"), Holder(a=weight))["a.weight"]
    assert mask[0, :, 0, 0].tolist() == [0, 1, 0, 1]
    assert torch.equal(mask, mask[:1, :, :1, :1].expand_as(mask))
    assert zeros(mask) == 36


def test_magnitude_pruner_pattern_with_a_global_level():
    model = Holder(a=torch.tensor([[9.0, 8.0, 7.0, 6.0]]), b=torch.tensor([[1.0, 2.0, 3.0, 4.0]]))
    masks = decide(MagnitudePruner("p", "re:.*", sparsity=0.375, scope="global", pattern="2:4"), model)
    assert masks["b.weight"].tolist() == [[0, 0, 1, 1]]  # 1 and 2 of what the pattern drops, then 6
    assert masks["a.weight"].tolist() == [[1, 1, 1, 0]]


def test_magnitude_pruner_warns_where_a_pattern_finds_too_few_channels():
    pruner = MagnitudePruner("p", "__ALL_PRUNABLE__", pattern="2:4")
    parameters = ParameterIndex(ConvNet())
    assert pruner.bind(parameters) == ["conv1.weight", "conv2.weight", "fc.weight"]
    with pytest.warns(ScheduleWarning, match=r"prunes nothing of 'conv1.weight': it has only 3"):
        pruner.check(PolicyWindow.from_range(0, 1), parameters)


def test_magnitude_pruner_needs_to_know_how_much():
    with pytest.raises(ArgumentError, match="needs sparsity, a schedule or a pattern"):
        MagnitudePruner("p", "a.weight")


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(-4, 4), min_size=1, max_size=24),
    st.lists(st.integers(-4, 4), min_size=1, max_size=24),
    st.floats(0, 1),
)
def test_global_count_is_exact_and_nothing_smaller_survives(first, second, sparsity):
    model = Holder(a=torch.tensor([first]).float(), b=torch.tensor([second]).float())
    masks = decide(MagnitudePruner("p", "re:.*", sparsity=sparsity, scope="global"), model)
    total = len(first) + len(second)
    if int(sparsity * total) == 0:
        assert masks == {}
        return
    assert sum(zeros(mask) for mask in masks.values()) == int(sparsity * total)
    values = torch.cat([p.detach().abs().flatten() for p in model.parameters()])
    keep = torch.cat([mask.flatten() for mask in masks.values()]).bool()
    if keep.any() and (~keep).any():
        assert values[~keep].max() <= values[keep].min()


# -- AutomatedGradualPruner -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("window", "by_epoch"),
    [((0, 5, 2), {0: 5, 2: 75, 4: 85}), ((0, 6, 2), {0: 5, 2: 75, 4: 85}), ((10, 13, 1), {10: 5, 11: 75, 12: 85})],
)
def test_agp_prunes_by_the_cubic_curve(window, by_epoch):
    model = Holder(a=torch.arange(1.0, 101.0).reshape(10, 10))
    pruner = AutomatedGradualPruner("p", 0.05, 0.85, ["a.weight"])
    for epoch, pruned in by_epoch.items():
        mask = decide(pruner, model, epoch=epoch, window=window)["a.weight"]
        assert mask.flatten().tolist() == [0.0] * pruned + [1.0] * (100 - pruned)
    assert pruner.planned_sparsity("a.weight", PolicyWindow.from_range(*window)) == 0.85


def test_agp_takes_a_custom_rate():
    class Rate:
        def __init__(self, initial, final):
            self.between = (initial, final)

        def step(self, current_epoch, starting_epoch, ending_epoch, freq):
            assert (starting_epoch, ending_epoch, freq) == (0, 10, 3)
            return self.between[current_epoch > 5]

    pruner = AutomatedGradualPruner("p", 0.25, 0.5, "a.weight", Rate)
    model = Holder(a=WEIGHT)
    assert zeros(decide(pruner, model, epoch=3, window=(0, 10, 3))["a.weight"]) == 1
    assert zeros(decide(pruner, model, epoch=9, window=(0, 10, 3))["a.weight"]) == 2
    assert pruner.planned_sparsity("a.weight", PolicyWindow.from_range(0, 10, 3)) == 0.5


def test_agp_rate_class_agrees_with_the_schedule_over_any_window():
    for start, end, frequency in ((0, 5, 2), (0, 6, 2), (3, 20, 1), (1, 30, 4)):
        window = PolicyWindow.from_range(start, end, frequency)
        rate, curve = AgpPruningRate(0.1, 0.8), AGP(initial_sparsity=0.1, final_sparsity=0.8)
        for epoch in window.active_epochs():
            by_window = curve.target(window.progress(TrainPosition(epoch)))
            assert rate.step(epoch, start, end, frequency) == pytest.approx(by_window, abs=1e-12)
    assert AgpPruningRate(0.05, 0.85).step(2, 0, 5, 2) == pytest.approx(0.75)
    with pytest.raises(ArgumentError, match="two active epochs"):
        AgpPruningRate(0.05, 0.85).step(0, 0, 1, 1)


@pytest.mark.parametrize(
    ("arguments", "argument"),
    [
        ({"initial_sparsity": 0.5, "final_sparsity": 0.5, "weights": "a"}, ("final_sparsity",)),
        ({"initial_sparsity": -1, "final_sparsity": 0.5, "weights": "a"}, ("initial_sparsity",)),
        ({"final_sparsity": 0.5, "weights": "a"}, ("initial_sparsity",)),
        ({"initial_sparsity": 0, "weights": "a"}, ("final_sparsity",)),
        ({"initial_sparsity": 0, "final_sparsity": 0.5}, ("weights",)),
        ({"initial_sparsity": 0, "final_sparsity": 0.5, "weights": [3]}, ("weights", 0)),
    ],
)
def test_agp_arguments_are_checked(arguments, argument):
    with pytest.raises(ArgumentError) as caught:
        AutomatedGradualPruner("p", **arguments)
    assert caught.value.argument == argument


def test_agp_refuses_a_window_that_never_ends():
    parameters = ParameterIndex(Holder(a=WEIGHT))
    for factory in (None, AgpPruningRate):
        pruner = AutomatedGradualPruner("p", 0.05, 0.85, "a.weight", factory)
        pruner.bind(parameters)
        with pytest.raises(ArgumentError, match="ending_epoch") as caught:
            pruner.check(PolicyWindow.from_range(0, -1), parameters)
        assert caught.value.argument == ("ending_epoch",)


def test_b9_weights_given_as_a_string_are_exactly_that_parameter():
    model = nn_with_similar_names()
    pruner = AutomatedGradualPruner("p", 0.05, 0.5, "layer1.0.conv1.weight")
    assert decide(pruner, model, epoch=1, window=(0, 2, 1)).keys() == {"layer1.0.conv1.weight"}
    with pytest.raises(TargetError) as caught:
        AutomatedGradualPruner("p", 0.05, 0.5, "conv1.wei").bind(ParameterIndex(model))
    assert caught.value.argument == ("weights",)


def nn_with_similar_names():
    inner = torch.nn.Sequential(Holder(conv1=WEIGHT))
    model = Holder(conv1=WEIGHT)
    model.add_module("layer1", inner)
    return model


# -- DenseSparseDense -------------------------------------------------------------------------------------------------


def test_dsd_holds_one_mask_for_its_window():
    model = Holder(a=WEIGHT)
    ctx = context(model, epoch=0, window=(0, 3, 1))
    pruner = DenseSparseDense("p", ["a.weight"], sparsity=0.5)
    assert decide(pruner, model, ctx)["a.weight"].tolist() == [[0, 1, 1, 0]]
    with torch.no_grad():
        model.a.weight.copy_(torch.tensor([[0.9, 0.1, 0.2, 0.8]]))
    later = context(model, epoch=1, window=(0, 3, 1), masks=ctx.masks)
    assert decide(pruner, model, later) == {}
    assert pruner.releases_at_window_end and pruner.resets_optimizer_state
    assert pruner.planned_sparsity("a.weight", ctx.window) == 0.0
    ctx.masks.release(pruner.owner)
    assert decide(pruner, model, later)["a.weight"].tolist() == [[1, 0, 0, 1]]


def test_dsd_with_a_schedule_decides_every_time():
    model = Holder(a=WEIGHT)
    masks = MaskRegistry(ParameterIndex(model))
    pruner = DenseSparseDense("p", "a.weight", schedule=Linear(final_sparsity=0.75))
    counts = []
    for epoch in range(4):
        decide(pruner, model, context(model, epoch=epoch, window=(0, 4, 1), masks=masks))
        mask = masks["a.weight"].mask
        counts.append(0 if mask is None else zeros(mask))
    assert counts == [0, 1, 2, 3]
