"""Class names and arguments as schedules give them: what is accepted, and how what is wrong is explained."""

import typing

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler as torch_lr

from distiller_ng.errors import ArgumentError, ScheduleWarning
from distiller_ng.learning_rate import (
    LR_SCHEDULERS,
    MultiStepMultiGammaLR,
    PolynomialLR,
    ScheduledLR,
    allowed_arguments,
    resolve,
    variants,
)


@pytest.mark.parametrize(
    ("kwargs", "cls"),
    [
        ({"T_max": 90, "power": 0.9}, PolynomialLR),
        ({"total_iters": 90, "power": 0.9}, torch_lr.PolynomialLR),
        ({"total_iters": 90}, torch_lr.PolynomialLR),
    ],
)
def test_polynomial_is_told_apart_by_its_arguments(kwargs, cls):
    assert resolve("PolynomialLR", kwargs).cls is cls


def test_variants():
    assert variants("PolynomialLR") == (PolynomialLR, torch_lr.PolynomialLR)
    assert variants("MultiStepMultiGammaLR") == (MultiStepMultiGammaLR,)


def test_allowed_arguments_carry_types_and_defaults():
    allowed = allowed_arguments("ReduceLROnPlateau")
    assert list(allowed) == [
        "mode",
        "factor",
        "patience",
        "threshold",
        "threshold_mode",
        "cooldown",
        "min_lr",
        "eps",
    ]
    assert allowed["mode"].annotation == typing.Literal["min", "max"]
    assert (allowed["patience"].annotation, allowed["patience"].default) == (int, 10)
    assert not allowed["factor"].is_required
    assert allowed_arguments("MultiStepLR")["milestones"].annotation == list[int]
    assert allowed_arguments("StepLR")["step_size"].is_required
    assert set(allowed_arguments("PolynomialLR")) == {"T_max", "total_iters", "power"}


def test_no_class_asks_a_schedule_for_injected_arguments():
    for entry in LR_SCHEDULERS:
        assert not {"optimizer", "last_epoch"} & set(allowed_arguments(entry.name)), entry.name
        assert "optimizer" in entry.injected


def test_verbose_is_dropped_with_a_warning():
    with pytest.warns(ScheduleWarning, match="StepLR: verbose no longer exists"):
        definition = resolve("StepLR", {"step_size": 3, "verbose": True})
    assert dict(definition.kwargs) == {"step_size": 3}


