"""Values of every scheduler class at absolute epochs, against torch's own classes stepped one by one."""

import math
import warnings

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler as torch_lr

from distiller_ng.errors import ArgumentError, LifecycleError
from distiller_ng.learning_rate import LR_SCHEDULERS, ScheduledLR


def two_groups(cls=torch.optim.SGD, **kwargs):
    kwargs = {"momentum": 0.7} if cls is torch.optim.SGD and not kwargs else kwargs
    first, second = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    return cls([{"params": [first], "lr": 0.4}, {"params": [second], "lr": 0.05}], lr=0.1, **kwargs)


def settings(optimizer, keys=("lr", "momentum", "betas")):
    return [{key: group[key] for key in keys if key in group} for group in optimizer.param_groups]


def stepped(build, epochs, **optimizer_kwargs):
    """What torch's class sets at epochs 0, 1, ... when it is stepped after each."""
    optimizer = two_groups(**optimizer_kwargs)
    scheduler = build(optimizer)
    seen = []
    for _ in range(epochs):
        seen.append(settings(optimizer))
        optimizer.step()
        scheduler.step()
    return seen


def assert_follows(scheduled, reference, epochs=None):
    for epoch in epochs or range(len(reference)):
        for values, expected in zip(scheduled.values(epoch), reference[epoch], strict=True):
            for key, value in values.items():
                assert value == pytest.approx(expected[key], rel=1e-9, abs=1e-15), (epoch, key)


CLASSES = {
    "StepLR": {"step_size": 3, "gamma": 0.5},
    "MultiStepLR": {"milestones": [2, 5, 5, 9], "gamma": 0.3},
    "ConstantLR": {"factor": 0.25, "total_iters": 4},
    "LinearLR": {"start_factor": 0.2, "end_factor": 0.9, "total_iters": 6},
    "ExponentialLR": {"gamma": 0.9},
    "CosineAnnealingLR": {"T_max": 7, "eta_min": 0.001},
    "CosineAnnealingWarmRestarts": {"T_0": 3, "T_mult": 2, "eta_min": 0.01},
    "CyclicLR": {"base_lr": 0.01, "max_lr": [0.2, 0.3], "step_size_up": 3, "step_size_down": 5, "mode": "triangular2"},
    "OneCycleLR": {"max_lr": 0.5, "total_steps": 16, "three_phase": True},
    "PolynomialLR": {"total_iters": 10, "power": 2.0},
}


@pytest.mark.parametrize("name", CLASSES)
def test_values_equal_torch_stepped_one_by_one(name):
    kwargs = CLASSES[name]
    reference = stepped(lambda optimizer: getattr(torch_lr, name)(optimizer, **kwargs), 16)
    optimizer = two_groups()
    scheduled = ScheduledLR("lr", name, kwargs)
    scheduled.bind(optimizer)
    assert_follows(scheduled, reference)
    assert_follows(scheduled, reference, epochs=[11, 3, 3, 15, 0])  # any order
    assert settings(optimizer) == [{"lr": 0.4, "momentum": 0.7}, {"lr": 0.05, "momentum": 0.7}]


@pytest.mark.parametrize(
    ("name", "function"), [("LambdaLR", lambda e: 1 / (1 + e)), ("MultiplicativeLR", lambda e: 0.9 + 0.01 * e)]
)
def test_function_classes_from_python(name, function):
    reference = stepped(lambda optimizer: getattr(torch_lr, name)(optimizer, function), 8)
    scheduled = ScheduledLR("lr", name, {"lr_lambda": function})
    scheduled.bind(two_groups())
    assert_follows(scheduled, reference)


def test_cyclic_with_a_scale_function_and_adam():
    kwargs = {"base_lr": 0.01, "max_lr": 0.1, "step_size_up": 2, "scale_fn": lambda x: 0.5**x}

    def build(optimizer):
        return torch_lr.CyclicLR(optimizer, **kwargs)

    reference = stepped(build, 10, cls=torch.optim.AdamW, betas=(0.6, 0.95))
    scheduled = ScheduledLR("lr", "CyclicLR", kwargs)
    scheduled.bind(two_groups(torch.optim.AdamW, betas=(0.6, 0.95)))
    assert set(scheduled.values(3)[0]) == {"lr", "betas"}
    assert_follows(scheduled, reference)


