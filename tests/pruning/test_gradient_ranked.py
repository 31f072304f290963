"""GradientRankedFilterPruner: the Taylor score, missing gradients, resume."""

import logging

import torch
from pruning_helpers import Holder, decide, filters_with, kept_filters

from distiller_ng.pruning import GradientRankedFilterPruner


def with_gradients(weight, gradient):
    model = Holder(a=weight)
    model.a.weight.grad = gradient.clone()
    return model


def test_filters_of_lowest_signed_taylor_score_go():
    weight = torch.tensor([[1.0, 1.0], [2.0, 2.0], [1.0, -1.0]])
    gradient = torch.tensor([[1.0, 1.0], [-1.0, -1.0], [3.0, 2.9]])  # scores 2, -4, 0.1
    model = with_gradients(weight, gradient)
    pruner = GradientRankedFilterPruner("p", "Filters", 0.34, "a.weight")
    assert kept_filters(decide(pruner, model)["a.weight"]) == [0, 2]
    assert kept_filters(decide(GradientRankedFilterPruner("p", "3D", 0.67, "a.weight"), model)["a.weight"]) == [0]


def test_b8_scores_agree_with_a_float64_reference():
    weight, gradient = torch.randn(8, 3, 3, 3), torch.randn(8, 3, 3, 3)
    scores = (weight.double() * gradient.double()).sum(dim=(1, 2, 3))
    pruner = GradientRankedFilterPruner("p", "Filters", 0.5, "a.weight")
    mask = decide(pruner, with_gradients(weight, gradient))["a.weight"]
    assert kept_filters(mask) == sorted(scores.argsort()[4:].tolist())


def test_without_a_gradient_nothing_is_pruned_and_the_log_says_so(caplog):
    model = Holder(a=filters_with(1, 2, 3, 4))
    with caplog.at_level(logging.WARNING):
        assert decide(GradientRankedFilterPruner("p", "Filters", 0.5, "a.weight"), model) == {}
    assert "'a.weight' has no gradient yet" in caplog.text


def test_scores_survive_a_checkpoint_that_has_no_gradients():
    model = with_gradients(torch.ones(4, 2), torch.tensor([[4.0, 4], [1, 1], [3, 3], [2, 2]]))
    pruner = GradientRankedFilterPruner("p", "Filters", 0.5, "a.weight")
    before = decide(pruner, model)["a.weight"]
    resumed = GradientRankedFilterPruner("p", "Filters", 0.5, "a.weight")
    resumed.load_state_dict(pruner.state_dict())
    model.a.weight.grad = None
    assert torch.equal(decide(resumed, model)["a.weight"], before)
    model.a.weight.grad = torch.tensor([[1.0, 1], [4, 4], [2, 2], [3, 3]])
    assert kept_filters(decide(resumed, model)["a.weight"]) == [1, 3]
    assert kept_filters(before) == [0, 2]


def test_global_scope_compares_filters_of_different_size():
    model = Holder(a=filters_with(1, 3, channels=1), b=filters_with(2, 4, channels=10))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    masks = decide(GradientRankedFilterPruner("p", "Filters", 0.5, "re:.*", scope="global"), model)
    assert {name: kept_filters(mask) for name, mask in masks.items()} == {"a.weight": [1], "b.weight": [1]}
