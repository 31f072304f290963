"""The *_AGP names: their parent's choice at the AGP level."""

import pytest
import torch
from pruning_helpers import Holder, context, decide, filters_with, kept_filters

import distiller_ng.pruning as pruning
from distiller_ng.core.window import PolicyWindow
from distiller_ng.errors import ArgumentError, ScheduleWarning
from distiller_ng.pruning import Constant

FILTERS = Holder(a=filters_with(*range(1, 17)))
WINDOW = (0, 3, 1)  # 0.05, 0.44375, 0.5 of 16 filters: 0, 7, 8


@pytest.mark.parametrize("norm", ["L1", "L2"])
def test_norm_rankers_lose_0_7_and_8_of_16_filters(norm):
    pruner = getattr(pruning, f"{norm}RankedStructureParameterPruner_AGP")("p", 0.05, 0.5, "Filters", ["a.weight"])
    assert decide(pruner, FILTERS, epoch=0, window=WINDOW) == {}
    assert kept_filters(decide(pruner, FILTERS, epoch=1, window=WINDOW)["a.weight"]) == list(range(7, 16))
    assert kept_filters(decide(pruner, FILTERS, epoch=2, window=WINDOW)["a.weight"]) == list(range(8, 16))
    assert pruner.planned_sparsity("a.weight", PolicyWindow.from_range(*WINDOW)) == 0.5


def test_l2_agp_ranks_by_l2():
    uneven = Holder(a=torch.tensor([[4.0, 0, 0], [2, 2, 2]]))  # L1 4 and 6, L2 4 and 3.46
    kept = {
        norm: kept_filters(
            decide(
                getattr(pruning, f"{norm}RankedStructureParameterPruner_AGP")("p", 0, 0.5, "3D", "a.weight"), uneven
            )["a.weight"]
        )
        for norm in ("L1", "L2")
    }
    assert kept == {"L1": [1], "L2": [0]}


def test_agp_of_blocks_and_rows():
    blocks = Holder(a=torch.arange(1.0, 17.0).reshape(2, 8, 1, 1))
    pruner = pruning.L1RankedStructureParameterPruner_AGP(
        "p", 0.05, 0.5, "Blocks", ["a.weight"], kwargs={"block_shape": [1, 4, 1, 1]}
    )
    assert int((decide(pruner, blocks, epoch=2, window=WINDOW)["a.weight"] == 0).sum()) == 8
    rows = pruning.L1RankedStructureParameterPruner_AGP("p", 0.05, 0.5, "Rows", ["a.weight"])
    matrix = Holder(a=torch.tensor([[1.0, 2.0], [1.0, 2.0]]))
    assert decide(rows, matrix, epoch=2, window=WINDOW)["a.weight"].tolist() == [[0, 1], [0, 1]]


def test_gradient_agp_follows_the_scores():
    model = Holder(a=torch.ones(16, 2))
    model.a.weight.grad = torch.arange(16.0).reshape(16, 1).expand(16, 2).clone()
    pruner = pruning.GradientRankedFilterPruner_AGP("p", 0.05, 0.5, "Filters", "a.weight")
    assert kept_filters(decide(pruner, model, epoch=1, window=WINDOW)["a.weight"]) == list(range(7, 16))


def test_random_agp_has_the_exact_count():
    pruner = pruning.RandomRankedFilterPruner_AGP("p", 0.05, 0.5, "Filters", "a.weight")
    assert len(kept_filters(decide(pruner, FILTERS, epoch=1, window=WINDOW)["a.weight"])) == 9


def test_bernoulli_agp_drops_at_the_scheduled_rate():
    torch.manual_seed(0)
    pruner = pruning.BernoulliFilterPruner_AGP("p", 0.05, 0.5, "Filters", "a.weight")
    model = Holder(a=filters_with(*range(1, 101)))
    kept = [len(kept_filters(decide(pruner, model, epoch=1, window=WINDOW)["a.weight"])) for _ in range(40)]
    assert sum(kept) / 40 == pytest.approx(55.6, abs=2.5)
    assert not pruner.binary_masks


@pytest.mark.parametrize("criterion", ["APoZ", "Mean"])
def test_activation_agp_follows_its_statistic(criterion):
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 1, bias=False), torch.nn.ReLU())
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([1.0, -1.0, 3.0, 2.0]).reshape(4, 1, 1, 1))
    pruner = getattr(pruning, f"Activation{criterion}RankedFilterPruner_AGP")("p", 0.05, 0.5, "Filters", "0.weight")
    with pruner.observing(model.eval()):
        model(torch.tensor([1.0, 1.0, -0.5, 1.0]).reshape(1, 1, 2, 2))
    masks = decide(pruner, model, epoch=3, window=(1, 4, 1))
    # mean activations 0.75, 0.125, 2.25, 1.5; zeros 25, 75, 25, 25 %: the first of equal ones goes too
    assert kept_filters(masks["0.weight"]) == [2, 3]


@pytest.mark.parametrize("name", [n for n in pruning.__all__ if n.endswith("Filter" + "Pruner_AGP")])
def test_filter_agp_refuses_other_structures(name):
    with pytest.raises(ArgumentError) as caught:
        getattr(pruning, name)("p", 0.05, 0.5, "Channels", "a.weight")
    assert caught.value.argument == ("group_type",)


@pytest.mark.parametrize("name", [n for n in pruning.__all__ if n.endswith("_AGP")])
def test_agp_sparsities_are_checked_and_a_schedule_wins_over_them(name):
    cls = getattr(pruning, name)
    with pytest.raises(ArgumentError) as caught:
        cls("p", 0.5, 0.05, "Filters", "a.weight")
    assert caught.value.argument == ("final_sparsity",)
    with pytest.raises(ArgumentError) as caught:
        cls("p", group_type="Filters", weights="a.weight")
    assert caught.value.argument == ("initial_sparsity",)
    with pytest.warns(ScheduleWarning, match="schedule replaces the AGP curve"):
        pruner = cls("p", 0.05, 0.5, "Filters", "a.weight", schedule=Constant(0.25))
    assert pruner.level("a.weight", context(FILTERS, epoch=1, window=(1, 4, 1))) == 0.25
