"""Gradual pruning as recipes write it: curves, rounding, levels by target, and where a curve starts."""

import pytest
import torch
from pruning_helpers import Holder, context, decide
from torch import nn

from distiller_ng.core.masks import MaskRegistry
from distiller_ng.core.window import PolicyWindow
from distiller_ng.errors import ArgumentError, ScheduleWarning, TargetError
from distiller_ng.names import ParameterIndex
from distiller_ng.pruning import MagnitudePruner
from distiller_ng.pruning.sparsity_schedules.curves import interpolate

WINDOW = (0.25, 4.25, 1)


def gradual(**settings):
    if not isinstance(settings.get("final_sparsity"), dict):
        settings.setdefault("weights", "re:.*weight")
    return MagnitudePruner("p", **{"init_sparsity": 0.05, "final_sparsity": 0.85, **settings})


def levels_of(pruner, model, epochs, *, window=WINDOW):
    """What is really zero in each epoch's mask, by parameter."""
    masks = MaskRegistry(ParameterIndex(model))
    found = []
    for epoch in epochs:
        ctx = context(
            model, epoch=int(epoch), minibatch=round(epoch % 1 * 4), minibatches=4, window=window, masks=masks
        )
        found.append({name: float((mask == 0).float().mean()) for name, mask in decide(pruner, model, ctx).items()})
    return found


@pytest.mark.parametrize(
    ("curve", "expected"),
    [
        ("cubic", [0.05, 0.5125, 0.75, 0.8375, 0.85]),
        ("linear", [0.05, 0.25, 0.45, 0.65, 0.85]),
        ("inverse_cubic", [0.05, 0.1238, 0.215, 0.3462, 0.85]),
    ],
)
def test_curves_by_quarters(curve, expected):
    torch.manual_seed(0)
    exact = [interpolate(0.05, 0.85, x / 4, curve) for x in range(5)]
    if curve != "inverse_cubic":
        assert exact == pytest.approx(expected, abs=1e-12)
    model = Holder(a=torch.randn(100, 100))
    reached = levels_of(gradual(inter_func=curve), model, [0.25, 1.25, 2.25, 3.25, 4.25])
    assert [row["a.weight"] for row in reached] == pytest.approx([round(1e4 * level) / 1e4 for level in exact])


def test_levels_round_to_the_nearest_weight():
    model = Holder(a=torch.arange(1.0, 8.0).reshape(1, 7))
    last = levels_of(gradual(final_sparsity=0.8), model, [4.25])[0]  # 5.6 of 7
    assert last["a.weight"] == pytest.approx(6 / 7)
    assert float((decide(MagnitudePruner("q", "a.weight", sparsity=0.8), model)["a.weight"] == 0).sum()) == 5


def test_a_map_of_final_sparsities_gives_each_target_its_own_and_the_first_wins():
    model = Holder(a=torch.rand(10, 10), b=torch.rand(10, 10), c=torch.rand(10, 10))
    pruner = gradual(final_sparsity={0.6: ["a.weight"], "0.8": "re:[ab].weight"})
    assert levels_of(pruner, model, [4.25]) == [{"a.weight": pytest.approx(0.6), "b.weight": pytest.approx(0.8)}]
    window = PolicyWindow.from_range(*WINDOW)
    assert {name: pruner.planned_sparsity(name, window) for name in pruner.names} == {"a.weight": 0.6, "b.weight": 0.8}
    with pytest.raises(TargetError) as caught:
        gradual(final_sparsity={0.6: ["a.weight", "d.weight"]}).bind(ParameterIndex(model))
    assert caught.value.argument == ("final_sparsity", 0.6, 1)


def test_a_curve_may_start_at_the_zeros_a_parameter_has_and_a_checkpoint_remembers_them():
    sparse, dense = torch.rand(10, 10) + 0.1, torch.rand(10, 10) + 0.1
    sparse.flatten()[:40] = 0
    model = Holder(a=sparse, b=dense)
    pruner = gradual(init_sparsity="__FROM_PARAM__", final_sparsity=0.8, inter_func="linear")
    first, middle = levels_of(pruner, model, [0.25, 2.25])
    assert first == {"a.weight": pytest.approx(0.4)}  # nothing to prune in b yet
    assert middle == {"a.weight": pytest.approx(0.6), "b.weight": pytest.approx(0.4)}
    other = gradual(init_sparsity="__from_param__", final_sparsity=0.8, inter_func="linear")
    other.load_state_dict(pruner.state_dict())
    assert levels_of(other, Holder(a=torch.rand(10, 10), b=dense), [2.25]) == [middle]


