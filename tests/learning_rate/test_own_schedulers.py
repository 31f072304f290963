"""MultiStepMultiGammaLR and Distiller's PolynomialLR against literal numbers."""

import warnings

import pytest
import torch
from torch import nn

from distiller_ng.errors import ArgumentError
from distiller_ng.learning_rate import MultiStepMultiGammaLR, PolynomialLR


def sgd(lr=0.1):
    return torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)


def stepped(scheduler, epoch):
    """The value Distiller got: ``step(epoch)``, deprecated but still there for user code."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        scheduler.step(epoch)
    return scheduler.optimizer.param_groups[0]["lr"]


def test_multi_gamma_products():
    scheduler = MultiStepMultiGammaLR(sgd(), milestones=[30, 60, 80], gammas=[0.1, 0.1, 0.2])
    assert scheduler.multiplicative_gammas == pytest.approx([1, 0.1, 0.01, 0.002], rel=1e-12)


@pytest.mark.parametrize(
    ("epoch", "factor"),
    [(0, 1), (15, 1), (29, 1), (30, 0.1), (33, 0.1), (60, 0.01), (79, 0.01), (80, 0.002), (100, 0.002)],
)
def test_multi_gamma_step_to_epoch(epoch, factor):
    scheduler = MultiStepMultiGammaLR(sgd(0.5), [30, 60, 80], [0.1, 0.1, 0.2])
    assert stepped(scheduler, epoch) == pytest.approx(0.5 * factor, rel=1e-12)


def test_multi_gamma_chains_to_the_same_values():
    optimizer = sgd(0.5)
    scheduler = MultiStepMultiGammaLR(optimizer, [2, 3], [0.5, 0.1])
    seen = []
    for _ in range(5):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert seen == pytest.approx([0.5, 0.5, 0.25, 0.025, 0.025], rel=1e-12)


@pytest.mark.parametrize(
    ("milestones", "gammas", "argument"),
    [([60, 30], [0.1, 0.1], "milestones"), ([30, 60], [0.1], "gammas"), ([30], [0.1, 0.2], "gammas")],
)
def test_multi_gamma_refuses_what_does_not_fit(milestones, gammas, argument):
    with pytest.raises(ValueError, match=argument) as caught:
        MultiStepMultiGammaLR(sgd(), milestones, gammas)
    assert caught.value.argument == (argument,)


@pytest.mark.parametrize(("epoch", "expected"), [(0, 0.1), (5, 0.025), (9, 0.001), (10, 0.0), (12, 0.0)])
def test_polynomial_step_to_epoch(epoch, expected):
    scheduler = PolynomialLR(sgd(0.1), T_max=10, power=2)
    assert stepped(scheduler, epoch) == pytest.approx(expected, abs=1e-15)


def test_polynomial_needs_epochs():
    with pytest.raises(ArgumentError, match="T_max must be above 0, got 0"):
        PolynomialLR(sgd(), 0, 0.9)
