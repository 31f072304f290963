"""GroupPruner: whole groups, levels and budgets, caps and widths, schedules, repeated thinning, resume."""

import logging

import pytest
import torch
from group_models import Concat, Residual, Separable
from pruning_helpers import context, decide
from torch import nn

from distiller_ng.core.masks import MaskRegistry
from distiller_ng.core.window import PolicyWindow
from distiller_ng.errors import ArgumentError, CalibrationError, GraphError, ScheduleWarning, TargetError
from distiller_ng.graph.changes import record_change
from distiller_ng.graph.cost import MacsCost, ParamsCost
from distiller_ng.graph.dependency import DependencyGraph
from distiller_ng.models import create_model
from distiller_ng.names import ParameterIndex
from distiller_ng.pruning import GroupPruner


class Sized(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.one, self.two = nn.Linear(4, width), nn.Linear(width, 3)

    def forward(self, x):
        return self.two(self.one(x).relu())


INPUTS = {Residual: (1, 2, 6, 6), Concat: (1, 2, 6, 6), Separable: (1, 3, 12, 12), Sized: (1, 4)}


def dead(mask, dim=0):
    others = [d for d in range(mask.dim()) if d != dim]
    return ((mask == 0).all(dim=others) if others else mask == 0).nonzero().flatten().tolist()


def masks_of(model, *, where=None, **arguments):
    pruner = GroupPruner("p", **arguments)
    inputs = torch.zeros(INPUTS[type(model)]) if type(model) in INPUTS else torch.zeros(1, 3, 32, 32)
    return pruner, decide(pruner, model, context(model, inputs=inputs, **(where or {})))


def cost_without(model, masks, cost, inputs):
    """What the cost model says of the channels that the masks of filters drop."""
    graph = DependencyGraph.trace(model, inputs)
    removed = set()
    for (tensor, dim), channels in graph.axes.items():
        if tensor in masks and graph.feeds(tensor, dim):
            removed |= {int(channels[i]) for i in dead(masks[tensor], dim)}
    return cost.of(graph, removed) / cost.of(graph)


def test_the_lowest_groups_go_whole():
    model = Residual()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
        model.a.weight[1] = 0.1  # 2 entries
        model.b.weight[2] = 0.1  # 36 entries: this channel's group is smaller by far
        model.c.bias[4] = -5.0
        model.c.weight[4] = 0.0  # 4 entries: smaller weights, a larger group
        model.c.weight[0] = 0.9
    _, masks = masks_of(model, weights=["a.weight", "c.weight"], sparsity=0.25)
    # Channel 2 loses 36 * 0.9 where channel 1 loses 2 * 0.9; of c, filter 0 has 4 * 0.9 + 1 + 3, the 4th 0 + 5 + 3.
    assert dead(masks["a.weight"]) == dead(masks["b.weight"]) == dead(masks["a.bias"]) == [2]
    assert dead(masks["bn.weight"]) == dead(masks["bn.bias"]) == [2]
    assert dead(masks["b.weight"], 1) == dead(masks["c.weight"], 1) == [2]
    assert dead(masks["c.weight"]) == dead(masks["c.bias"]) == dead(masks["fc.weight"], 1) == [0]
    assert "fc.bias" not in masks


def test_channels_are_the_inputs_of_the_named_weights():
    model = Concat()
    _, masks = masks_of(model, weights=["after.weight"], group_type="Channels", sparsity=0.5)
    assert len(dead(masks["left.weight"])) == 2 and len(dead(masks["right.weight"])) == 4
    assert len(dead(masks["after.weight"], 1)) == 6 and "after.bias" not in masks


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("importance", ["l1", "random"])
@pytest.mark.parametrize("target", [{"macs": 0.5}, {"params": 0.3}, {"macs": 0.7, "params": 0.4}], ids=str)
def test_budgets_are_met_within_two_percent(scope, importance, target):
    for model, inputs in ((Separable(), torch.zeros(1, 3, 12, 12)), (RESNET(), torch.zeros(1, 3, 32, 32))):
        pruner, masks = masks_of(model, importance=importance, target=target, scope=scope)
        costs = {"macs": MacsCost(), "params": ParamsCost()}
        shares = {budget: cost_without(model, masks, costs[budget], inputs) for budget in target}
        assert shares == pytest.approx(pruner.achieved)
        assert all(shares[budget] <= share for budget, share in target.items())
        assert max(shares[budget] / share for budget, share in target.items()) >= 0.98


def RESNET():
    return create_model(False, "cifar10", "resnet20_cifar")


def test_budgets_count_what_would_really_remain():
    class Plain(nn.Module):
        def __init__(self, a, b):
            super().__init__()
            self.one, self.two = nn.Conv2d(3, a, 3), nn.Conv2d(a, b, 3)
            self.fc = nn.Linear(b, 5)

        def forward(self, x):
            return self.fc(self.two(self.one(x).relu()).relu().mean(dim=(2, 3)))

    model = Plain(16, 32)
    pruner = GroupPruner("p", target={"params": 0.4})
    masks = decide(pruner, model, context(model, inputs=torch.zeros(1, 3, 8, 8)))
    small = Plain(16 - len(dead(masks["one.weight"])), 32 - len(dead(masks["two.weight"])))
    sizes = [sum(p.numel() for p in m.parameters()) for m in (small, model)]
    assert sizes[0] / sizes[1] == pytest.approx(pruner.achieved["params"])
    assert 0.392 <= sizes[0] / sizes[1] <= 0.4


def test_a_latency_model_is_asked_and_without_one_macs_are_taken(caplog):
    class Filters:
        name = "latency"

        def of(self, graph, removed=frozenset()):
            return 10.0 - len(removed)  # Residual has 10 removable channels

    pruner, _ = masks_of(Residual(), target={"latency": 0.7}, latency_model=Filters())
    assert pruner.achieved == {"latency": 0.7}
    with caplog.at_level(logging.WARNING):
        pruner, _ = masks_of(Separable(), target={"latency": 0.6})
    assert 0.58 <= pruner.achieved["latency"] <= 0.6
    assert "taken as one for MACs" in caplog.text


def test_global_scope_ranks_layers_together_and_caps_hold():
    model = Separable()
    with torch.no_grad():
        model.blocks[0][3].weight[:28] *= 1e-3  # most of one layer is all but dead
        model.blocks[1][0].weight[:28] *= 1e-3
        model.blocks[1][3].weight[:, :28] *= 1e-3
    name = "blocks.0.3.weight"
    _, masks = masks_of(model, sparsity=0.2, scope="global", max_layer_sparsity=1.0)
    assert len(dead(masks[name])) >= 20
    for caps in (0.5, {name: 0.5, "*": 0.9}, {"re:blocks.0.*": 0.5}):
        _, masks = masks_of(model, sparsity=0.2, scope="global", max_layer_sparsity=caps)
        assert len(dead(masks[name])) == 16
        assert sum(len(dead(mask)) for key, mask in masks.items() if mask.dim() == 4 and mask.shape[1] > 1) == 28


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_widths_are_rounded(scope):
    model = RESNET()
    pruner, masks = masks_of(model, target={"macs": 0.5}, round_to=8, scope=scope, importance="random")
    widths = {name: mask.shape[0] - len(dead(mask)) for name, mask in masks.items() if mask.dim() == 4}
    assert widths and all(width % 8 == 0 and width >= 8 for width in widths.values())
    assert 0.4 < pruner.achieved["macs"] <= 0.5
    _, masks = masks_of(Residual(), sparsity=0.5, round_to=8)  # layers of 4 and 6 have no smaller multiple of 8
    assert not any(dead(mask) for mask in masks.values())
    _, masks = masks_of(Residual(), sparsity=0.5, round_to=4)
    assert len(dead(masks["c.weight"])) == 2 and dead(masks["a.weight"]) == []


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_no_layer_is_emptied():
    for scope in ("layer", "global"):
        _, masks = masks_of(Residual(), sparsity=1.0, scope=scope, max_layer_sparsity=1.0)
        assert len(dead(masks["a.weight"])) == 3 and len(dead(masks["c.weight"])) == 5


def test_a_schedule_ramps_the_sparsity_or_the_budget():
    curve = {"class": "AGP", "initial_sparsity": 0.0, "final_sparsity": 0.8}
    counts, shares = [], []
    model, sparse = Separable(), GroupPruner("s", schedule=curve)
    budget = GroupPruner("b", target={"macs": 0.4}, schedule=curve)
    before = set()
    for epoch in range(3):
        where = {"epoch": epoch, "window": (0, 3, 1), "inputs": torch.zeros(1, 3, 12, 12)}
        masks = decide(sparse, model, context(model, **where))
        gone = set(dead(masks["blocks.0.3.weight"]))
        assert before <= gone
        before = gone
        counts.append(len(gone))
        decide(budget, model, context(model, **where))
        shares.append(budget.achieved["macs"])
    assert counts == [0, int(0.7 * 32), int(0.8 * 32)]
    # 0, 0.7 and 0.8 of the curve are 0, 7/8 and all of the way to the target.
    assert shares == pytest.approx([1.0, 1 - 0.6 * 7 / 8, 0.4], rel=0.02)


def test_masked_channels_stay_masked_whatever_their_score():
    model = Separable()
    pruner = GroupPruner("p", importance="random", schedule={"class": "Linear", "final_sparsity": 0.6})
    masks, inputs, before = MaskRegistry(ParameterIndex(model)), torch.zeros(1, 3, 12, 12), set()
    for epoch in range(4):
        decided = decide(pruner, model, context(model, epoch=epoch, window=(0, 4, 1), masks=masks, inputs=inputs))
        gone = set(dead(decided["blocks.2.3.weight"]))
        assert before <= gone and len(gone) == int(epoch * 0.2 * 64 + 1e-9)
        before = gone


@pytest.mark.parametrize("arguments", [{"sparsity": 0.5}, {"target": {"params": 0.5}}], ids=str)
def test_pruning_after_thinning_is_relative_to_the_original_size(arguments):
    pruner = GroupPruner("p", "one.weight", **arguments)
    inputs = torch.zeros(1, 4)
    model = Sized(20)
    masks = decide(pruner, model, context(model, inputs=inputs))
    assert len(dead(masks["one.weight"])) == 10  # a budget may be missed by 2 %: eleven would end 4 % below it
    small = Sized(12)  # as if eight of them had been removed
    resumed = GroupPruner("p", "one.weight", **arguments)
    resumed.load_state_dict(pruner.state_dict())
    for later in (pruner, resumed):
        masks = decide(later, small, context(small, inputs=inputs))
        assert len(dead(masks["one.weight"])) == 2
    smallest = Sized(5)  # already below the level: nothing more goes
    masks = decide(pruner, smallest, context(smallest, inputs=inputs))
    assert dead(masks["one.weight"]) == []


def test_levels_of_a_policy_replace_the_sparsity():
    model = Residual()
    pruner = GroupPruner("p", sparsity=0.5)
    pruner.levels = {"c.weight": 0.2, "*": 0.0}
    masks = decide(pruner, model, context(model, inputs=torch.zeros(1, 2, 6, 6)))
    assert len(dead(masks["c.weight"])) == 1 and dead(masks["a.weight"]) == []
    with pytest.raises(ArgumentError, match="'levels' says nothing"):
        GroupPruner("p", target={"macs": 0.5}).levels = 0.5


def test_patterns_drop_of_consecutive_channels():
    model = Residual()
    _, masks = masks_of(model, pattern="1:2")
    for name, pairs in (("a.weight", 2), ("c.weight", 3)):
        gone = dead(masks[name])
        assert len(gone) == pairs and {i // 2 for i in gone} == set(range(pairs))


def test_tied_and_frozen_targets_say_why():
    with pytest.raises(GraphError, match="'fc.weight' cannot be pruned: .*output"):
        masks_of(Residual(), weights=["fc.weight"], sparsity=0.5)
    with pytest.raises(GraphError, match="no targeted weight has channels that can be removed: fc.weight"):
        masks_of(Residual(), weights=["re:fc.*"], sparsity=0.5)
    with pytest.raises(GraphError, match="'a.weight'"):  # its inputs are the model's
        masks_of(Residual(), weights=["a.weight"], group_type="Channels", sparsity=0.5)
    with pytest.raises(TargetError, match="no parameter"):
        masks_of(Residual(), weights=["nothing.weight"], sparsity=0.5)
    with pytest.raises(GraphError, match="example inputs"):
        model = Residual()
        decide(GroupPruner("p", sparsity=0.5), model, context(model))


def test_a_budget_out_of_reach_is_refused_before_anything_is_masked():
    with pytest.raises(ArgumentError, match=r"cannot reach macs: 0.1: .* remains") as caught:
        masks_of(Separable(), weights=["blocks.0.3.weight"], target={"macs": 0.1})
    assert caught.value.argument == ("target", "macs")


@pytest.mark.parametrize(
    ("arguments", "place"),
    [
        ({}, ("sparsity",)),
        ({"sparsity": 1.5}, ("sparsity",)),
        ({"sparsity": 0.5, "target": {"macs": 0.5}}, ("target",)),
        ({"target": {}}, ("target",)),
        ({"target": 0.5}, ("target",)),
        ({"target": {"flops": 0.5}}, ("target", "flops")),
        ({"target": {"macs": 0}}, ("target", "macs")),
        ({"target": {"macs": "half"}}, ("target", "macs")),
        ({"sparsity": 0.5, "round_to": 0}, ("round_to",)),
        ({"sparsity": 0.5, "round_to": 2.0}, ("round_to",)),
        ({"sparsity": 0.5, "max_layer_sparsity": 2}, ("max_layer_sparsity",)),
        ({"sparsity": 0.5, "max_layer_sparsity": {"a.weight": -1}}, ("max_layer_sparsity", "a.weight")),
        ({"sparsity": 0.5, "importance": "l3"}, ("importance",)),
        ({"sparsity": 0.5, "importance": {"class": "l1", "power": 2}}, ("importance", "power")),
        ({"sparsity": 0.5, "importance": {"class": "l1", "aggregate": "min"}}, ("importance", "aggregate")),
        ({"sparsity": 0.5, "importance": {"aggregate": "max"}}, ("importance",)),
        ({"sparsity": 0.5, "group_type": "Rows"}, ("group_type",)),
        ({"sparsity": 0.5, "weights": []}, ("weights",)),
        ({"target": {"macs": 0.5}, "schedule": {"class": "Constant", "sparsity": 0.0}}, ("schedule",)),
    ],
    ids=str,
)
def test_arguments_are_checked(arguments, place):
    with pytest.raises(ArgumentError) as caught:
        GroupPruner("p", **arguments)
    assert caught.value.argument == place


def test_a_global_sparsity_above_the_caps_is_told():
    with pytest.warns(ScheduleWarning, match="only 8 of 9 channels can go: max_layer_sparsity"):
        masks_of(Residual(), sparsity=0.95, scope="global")


def test_patterns_leave_out_what_the_importance_cannot_score_and_names_refuse_it():
    model = Residual()
    _, masks = masks_of(model, importance="bn_scale", sparsity=0.5)
    assert len(dead(masks["a.weight"])) == 2 and dead(masks["c.weight"]) == []
    with pytest.raises(GraphError, match="no norm with a scale stands behind 'c.weight'"):
        masks_of(model, weights=["a.weight", "c.weight"], importance="bn_scale", sparsity=0.5)
    with pytest.raises(GraphError, match="no norm with a scale"):
        masks_of(Concat(), importance="bn_scale", sparsity=0.5)


def test_layers_that_do_not_train_have_no_gradients_to_rank_by():
    model = Residual()
    model.c.requires_grad_(False)
    model.fc.requires_grad_(False)
    model(torch.randn(2, 2, 6, 6)).sum().backward()
    with pytest.raises(CalibrationError, match="nothing of the channels of 'c.weight'.*gradients"):
        masks_of(model, importance="taylor", sparsity=0.5, where={"epoch": 1, "window": (1, 3, 1)})
    masks_of(model, weights=["a.weight"], importance="taylor", sparsity=0.5)


def test_recorded_removals_count_as_removed():
    """A model that was thinned before this pruner saw it: the record of it says what the original width was."""
    model = Sized(12)
    record_change(model, "thinning", {"cuts": [["one.weight", 0, list(range(8)), 20]]}, {})
    _, masks = masks_of(model, weights=["one.weight"], sparsity=0.5)
    assert len(dead(masks["one.weight"])) == 2


def test_single_numbers_found_by_a_pattern_are_left_out():
    model = Residual()
    model.temperature = nn.Parameter(torch.tensor(1.0))
    _, masks = masks_of(model, weights="__ALL__", sparsity=0.5)
    assert "temperature" not in masks and len(dead(masks["c.weight"])) == 3
    with pytest.raises(TargetError, match="single number"):
        masks_of(model, weights="temperature", sparsity=0.5)


def test_unmatched_caps_are_refused():
    with pytest.raises(TargetError) as caught:
        masks_of(Residual(), sparsity=0.5, max_layer_sparsity={"conv9.weight": 0.5})
    assert caught.value.argument == ("max_layer_sparsity", "conv9.weight")


def test_importances_that_look_at_data_refuse_epoch_zero_alone():
    model = Residual()
    pruner = GroupPruner("p", importance="taylor", sparsity=0.5)
    pruner.bind(ParameterIndex(model))
    assert pruner.observes and not GroupPruner("p", sparsity=0.5).observes
    with pytest.raises(ArgumentError, match="epoch 1 or later"):
        pruner.check(PolicyWindow.from_epochs([0]), ParameterIndex(model))
    with pytest.warns(ScheduleWarning, match="nothing is pruned there"):
        pruner.check(PolicyWindow.from_range(0, 3, 1), ParameterIndex(model))