def test_sequential_from_nested_definitions():
    def build(optimizer):
        warm = torch_lr.LinearLR(optimizer, start_factor=0.1, total_iters=4)
        main = torch_lr.CosineAnnealingLR(optimizer, T_max=8)
        tail = torch_lr.ExponentialLR(optimizer, gamma=0.5)
        return torch_lr.SequentialLR(optimizer, [warm, main, tail], milestones=[4, 10])

    definition = {
        "class": "SequentialLR",
        "schedulers": [
            {"class": "LinearLR", "start_factor": 0.1, "total_iters": 4},
            {"class": "CosineAnnealingLR", "T_max": 8},
            {"class": "ExponentialLR", "gamma": 0.5},
        ],
        "milestones": [4, 10],
    }
    scheduled = ScheduledLR.from_definition("lr", definition)
    scheduled.bind(two_groups())
    assert_follows(scheduled, stepped(build, 14))
    assert [scheduled.values(e)[0]["lr"] for e in (0, 2, 4, 8)] == pytest.approx([0.04, 0.22, 0.4, 0.2])


def test_chained_with_a_nested_sequence():
    def build(optimizer):
        constant = torch_lr.ConstantLR(optimizer, factor=0.5, total_iters=3)
        inner = torch_lr.SequentialLR(
            optimizer, [torch_lr.StepLR(optimizer, 2, 0.5), torch_lr.ExponentialLR(optimizer, 0.9)], [5]
        )
        return torch_lr.ChainedScheduler([constant, inner], optimizer=optimizer)

    scheduled = ScheduledLR.from_definition(
        "lr",
        {
            "class": "ChainedScheduler",
            "schedulers": [
                {"class": "ConstantLR", "factor": 0.5, "total_iters": 3},
                {
                    "class": "SequentialLR",
                    "schedulers": [
                        {"class": "StepLR", "step_size": 2, "gamma": 0.5},
                        {"class": "ExponentialLR", "gamma": 0.9},
                    ],
                    "milestones": [5],
                },
            ],
        },
    )
    scheduled.bind(two_groups())
    assert_follows(scheduled, stepped(build, 10))


def test_every_registered_class_is_covered_here():
    elsewhere = {"MultiStepMultiGammaLR", "ReduceLROnPlateau"}
    here = {*CLASSES, "LambdaLR", "MultiplicativeLR", "SequentialLR", "ChainedScheduler"}
    torch_names = {n for n in torch_lr.__all__ if n != "LRScheduler"}
    registered = {n for n in LR_SCHEDULERS.names() if "." not in n}  # other tests of the process add dotted ones
    assert here | elsewhere == registered
    assert torch_names <= set(LR_SCHEDULERS.names())


@pytest.mark.parametrize(
    ("name", "kwargs", "literals"),
    [
        ("StepLR", {"step_size": 30}, {0: 0.4, 29: 0.4, 30: 0.04, 60: 0.004}),
        ("ExponentialLR", {"gamma": 0.9}, {25: 0.4 * 0.9**25}),
        ("MultiStepMultiGammaLR", {"milestones": [2, 4], "gammas": [0.5, 0.1]}, {1: 0.4, 2: 0.2, 4: 0.02}),
        ("PolynomialLR", {"T_max": 10, "power": 2}, {5: 0.1, 10: 0.0, 11: 0.0}),
        ("PolynomialLR", {"total_iters": 4, "power": 1}, {1: 0.3, 4: 0.0}),
        ("CosineAnnealingLR", {"T_max": 4}, {2: 0.2, 4: 0.0, 1: 0.2 * (1 + math.cos(math.pi / 4))}),
    ],
)
def test_literal_values(name, kwargs, literals):
    scheduled = ScheduledLR("lr", name, kwargs)
    scheduled.bind(two_groups())
    for epoch, expected in literals.items():
        assert scheduled.values(epoch)[0] == {"lr": pytest.approx(expected, rel=1e-12, abs=1e-12)}


