"""SetLearningRate, LearningRateFunction, LearningRate and EpochRange: the values of every step."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import distiller_ng as distiller
from distiller_ng import ArgumentError, CompressionScheduler
from distiller_ng.policies.epoch_range import EpochRange
from distiller_ng.policies.learning_rate_function import LearningRateFunction
from distiller_ng.policies.learning_rate_steps import LearningRate
from distiller_ng.policies.set_learning_rate import SetLearningRate


def rates(policies, epochs, steps, *, lr=1.0, compat=None, groups=1):
    """The learning rate each optimizer step used, and the one after ``finish``."""
    model = nn.Sequential(*[nn.Linear(1, 1) for _ in range(groups)])
    optimizer = torch.optim.SGD([{"params": layer.parameters()} for layer in model], lr)
    scheduler = CompressionScheduler(model, optimizer=optimizer, compat=compat)
    for policy, *window in policies:
        scheduler.add_policy(policy, None, *window, trigger="step")
    used = []
    optimizer.register_step_post_hook(lambda o, a, k: used.append([g["lr"] for g in o.param_groups]))
    for _ in scheduler.epochs(epochs):
        for _ in scheduler.minibatches(range(steps)):
            optimizer.zero_grad()
            scheduler.backward(model(torch.ones(1, 1)).sum())
            optimizer.step()
    used.append([group["lr"] for group in optimizer.param_groups])
    return [row[0] for row in used] if groups == 1 else used


def test_linear_is_clamped_and_reaches_its_final_value():
    found = rates([(LearningRateFunction("linear", 0.1, 0.0), 0, 2.9, -1)], 4, 2)
    expected = [0.1 * max(1 - step / 2 / 2.9, 0) for step in range(8)]
    assert found == pytest.approx([*expected, 0.0])
    assert min(found) == 0.0


def test_sparsemls_linear_goes_below_zero():
    found = rates([(LearningRateFunction("linear", 0.1, 0.0), 0, 2.9, -1)], 4, 2, compat="sparseml")
    assert found[-1] == pytest.approx(0.1 * (1 - 3 / 2.9)) and found[-1] < -0.003


def test_cosine_both_ways():
    down = rates([(LearningRateFunction("cosine", 0.1, 0.02), 0, 2, -1)], 2, 2)
    assert down == pytest.approx([0.02 + 0.08 * (1 + math.cos(math.pi * x)) / 2 for x in (0, 0.25, 0.5, 0.75, 1)])
    up = rates([(LearningRateFunction("cosine", 0.02, 0.1), 0, 2, -1)], 2, 2)
    assert up == pytest.approx([0.12 - value for value in down])


def test_constant():
    assert rates([(LearningRateFunction("constant", 0.3, 0.0), 1, 2, -1)], 3, 1) == [1.0, 0.3, 0.3, 0.3]


def test_cycles_reach_final_with_their_last_step():
    found = rates([(LearningRateFunction("cyclic_linear", 0.3, 0.0, cycle_epochs=1), 0, 2, -1)], 3, 4)
    cycle = [0.3, 0.2, 0.1, 0.0]
    assert found == pytest.approx([*cycle, *cycle, 0, 0, 0, 0, 0])
    strict = rates([(LearningRateFunction("cyclic_linear", 0.3, 0.0), 0, 2, -1)], 3, 4, compat="sparseml")
    assert strict == pytest.approx([*cycle, *cycle, 0.3, 0.3, 0.3, 0.3, 0.3])


def test_a_shorter_last_cycle():
    found = rates([(LearningRateFunction("cyclic_linear", 0.3, 0.0, cycle_epochs=2), 0, 3, -1)], 3, 2)
    assert found == pytest.approx([0.3, 0.2, 0.1, 0.0, 0.3, 0.0, 0.0])


MULTI = LearningRate("MultiStepLR", {"gamma": 0.1, "milestones": [2, 3.5]}, 0.1)
TABLES = [
    (MULTI, (0, -1), {0: 0.1, 2: 0.01, 3.5: 0.001}),
    (LearningRate("StepLR", {"gamma": 0.5, "step_size": 1.0}, 0.1), (0, 3), {0: 0.1, 1: 0.05, 2: 0.025}),
    (
        LearningRate("ExponentialLR", {"gamma": 0.5}, 0.1),
        (0.5, -1),
        {0: 1.0, 0.5: 0.1, 1.5: 0.05, 2.5: 0.025, 3.5: 0.0125},
    ),
    (LearningRate("StepLR", {"gamma": 0.5, "step_size": "0.5"}, 0.1), (0, 1), {0: 0.1, 0.5: 0.05}),
]


@pytest.mark.parametrize(("policy", "window", "table"), TABLES)
def test_stepped_rates_change_at_their_epochs_and_stay_at_the_end(policy, window, table):
    found = rates([(policy, *window, -1)], 4, 4)
    expected = [next(v for e, v in reversed(table.items()) if e <= step / 4) for step in range(16)]
    assert found == pytest.approx([*expected, expected[-1]])


def test_warm_restarts():
    policy = LearningRate("CosineAnnealingWarmRestarts", {"lr_min": 0.01, "cycle_epochs": "2"}, 0.1)
    found = rates([(policy, 0, -1, -1)], 4, 2)[:-1]
    cycle = [0.01 + 0.09 * (1 + math.cos(math.pi * x)) / 2 for x in (0, 0.25, 0.5, 0.75)]
    assert found == pytest.approx([*cycle, *cycle], abs=1e-6)


def test_without_init_lr_the_optimizers_own_rate_falls():
    assert rates([(LearningRate("ExponentialLR", {"gamma": 0.5}), 0, -1, -1)], 2, 1, lr=0.8)[:2] == [0.8, 0.4]


def test_the_order_of_sparseml():
    """A function over 0..2 and a rate set at 0: the first step uses what was set, the later ones the function."""
    function = LearningRateFunction("linear", 0.4, 0.0)
    found = rates([(function, 0, 2, -1), (SetLearningRate(0.9), 0, -1, 0)], 2, 2)
    assert found == pytest.approx([0.9, 0.3, 0.2, 0.1, 0.0])


def test_parameter_groups():
    found = rates([(SetLearningRate(0.5, param_groups=[1]), 0, -1, 0)], 1, 1, groups=2)
    assert found[0] == [1.0, 0.5]
    with pytest.raises(distiller.LifecycleError, match="group 3"):
        rates([(SetLearningRate(0.5, param_groups=[3]), 0, -1, 0)], 1, 1)


def test_tensors_stay_the_same_ones():
    model = nn.Linear(1, 1)
    optimizer = torch.optim.Adam(model.parameters(), torch.tensor(0.1), capturable=False, foreach=False)
    rate = optimizer.param_groups[0]["lr"]
    scheduler = CompressionScheduler(model, optimizer=optimizer)
    scheduler.add_policy(SetLearningRate(0.5), None, -1, -1, 0, trigger="step")
    for _ in scheduler.epochs(1):
        for _ in scheduler.minibatches(range(1)):
            scheduler.backward(model(torch.ones(1, 1)).sum())
            optimizer.step()
    assert optimizer.param_groups[0]["lr"] is rate and float(rate) == 0.5


def test_in_windows_of_whole_epochs_values_are_set_at_their_beginning():
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), 1.0)
    scheduler = CompressionScheduler(model, optimizer=optimizer)
    scheduler.add_policy(LearningRateFunction("linear", 0.4, 0.0), starting_epoch=0, ending_epoch=3)
    seen = []
    for _ in scheduler.epochs(4):
        seen.append(optimizer.param_groups[0]["lr"])
    assert seen == pytest.approx([0.4, 0.2, 0.0, 0.0])


@pytest.mark.parametrize(
    ("make", "argument"),
    [
        (lambda: SetLearningRate(1.5), "learning_rate"),
        (lambda: SetLearningRate(0), "learning_rate"),
        (lambda: SetLearningRate(0.1, param_groups=[-1]), "param_groups"),
        (lambda: SetLearningRate(0.1, param_groups="all"), "param_groups"),
        (lambda: LearningRateFunction("linar", 0.1, 0), "lr_func"),
        (lambda: LearningRateFunction("linear", 0.1), "final_lr"),
        (lambda: LearningRateFunction("linear", 0.1, -1), "final_lr"),
        (lambda: LearningRateFunction("cyclic_linear", 0.1, 0, cycle_epochs=0), "cycle_epochs"),
        (lambda: LearningRate("StepLr", {}), "lr_class"),
        (lambda: LearningRate("StepLR", {"gamma": 0.1}), "lr_kwargs"),
        (lambda: LearningRate("StepLR", {"gamma": 0.1, "step": 2}), "lr_kwargs"),
        (lambda: LearningRate("StepLR", {"gamma": "x", "step_size": 2}), "lr_kwargs"),
        (lambda: LearningRate("MultiStepLR", {"gamma": 0.1, "milestones": []}), "lr_kwargs"),
        (lambda: LearningRate("MultiStepLR", 3), "lr_kwargs"),
        (lambda: LearningRate("StepLR", {"gamma": 0.1, "step_size": 1}, 2.0), "init_lr"),
    ],
)
def test_wrong_arguments(make, argument):
    with pytest.raises(ArgumentError) as caught:
        make()
    assert caught.value.argument[0] == argument


def test_milestones_outside_the_window_are_refused_when_the_schedule_is_loaded():
    scheduler = CompressionScheduler(nn.Linear(1, 1))
    with pytest.raises(ArgumentError, match="inside the window"):
        scheduler.add_policy(MULTI, None, 0, 3, -1, trigger="step")
    with pytest.raises(ArgumentError, match="needs a window with an end"):
        scheduler.add_policy(LearningRateFunction("linear", 0.1, 0), None, 0, -1, -1, trigger="step")


def test_an_epoch_range_gives_a_run_its_length():
    scheduler = CompressionScheduler(nn.Linear(1, 1))
    scheduler.add_policy(EpochRange(), None, 0, 2.3, 0, trigger="step")
    assert scheduler.max_epochs == 3
