"""Structured pruning in one call: plans, budgets, optimizer state, and refusals that change nothing."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from distiller_ng.errors import ArgumentError, CalibrationError, TargetError
from distiller_ng.policies.one_shot import plan_structures, prune_structures

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def a_model():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 4),
    )


def macs(model):
    """Of the two convolutions at 8x8 and the linear layer, by hand."""
    first, second, last = model[0], model[3], model[7]
    spatial = 64 * 9 * (first.in_channels * first.out_channels + second.in_channels * second.out_channels)
    return spatial + last.in_features * last.out_features


def test_a_budget_is_met_and_everything_follows():
    model = a_model()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    model(X).square().mean().backward()
    optimizer.step()
    before = macs(model)
    assert before == 175_168
    report = prune_structures(model, X, target={"macs": 0.5}, optimizer=optimizer)
    assert 0.47 * before <= macs(model) <= 0.5 * before
    assert report.error < 1e-4 and report.parameters[1] < report.parameters[0]
    for parameter in model.parameters():
        assert parameter.grad.shape == parameter.shape == optimizer.state[parameter]["exp_avg"].shape
    optimizer.step()


def test_the_filters_of_smallest_norm_go():
    model = a_model()
    with torch.no_grad():
        model[3].weight[[1, 5, 9, 13]] *= 0.01
    plan = plan_structures(model, X, sparsity=0.25, weights=["3.weight"])
    assert model[3].out_channels == 16
    assert [(cut.tensor, cut.dim, cut.removed) for cut in plan.cuts] == [
        ("3.weight", 0, (1, 5, 9, 13)),
        ("3.bias", 0, (1, 5, 9, 13)),
        ("7.weight", 1, (1, 5, 9, 13)),
    ]


def test_importances_that_look_at_gradients_need_some():
    model = a_model()
    with pytest.raises(CalibrationError, match="has seen no gradients"):
        prune_structures(model, X, sparsity=0.5, importance="taylor")
    prune_structures(
        model, X, sparsity=0.5, importance="taylor", scope="layer", calibrate=lambda m: m(X).square().mean().backward()
    )
    assert (model[0].out_channels, model[3].out_channels) == (8, 8)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, ArgumentError, "needs sparsity"),
        ({"sparsity": 0.5, "target": {"macs": 0.5}}, ArgumentError, "leave one of the two out"),
        ({"target": {"macs": 0.0001}}, ArgumentError, "cannot reach"),
        ({"sparsity": 0.5, "weights": "absent"}, TargetError, "absent"),
        ({"sparsity": 0.5, "calibrate": 3}, ArgumentError, "calibrate is a function"),
        ({"sparsity": 0.5, "optimizer": "sgd"}, ArgumentError, "optimizer is a torch optimizer"),
    ],
)
def test_what_is_refused_changes_nothing(arguments, error, message):
    model = a_model()
    with pytest.raises(error, match=message):
        prune_structures(model, X, **arguments)
    fresh = a_model().state_dict()
    assert all(torch.equal(value, fresh[name]) for name, value in model.state_dict().items())
