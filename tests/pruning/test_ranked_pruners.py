"""Structures ranked by norm: filters, channels, rows, blocks; leaders, groups, patterns, Distiller's direct calls."""

import math

import pytest
import torch
from pruning_helpers import ConvNet, Holder, context, decide, filters_with, kept_filters

from distiller_ng.core.masker import ParameterMasker
from distiller_ng.core.masks import MaskRegistry, create_model_masks_dict
from distiller_ng.core.window import PolicyWindow
from distiller_ng.errors import ArgumentError, TargetError
from distiller_ng.names import ParameterIndex
from distiller_ng.ops.norms import l1_norm, max_norm
from distiller_ng.pruning import (
    L1RankedStructureParameterPruner,
    L2RankedStructureParameterPruner,
    LpRankedStructureParameterPruner,
)

L1, L2, LP = L1RankedStructureParameterPruner, L2RankedStructureParameterPruner, LpRankedStructureParameterPruner
TWO_CHANNELS = torch.tensor(
    [[[[11.0, 12], [13, 14]], [[15, 16], [17, 18]]], [[[21, 22], [23, 24]], [[25, 26], [27, 28]]]]
)


# -- what is ranked ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("group_type", ["Filters", "3D"])
def test_l1_prunes_the_filters_of_lowest_norm(group_type):
    model = Holder(a=filters_with(3, 1, 2, 4, channels=3, kernel=3))
    mask = decide(L1("p", group_type, 0.5, ["a.weight"]), model)["a.weight"]
    assert kept_filters(mask) == [0, 3]
    assert mask.shape == (4, 3, 3, 3) and set(mask.unique().tolist()) == {0.0, 1.0}


def test_l1_channels_are_dimension_one_and_rows_the_columns_of_the_stored_matrix():
    weight = torch.tensor([[1.0, 9.0, 2.0], [1.0, 9.0, 2.0]])
    for group_type in ("Channels", "Rows"):
        mask = decide(L1("p", group_type, 0.67, "a.weight"), Holder(a=weight))["a.weight"]
        assert mask.tolist() == [[0, 1, 0], [0, 1, 0]]


def test_row_pruning_removes_one_of_three():
    weight = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]])
    masks = {"fc": ParameterMasker("fc")}
    L1("p", group_type="Rows", desired_sparsity=0.5, weights="fc").set_param_mask(weight, "fc", masks, meta=None)
    assert masks["fc"].mask.tolist() == [[0, 1, 1]] * 3


def test_l2_and_max_rank_by_their_own_norm():
    # filter 0: L1 4, L2 4, max 4; filter 1: L1 6, L2 3.46, max 2
    weight = torch.tensor([[4.0, 0, 0], [2, 2, 2]])
    model = Holder(a=weight)
    assert kept_filters(decide(L1("p", "Filters", 0.5, "a.weight"), model)["a.weight"]) == [1]
    assert kept_filters(decide(L2("p", "Filters", 0.5, "a.weight"), model)["a.weight"]) == [0]
    for magnitude in ("max", max_norm):
        pruner = LP("p", "Filters", 0.5, "a.weight", magnitude_fn=magnitude)
        assert kept_filters(decide(pruner, model)["a.weight"]) == [0]


def test_lp_needs_a_magnitude():
    for bad in (None, "l3", 7):
        with pytest.raises(ArgumentError) as caught:
            LP("p", "Filters", 0.5, "a.weight", magnitude_fn=bad)
        assert caught.value.argument == ("magnitude_fn",)


def test_blocks_of_consecutive_channels():
    weight = torch.arange(1.0, 17.0).reshape(2, 8, 1, 1)  # four blocks of four: sums 10, 26, 42, 58
    pruner = L1("p", "Blocks", 0.5, "a.weight", kwargs={"block_shape": [1, 4, 1, 1]})
    mask = decide(pruner, Holder(a=weight))["a.weight"]
    assert mask.flatten().tolist() == [0] * 8 + [1] * 8


def test_blocks_rank_each_kernel_position_alone_and_repeat_over_filters():
    weight = torch.ones(2, 4, 1, 2)
    weight[0, :, 0, 1] = 0.1
    mask = decide(L1("p", "Blocks", 0.25, "a.weight", kwargs={"block_shape": [1, 4, 1, 1]}), Holder(a=weight))[
        "a.weight"
    ]
    assert (mask[0, :, 0, 1] == 0).all() and int(mask.sum()) == 12
    repeated = torch.ones(4, 2, 1, 1)
    repeated[:2, 0] = 0.1  # the same position of two consecutive filters
    pruner = L1("p", "Blocks", 0.25, "a.weight", kwargs={"block_shape": [2, 1, 1, 1]})
    mask = decide(pruner, Holder(a=repeated))["a.weight"]
    assert mask[:, :, 0, 0].tolist() == [[0, 1], [0, 1], [1, 1], [1, 1]]


