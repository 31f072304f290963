"""Random pruners: exact counts, their laws, reproducibility; on the CPU (Distiller's needed CUDA)."""

import pytest
import torch
from pruning_helpers import Holder, context, decide, filters_with, kept_filters

from distiller_ng.core.window import PolicyWindow
from distiller_ng.errors import ArgumentError
from distiller_ng.pruning import BernoulliFilterPruner, RandomLevelStructureParameterPruner, RandomRankedFilterPruner


def sixteen():
    return Holder(a=filters_with(*range(1, 17)), b=filters_with(*range(1, 17)))


# -- RandomRankedFilterPruner -----------------------------------------------------------------------------------------


def test_b8_random_filters_exact_count_and_anew_each_time():
    pruner = RandomRankedFilterPruner("p", "Filters", 0.3, "a.weight")
    model = sixteen()
    drawn = [tuple(kept_filters(decide(pruner, model)["a.weight"])) for _ in range(20)]
    assert {len(kept) for kept in drawn} == {12}  # 16 - int(4.8)
    assert len(set(drawn)) > 10


def test_random_filters_are_uniform():
    torch.manual_seed(1)
    model = Holder(a=filters_with(1, 2, 3, 4))
    pruner = RandomRankedFilterPruner("p", "3D", 0.5, "a.weight")
    counts = torch.zeros(4)
    for _ in range(400):
        counts[kept_filters(decide(pruner, model)["a.weight"])] += 1
    assert ((counts / 400 - 0.5).abs() < 0.1).all()


def test_random_filters_follow_their_leader_and_share_a_global_count():
    led = decide(RandomRankedFilterPruner("p", "Filters", 0.5, "re:.*", "Leader"), sixteen())
    assert torch.equal(led["a.weight"], led["b.weight"])
    masks = decide(RandomRankedFilterPruner("p", "Filters", 0.5, "re:.*", scope="global"), sixteen())
    assert sum(len(kept_filters(mask)) for mask in masks.values()) == 16


# -- RandomLevelStructureParameterPruner ------------------------------------------------------------------------------


def test_random_level_prunes_the_lowest_to_a_drawn_level():
    torch.manual_seed(5)
    levels = [0.25 + 0.5 * float(torch.rand(())) for _ in range(12)]
    torch.manual_seed(5)
    pruner = RandomLevelStructureParameterPruner("p", "Filters", [0.25, 0.75], ["a.weight"])
    model = sixteen()
    for level in levels:
        assert kept_filters(decide(pruner, model)["a.weight"]) == list(range(int(level * 16), 16))
    assert pruner.planned_sparsity("a.weight", PolicyWindow.from_range(0, 3)) is None


def test_random_level_draws_for_each_tensor_but_once_for_a_leader_group():
    torch.manual_seed(2)
    alone = RandomLevelStructureParameterPruner("p", "Filters", [0, 1], "re:.*")
    led = RandomLevelStructureParameterPruner("p", "Filters", [0, 1], "re:.*", "Leader")
    different = [not torch.equal(*decide(alone, sixteen()).values()) for _ in range(5)]
    same = [torch.equal(*decide(led, sixteen()).values()) for _ in range(5)]
    assert any(different) and all(same)


def test_random_level_always_gives_a_mask_and_a_schedule_replaces_the_draw():
    none = RandomLevelStructureParameterPruner("p", "Filters", [0.0, 0.0], "a.weight")
    assert decide(none, sixteen())["a.weight"].eq(1).all()
    planned = RandomLevelStructureParameterPruner(
        "p", "Filters", weights="a.weight", schedule={"class": "Constant", "sparsity": 0.5}
    )
    assert kept_filters(decide(planned, sixteen())["a.weight"]) == list(range(8, 16))


@pytest.mark.parametrize("sparsity_range", [[0.5, 0.2], [0.1], 0.3, [-0.1, 0.5], "ab", None])
def test_random_level_range_is_checked(sparsity_range):
    with pytest.raises(ArgumentError) as caught:
        RandomLevelStructureParameterPruner("p", "Filters", sparsity_range, "a.weight")
    assert caught.value.argument[0] == "sparsity_range"


# -- BernoulliFilterPruner --------------------------------------------------------------------------------------------


def test_b7_bernoulli_masks_are_rescaled():
    torch.manual_seed(4)
    keep = torch.bernoulli(torch.full((16,), 0.5))
    torch.manual_seed(4)
    mask = decide(BernoulliFilterPruner("p", "Filters", 0.5, "a.weight"), sixteen())["a.weight"]
    assert torch.equal(mask[:, 0, 0, 0], keep * 16 / keep.sum())
    assert not BernoulliFilterPruner.binary_masks


@pytest.mark.parametrize("level", [0.99, 1.0])
def test_b7_bernoulli_never_drops_every_filter(level):
    pruner = BernoulliFilterPruner("p", "Filters", level, "a.weight")
    model = Holder(a=filters_with(1, 2, 3))
    survivors = set()
    for _ in range(60):
        mask = decide(pruner, model)["a.weight"]
        assert torch.isfinite(mask).all()
        assert float(mask[:, 0, 0, 0].sum()) == pytest.approx(3)
        survivors.add(tuple(kept_filters(mask)))
    assert {(0,), (1,), (2,)} <= survivors


def test_bernoulli_rate_is_the_level():
    torch.manual_seed(0)
    model = Holder(a=filters_with(*range(1, 101)))
    pruner = BernoulliFilterPruner("p", "Filters", 0.2, "a.weight")
    kept = [len(kept_filters(decide(pruner, model)["a.weight"])) for _ in range(50)]
    assert sum(kept) / 50 == pytest.approx(80, abs=2)
    assert min(kept) < 80 < max(kept)


def test_bernoulli_leader_draws_once_and_anew_each_time():
    pruner = BernoulliFilterPruner("p", "Filters", 0.5, "re:.*", "Leader")
    draws = []
    for _ in range(5):
        masks = decide(pruner, sixteen())
        assert torch.equal(masks["a.weight"], masks["b.weight"])
        draws.append(tuple(kept_filters(masks["a.weight"])))
    assert len(set(draws)) > 1


def test_bernoulli_global_scope_scales_all_tensors_by_one_factor():
    torch.manual_seed(0)
    masks = decide(BernoulliFilterPruner("p", "Filters", 0.5, "re:.*", scope="global"), sixteen())
    kept = sum(len(kept_filters(mask)) for mask in masks.values())
    assert [float(mask.max()) for mask in masks.values()] == pytest.approx([32 / kept] * 2)


def test_bernoulli_pattern_takes_from_each_group_first():
    torch.manual_seed(0)
    pruner = BernoulliFilterPruner("p", "Filters", None, "a.weight", pattern="1:4")
    mask = decide(pruner, sixteen())["a.weight"]
    assert mask[:, 0, 0, 0].reshape(4, 4).count_nonzero(dim=1).tolist() == [1, 1, 1, 1]
    assert float(mask.max()) == 4.0


def test_bernoulli_schedule_replaces_the_level():
    pruner = BernoulliFilterPruner(
        "p", "Filters", weights="a.weight", schedule={"class": "Linear", "final_sparsity": 1}
    )
    model = sixteen()
    assert decide(pruner, model, context(model, epoch=0, window=(0, 3, 1)))["a.weight"].eq(1).all()
    assert len(kept_filters(decide(pruner, model, context(model, epoch=2, window=(0, 3, 1)))["a.weight"])) == 1