@pytest.mark.parametrize(
    ("name", "kwargs", "argument", "message"),
    [
        ("ExponentailLR", {}, ("class",), "unknown lr_scheduler class 'ExponentailLR'. Did you mean 'ExponentialLR'"),
        ("LRScheduler", {}, ("class",), "unknown lr_scheduler class 'LRScheduler'"),
        ("StepLR", {"step_size": 3, "gama": 0.1}, ("gama",), "unknown argument 'gama'. Did you mean 'gamma'?"),
        ("StepLR", {"gamma": 0.1}, (), "StepLR: missing step_size"),
        ("StepLR", {"step_size": "3"}, ("step_size",), "step_size must be a whole number, got '3'"),
        ("StepLR", {"step_size": True}, ("step_size",), "step_size must be a whole number, got True"),
        ("StepLR", {"step_size": 0}, ("step_size",), "StepLR: step_size must be above 0"),
        ("StepLR", {"step_size": -1}, ("step_size",), "step_size must not be negative, got -1"),
        ("StepLR", {"step_size": 3, "last_epoch": 2}, ("last_epoch",), "last_epoch is given by the library"),
        ("CosineAnnealingLR", {"T_max": 0}, ("T_max",), "T_max must be above 0"),
        ("ExponentialLR", {"gamma": "1e-1"}, ("gamma",), "gamma must be a number, got '1e-1'. This is text: write 0.1"),
        ("MultiStepLR", {"milestones": 30}, ("milestones",), "milestones must be a list of whole numbers, got 30"),
        ("MultiStepLR", {"milestones": [30, 1.5]}, ("milestones",), "must be a list of whole numbers"),
        ("LinearLR", {"start_factor": 2.0}, (), "LinearLR: Starting multiplicative factor"),
        ("OneCycleLR", {"max_lr": 0.1}, (), "OneCycleLR: You must define either total_steps"),
        ("OneCycleLR", {"max_lr": 0.1, "total_steps": 9, "pct_start": 3}, ("pct_start",), "between 0 and 1"),
        ("ReduceLROnPlateau", {"mode": "best"}, ("mode",), "mode must be one of 'min', 'max', got 'best'"),
        ("ReduceLROnPlateau", {"factor": 1.5}, ("factor",), "Factor should be < 1.0"),
        ("PolynomialLR", {"T_max": 9, "total_iters": 9, "power": 1}, ("total_iters",), "not both"),
        ("PolynomialLR", {"T_max": 9}, (), "missing power"),
        ("MultiStepMultiGammaLR", {"milestones": [2, 1], "gammas": [1, 1]}, ("milestones",), "increasing order"),
        ("LambdaLR", {"lr_lambda": "lambda e: e"}, ("lr_lambda",), "is a Python function and cannot be written"),
        ("MultiplicativeLR", {}, (), "LRPolicy(torch.optim.lr_scheduler.MultiplicativeLR(optimizer, ...))"),
        (
            "CyclicLR",
            {"base_lr": 0.1, "max_lr": 1, "scale_fn": "f"},
            ("scale_fn",),
            "scale_fn is a Python function",
        ),
    ],
)
def test_what_is_wrong_is_named_with_its_place(name, kwargs, argument, message):
    with pytest.raises(ArgumentError) as caught:
        ScheduledLR("lr", name, kwargs)
    assert message in str(caught.value)
    assert caught.value.argument == argument


@pytest.mark.parametrize(
    ("members", "argument", "message"),
    [
        ([], ("schedulers",), "at least one member"),
        ([{"gamma": 0.5}], ("schedulers", 0), "needs a class"),
        ([{"class": "StepLR", "step_size": 2}, {"class": "Exp"}], ("schedulers", 1, "class"), "unknown lr_scheduler"),
        ([{"class": "ExponentialLR", "gamm": 1}], ("schedulers", 0, "gamm"), "Did you mean 'gamma'"),
        ([{"class": "ReduceLROnPlateau"}], ("schedulers", 0, "class"), "a policy of its own"),
        (["StepLR"], ("schedulers",), "a list of scheduler definitions"),
    ],
)
def test_members_are_checked_in_place(members, argument, message):
    with pytest.raises(ArgumentError) as caught:
        resolve("SequentialLR", {"schedulers": members, "milestones": [3]})
    assert message in str(caught.value)
    assert caught.value.argument == argument


def test_wrong_number_of_milestones_is_found_at_once():
    members = [{"class": "StepLR", "step_size": 2}, {"class": "ExponentialLR", "gamma": 0.5}]
    with pytest.raises(ArgumentError, match="SequentialLR: Sequential Schedulers expects"):
        ScheduledLR("lr", "SequentialLR", {"schedulers": members, "milestones": []})


def test_whole_numbers_serve_as_floats():
    scheduled = ScheduledLR("lr", "OneCycleLR", {"max_lr": 1, "total_steps": 9, "pct_start": 1, "div_factor": 5})
    scheduled.bind(torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1, momentum=0.9))
    assert scheduled.values(0)[0]["lr"] == pytest.approx(0.2)


@pytest.mark.parametrize("unit", ["epochs", 3])
def test_unknown_unit(unit):
    with pytest.raises(ArgumentError, match="unknown unit") as caught:
        ScheduledLR.from_definition("lr", {"class": "StepLR", "step_size": 2, "unit": unit})
    assert caught.value.argument == ("unit",)


def test_plateau_cannot_count_steps():
    with pytest.raises(ArgumentError, match="remove unit: step"):
        ScheduledLR("lr", "ReduceLROnPlateau", unit="step")


def test_definition_without_class():
    with pytest.raises(ArgumentError, match="'lr' needs a class, got None"):
        ScheduledLR.from_definition("lr", {"gamma": 0.5})