def test_ranking_uses_the_folded_weights_where_there_are_any():
    model = Holder(a=filters_with(3, 1))
    ctx = context(model, ranking_weights={"a.weight": filters_with(1, 3)})
    assert kept_filters(decide(L1("p", "Filters", 0.5, "a.weight"), model, ctx)["a.weight"]) == [1]


# -- how many ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sparsity", "arguments", "kept"),
    [
        (0.1, {}, None),  # floor(0.8) = 0: no mask
        (0.3, {}, 6),
        (0.3, {"rounding_fn": "ceil"}, 5),
        (0.3, {"rounding_fn": math.ceil}, 5),
        (0.95, {"rounding_fn": "ceil"}, 1),  # never all
        (1.0, {}, 0),  # unless asked for
        (0.6, {"group_size": 4}, 4),
        (0.99, {"group_size": 4, "rounding_fn": "ceil"}, 4),
    ],
)
def test_number_of_pruned_filters(sparsity, arguments, kept):
    model = Holder(a=filters_with(1, 2, 3, 4, 5, 6, 7, 8))
    masks = decide(L1("p", "Filters", sparsity, "a.weight", **arguments), model)
    assert (len(kept_filters(masks["a.weight"])) if masks else None) == kept


def test_b11_groups_of_adjacent_filters_go_together():
    model = Holder(a=filters_with(1, 9, 2, 2, 8, 8))  # group means 5, 2, 8
    mask = decide(L1("p", "Filters", 0.5, "a.weight", group_size=2), model)["a.weight"]
    assert kept_filters(mask) == [0, 1, 4, 5]


def test_equal_structures_may_go_together_but_never_all():
    assert kept_filters(decide(L1("p", "3D", 0.25, "a.weight"), Holder(a=filters_with(1, 1, 1, 2)))["a.weight"]) == [3]
    assert kept_filters(decide(L1("p", "3D", 0.25, "a.weight"), Holder(a=filters_with(1, 1, 1, 1)))["a.weight"]) == [3]


def test_half_precision_magnitudes_are_summed_in_single():
    weight = torch.cat([torch.full((1, 64, 8, 8), 1.0), torch.full((1, 64, 8, 8), 1.0)]).bfloat16()
    weight[1, 0, 0, 0] = 1.5  # lost in a bfloat16 sum of 4096 ones
    mask = decide(L1("p", "Filters", 0.5, "a.weight"), Holder(a=weight))["a.weight"]
    assert kept_filters(mask) == [1] and mask.dtype == torch.bfloat16


# -- together ---------------------------------------------------------------------------------------------------------


def leaders():
    return Holder(a=filters_with(3, 1, 2, 4), b=filters_with(1, 9, 9, 1, channels=5), c=filters_with(1, 2, 3, 4))


def test_leader_decides_for_all_members():
    pruner = L1("p", "Filters", 0.5, ["a.weight", "b.weight"], group_dependency="Leader")
    masks = decide(pruner, leaders())
    assert {name: kept_filters(mask) for name, mask in masks.items()} == {"a.weight": [0, 3], "b.weight": [0, 3]}


def test_leader_map_is_kept_until_the_level_changes_and_is_saved():
    model = leaders()
    pruner = L1("p", "Filters", 0.5, ["a.weight", "b.weight"], group_dependency="Leader")
    decide(pruner, model)
    with torch.no_grad():
        model.a.weight.copy_(filters_with(1, 3, 4, 2))
    resumed = L1("p", "Filters", 0.5, ["a.weight", "b.weight"], group_dependency="Leader")
    resumed.load_state_dict(pruner.state_dict())
    for one in (pruner, resumed):
        assert kept_filters(decide(one, model)["b.weight"]) == [0, 3]
        one.levels = 0.25
        assert kept_filters(decide(one, model)["b.weight"]) == [1, 2, 3]


def test_leader_is_found_through_the_model_in_a_direct_call():
    model = leaders()
    pruner = L1("p", "Filters", 0.5, ["a.weight", "b.weight"], group_dependency="Leader")
    masks = {name: ParameterMasker(name) for name, _ in model.named_parameters()}
    pruner.set_param_mask(model.b.weight, "b.weight", masks, {"model": model})
    assert kept_filters(masks["b.weight"].mask) == [0, 3]
    with pytest.raises(TargetError):
        pruner.set_param_mask(model.b.weight, "b.weight", masks, None)