def test_global_pruning_counts_all_weights_and_layers_differ():
    model = Holder(a=torch.full((10, 10), 1.0), b=torch.full((10, 30), 2.0))
    pruner = gradual(scope="global", final_sparsity=0.5)
    assert levels_of(pruner, model, [4.25]) == [{"a.weight": 1.0, "b.weight": pytest.approx(1 / 3)}]
    assert pruner.planned_sparsity("a.weight", PolicyWindow.from_range(*WINDOW)) is None


@pytest.mark.parametrize("make", [lambda: nn.Linear(16, 8), lambda: nn.Conv2d(16, 8, 3)], ids=["linear", "conv"])
@pytest.mark.parametrize("mask_type", ["block4", [2, 2], "2:4", 124])
def test_groups_are_pruned_whole_on_linear_layers_and_convolutions(make, mask_type):
    model = nn.Sequential(make())
    final = 0.5
    pruner = gradual(final_sparsity=final, mask_type=mask_type)
    before, after = levels_of(pruner, model, [2.25, 4.25])
    assert before["0.weight"] == pytest.approx(
        interpolate(0.05, 0.5, 0.5, "cubic"), abs=0.01 if mask_type in ("2:4", 124) else 0.04
    )
    assert after["0.weight"] == final == pruner.planned_sparsity("0.weight", PolicyWindow.from_range(*WINDOW))


def test_weights_default_to_every_prunable_one():
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 4))
    assert MagnitudePruner("p", final_sparsity=0.5).bind(ParameterIndex(model)) == ["0.weight", "2.weight"]


@pytest.mark.parametrize(
    ("settings", "where"),
    [
        ({"init_sparsity": 1.5}, ("init_sparsity",)),
        ({"init_sparsity": "__FROM__"}, ("init_sparsity",)),
        ({"init_sparsity": True}, ("init_sparsity",)),
        ({"final_sparsity": None}, ("final_sparsity",)),
        ({"final_sparsity": {}}, ("final_sparsity",)),
        ({"final_sparsity": {"much": ["a"]}}, ("final_sparsity", "much")),
        ({"final_sparsity": {0.5: ["a"]}, "weights": ["b"]}, ("weights",)),
        ({"inter_func": "cubik"}, ("inter_func",)),
        ({"mask_type": "5block"}, ("mask_type",)),
        ({"mask_type": "filter"}, ("mask_type",)),
        ({"mask_type": "block4", "pattern": "2:4"}, ("pattern",)),
        ({"sparsity": 0.4}, ("sparsity",)),
    ],
)
def test_mistakes_are_found_when_a_pruner_is_made(settings, where):
    with pytest.raises(ArgumentError) as caught:
        gradual(**settings)
    assert caught.value.argument == where


def test_a_pattern_has_one_sparsity_and_a_window_without_end_stays_at_the_beginning():
    model, window = Holder(a=torch.rand(8, 8)), PolicyWindow.from_range(*WINDOW)
    wrong = gradual(mask_type="2:4", final_sparsity=0.8)
    wrong.bind(ParameterIndex(model))
    with pytest.raises(ArgumentError, match="write final_sparsity: 0.5"):
        wrong.check(window, ParameterIndex(model))
    endless = gradual()
    endless.bind(ParameterIndex(model))
    with pytest.warns(ScheduleWarning, match="stays at its initial sparsity"):
        endless.check(PolicyWindow.from_range(0, -1), ParameterIndex(model))
    with pytest.warns(ScheduleWarning, match="does not divide"):
        odd = gradual(mask_type="block4")
        odd.bind(ParameterIndex(Holder(a=torch.rand(8, 3))))
        odd.check(window, ParameterIndex(Holder(a=torch.rand(8, 3))))