def test_one_cycle_keeps_its_last_value():
    scheduled = ScheduledLR("lr", "OneCycleLR", {"max_lr": 0.1, "total_steps": 10, "anneal_strategy": "linear"})
    scheduled.bind(two_groups())
    assert scheduled.values(9)[0]["lr"] == pytest.approx(0.1 / 25 / 1e4)
    assert scheduled.values(10) == scheduled.values(9) == scheduled.values(500)


def test_no_warning_is_shown():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name, kwargs in CLASSES.items():
            scheduled = ScheduledLR("lr", name, kwargs)
            scheduled.bind(two_groups())
            scheduled.values(7)


def test_base_is_recorded_in_the_groups_once():
    optimizer = two_groups()
    scheduled = ScheduledLR("lr", "ExponentialLR", {"gamma": 0.5})
    scheduled.bind(optimizer)
    assert [group["initial_lr"] for group in optimizer.param_groups] == [0.4, 0.05]
    optimizer.param_groups[0]["lr"] = 0.001  # the loop's own doing: absolute values do not depend on it
    scheduled.bind(optimizer)
    assert scheduled.values(1)[0]["lr"] == 0.2


def test_initial_lr_of_a_loaded_optimizer_is_the_base():
    optimizer = two_groups()
    for group in optimizer.param_groups:
        group["initial_lr"] = 1.0
    scheduled = ScheduledLR("lr", "StepLR", {"step_size": 1, "gamma": 0.5})
    scheduled.bind(optimizer)
    assert scheduled.values(2)[0]["lr"] == 0.25


@pytest.mark.parametrize("name", ["ExponentialLR", "CosineAnnealingWarmRestarts"])
def test_groups_added_later_are_picked_up(name):
    optimizer = two_groups()
    kwargs = {"gamma": 0.5} if name == "ExponentialLR" else {"T_0": 4}
    scheduled = ScheduledLR("lr", name, kwargs)
    scheduled.set_(optimizer, 2)
    before = [group["lr"] for group in optimizer.param_groups]
    optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))], "lr": 0.8})
    scheduled.set_(optimizer, 2)
    factor = 0.25 if name == "ExponentialLR" else 0.5
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([*before, 0.8 * factor])


def test_tensor_learning_rates_stay_the_same_tensor():
    rate = torch.tensor(0.4)
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=rate, capturable=False, foreach=False)
    scheduled = ScheduledLR("lr", "ExponentialLR", {"gamma": 0.5})
    scheduled.set_(optimizer, 1)
    assert optimizer.param_groups[0]["lr"] is rate
    assert rate.item() == pytest.approx(0.2)


def test_momentum_is_left_alone_unless_the_class_drives_it():
    optimizer = two_groups()
    ScheduledLR("lr", "OneCycleLR", {"max_lr": 0.5, "total_steps": 9, "cycle_momentum": False}).set_(optimizer, 3)
    assert [group["momentum"] for group in optimizer.param_groups] == [0.7, 0.7]
    ScheduledLR("lr", "OneCycleLR", {"max_lr": 0.5, "total_steps": 9}).set_(optimizer, 0)
    assert [group["momentum"] for group in optimizer.param_groups] == pytest.approx([0.95, 0.95])
    assert "max_lr" not in optimizer.param_groups[0]  # the class's own bookkeeping stays in the shadow


def test_cycle_momentum_needs_an_optimizer_with_momentum():
    optimizer = torch.optim.Adagrad([nn.Parameter(torch.zeros(1))], lr=0.1)
    scheduled = ScheduledLR("lr", "OneCycleLR", {"max_lr": 0.5, "total_steps": 9})
    with pytest.raises(ArgumentError, match="OneCycleLR: optimizer must support momentum"):
        scheduled.bind(optimizer)


def test_values_need_an_optimizer():
    with pytest.raises(LifecycleError, match="'warm'.*has no optimizer yet"):
        ScheduledLR("warm", "LinearLR").values(0)
    plateau = ScheduledLR("p", "ReduceLROnPlateau")
    plateau.bind(two_groups())
    with pytest.raises(LifecycleError, match="needs metrics"):
        plateau.values(0)


def test_negative_epoch():
    scheduled = ScheduledLR("lr", "StepLR", {"step_size": 1})
    scheduled.bind(two_groups())
    with pytest.raises(ArgumentError, match="count from 0, got -1"):
        scheduled.values(-1)