def test_leader_members_need_as_many_structures():
    model = Holder(a=filters_with(1, 2), b=filters_with(1, 2, 3))
    pruner = L1("p", "Filters", 0.5, ["a.weight", "b.weight"], group_dependency="Leader")
    with pytest.raises(TargetError, match="cannot follow its leader 'a.weight'") as caught:
        pruner.bind(ParameterIndex(model))
    assert caught.value.argument == ("weights", 1)


def test_leader_and_global_contradict_each_other():
    with pytest.raises(ArgumentError) as caught:
        L1("p", "Filters", 0.5, "a.weight", group_dependency="Leader", scope="global")
    assert caught.value.argument == ("scope",)
    with pytest.raises(ArgumentError) as caught:
        L1("p", "Filters", 0.5, "a.weight", group_dependency="leader")
    assert caught.value.argument == ("group_dependency",)


def test_global_ranks_all_filters_by_mean_magnitude():
    model = Holder(a=filters_with(1, 5, 6), b=filters_with(2, 3, 4, channels=50))
    masks = decide(L1("p", "Filters", 0.5, "re:.*", scope="global"), model)  # 1, 2 and 3
    assert {name: kept_filters(mask) for name, mask in masks.items()} == {"a.weight": [1, 2], "b.weight": [2]}


def test_global_never_empties_a_tensor():
    model = Holder(a=filters_with(0.1, 0.2), b=filters_with(7, 8, 9, 10))
    masks = decide(L1("p", "Filters", 0.99, "re:.*", scope="global"), model)
    assert {name: kept_filters(mask) for name, mask in masks.items()} == {"a.weight": [1], "b.weight": [3]}


def test_pattern_of_structures():
    model = Holder(a=filters_with(9, 8, 7, 6, 1, 2, 3, 4))
    alone = decide(L1("p", "Filters", None, "a.weight", pattern="2:4"), model)["a.weight"]
    assert kept_filters(alone) == [0, 1, 6, 7]
    with_level = decide(L1("p", "Filters", 0.25, "a.weight", pattern="2:4"), model)["a.weight"]
    assert kept_filters(with_level) == [0, 1, 2, 3, 6, 7]
    together = Holder(a=filters_with(9, 8, 7, 6), b=filters_with(1, 2, 3, 4))
    masks = decide(L1("p", "Filters", 0.5, "re:.*", scope="global", pattern="3:4"), together)
    # over their means: 1.2 1.07 0.93 0.8 and 0.4 0.8 1.2 1.6. The pattern drops 6 and 1; 2 and 7 are the lowest then
    assert {name: kept_filters(mask) for name, mask in masks.items()} == {"a.weight": [0, 1], "b.weight": [2, 3]}


def test_schedule_replaces_the_level():
    model = Holder(a=filters_with(1, 2, 3, 4))
    pruner = L1("p", "Filters", weights="a.weight", schedule={"class": "Linear", "final_sparsity": 0.75})
    kept = [decide(pruner, model, epoch=epoch, window=(0, 4, 1)).get("a.weight") for epoch in range(4)]
    assert kept[0] is None
    assert [kept_filters(mask) for mask in kept[1:]] == [[1, 2, 3], [2, 3], [3]]
    assert pruner.planned_sparsity("a.weight", PolicyWindow.from_range(0, 4)) == 0.75


def test_noise_multiplies_the_magnitudes_and_is_reproducible():
    model = Holder(a=filters_with(*range(1, 17)))
    quiet = decide(L1("p", "Filters", 0.5, "a.weight"), model)["a.weight"]
    torch.manual_seed(3)
    first = decide(L1("p", "Filters", 0.5, "a.weight", noise=1.0), model)["a.weight"]
    torch.manual_seed(3)
    assert torch.equal(first, decide(L1("p", "Filters", 0.5, "a.weight", noise=1.0), model)["a.weight"])
    assert not torch.equal(first, quiet)
    torch.manual_seed(3)
    torch.rand(())
    noisy = torch.arange(1.0, 17.0) * torch.randn(16)
    assert kept_filters(first) == sorted(noisy.argsort()[8:].tolist())


# -- checks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "argument"),
    [
        ({"group_type": "Cubes"}, ("group_type",)),
        ({"group_type": "Blocks"}, ("kwargs",)),
        ({"group_type": "Blocks", "kwargs": {"block": [1, 8, 1, 1]}}, ("kwargs", "block")),
        ({"group_type": "Blocks", "kwargs": {"block_shape": [1, 8, 1]}}, ("kwargs", "block_shape")),
        ({"group_type": "Blocks", "kwargs": {"block_shape": [1, 8, 3, 3]}}, ("kwargs", "block_shape")),
        ({"group_type": "Filters", "kwargs": {"block_shape": [1, 8, 1, 1]}}, ("kwargs",)),
        ({"group_type": "Filters", "group_size": 0}, ("group_size",)),
        ({"group_type": "Filters", "noise": 2}, ("noise",)),
        ({"group_type": "Filters", "rounding_fn": "up"}, ("rounding_fn",)),
        ({"group_type": "Filters", "desired_sparsity": 1.1}, ("desired_sparsity",)),
        ({"group_type": "Filters", "desired_sparsity": None}, ("desired_sparsity",)),
        ({"group_type": "Filters", "weights": []}, ("weights",)),
        ({"group_type": "Filters", "scope": "model"}, ("scope",)),
        ({"group_type": "Filters", "pattern": "4:2"}, ("pattern",)),
    ],
)
def test_ranked_arguments_are_checked(arguments, argument):
    with pytest.raises(ArgumentError) as caught:
        L1("p", **{"desired_sparsity": 0.5, "weights": ["a.weight"], **arguments})
    assert caught.value.argument == argument


@pytest.mark.parametrize(
    ("weights", "arguments", "argument"),
    [
        (["fc.weight", "conv1.weight"], {"group_type": "Rows"}, ("weights", 1)),
        ("conv1.bias", {"group_type": "Filters"}, ("weights",)),
        (["conv1.weight"], {"group_type": "Channels", "group_size": 2}, ("weights", 0)),
        (["conv1.weight"], {"group_type": "Blocks", "kwargs": {"block_shape": [1, 8, 1, 1]}}, ("weights", 0)),
    ],
)
def test_structures_must_exist_in_the_weight(weights, arguments, argument):
    with pytest.raises(TargetError) as caught:
        L1("p", desired_sparsity=0.5, weights=weights, **arguments).bind(ParameterIndex(ConvNet()))
    assert caught.value.argument == argument


# -- Distiller's direct calls -----------------------------------------------------------------------------------------


def test_rank_and_prune_channels_returns_the_binary_map():
    binary_map = L1.rank_and_prune_channels(0.5, TWO_CHANNELS)
    assert binary_map.tolist() == [0.0, 1.0]
    assert L1.rank_and_prune_channels(0.3, TWO_CHANNELS) is None


def test_rank_and_prune_writes_the_mask_and_expands_a_given_map():
    masks = {"w": ParameterMasker("w")}
    assert L1.rank_and_prune_filters(0.5, TWO_CHANNELS, "w", masks).tolist() == [0.0, 1.0]
    assert kept_filters(masks["w"].mask) == [1]
    given = torch.tensor([1.0, 0.0])
    assert L1.rank_and_prune_channels(0.5, TWO_CHANNELS, "w", masks, binary_map=given) is given
    assert masks["w"].mask[0, :, 0, 0].tolist() == [1, 0]


def test_rank_and_prune_variants():
    matrix = torch.tensor([[1.0, 9.0], [1.0, 9.0]])
    assert L1.rank_and_prune_rows(0.5, matrix).tolist() == [0.0, 1.0]
    blocks = torch.arange(1.0, 9.0).reshape(1, 8, 1, 1)
    assert L1.rank_and_prune_blocks(0.5, blocks, block_shape=[1, 4, 1, 1]).tolist() == [0.0, 1.0]
    grouped = filters_with(1, 9, 2, 2)
    assert L1.rank_and_prune_filters(0.5, grouped, group_size=2).tolist() == [1.0, 1.0, 0.0, 0.0]
    # L1 4 and 6, L2 4 and 3.46
    uneven = torch.tensor([[4.0, 0, 0], [2, 2, 2]]).reshape(2, 3, 1, 1)
    assert L1.rank_and_prune_filters(0.5, uneven).tolist() == [0.0, 1.0]
    assert L2.rank_and_prune_filters(0.5, uneven).tolist() == [1.0, 0.0]
    assert L2.rank_and_prune_filters(0.5, uneven, magnitude_fn=l1_norm).tolist() == [0.0, 1.0]


def test_set_param_mask_masks_only_when_applied():
    model = ConvNet()
    masks = create_model_masks_dict(model)
    before = model.conv2.weight.detach().clone()
    pruner = L1("p", group_type="Channels", desired_sparsity=0.3, weights="conv2.weight")
    pruner.set_param_mask(model.conv2.weight, "conv2.weight", masks, meta=None)
    pruner.set_param_mask(model.conv1.weight, "conv1.weight", masks, meta=None)
    assert isinstance(masks, MaskRegistry) and masks["conv1.weight"].mask is None
    zero_channels = int((masks["conv2.weight"].mask.sum(dim=(0, 2, 3)) == 0).sum())
    assert zero_channels == 1 and torch.equal(before, model.conv2.weight)
    masks["conv2.weight"].apply_mask(model.conv2.weight)
    assert int((model.conv2.weight.abs().sum(dim=(0, 2, 3)) == 0).sum()) == 1
