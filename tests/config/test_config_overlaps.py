"""Policies that get in each other's way are pointed out, with names and epochs."""

from __future__ import annotations

import pytest

from distiller_ng.config.overlaps import common_epochs
from distiller_ng.core.window import PolicyWindow

TEXT = """\
pruners:
  a: {{class: SensitivityPruner, sensitivities: {{conv1.weight: 0.1, fc.weight: 0.1}}}}
  b: {{class: SensitivityPruner, sensitivities: {{'{second}': 0.2}}}}
policies:
  - pruner: {{instance_name: a}}
    {first_time}
  - pruner: {{instance_name: {b}}}
    {second_time}
"""
RANGE = "starting_epoch: {}\n    ending_epoch: {}\n    frequency: {}"


def overlap(load, first: str, second: str, name: str = "fc.weight", b: str = "b") -> list[str]:
    loaded = load(TEXT.format(first_time=first, second_time=second, second=name, b=b))
    assert loaded.problems == ()
    return [w for w in loaded.warnings if "both write" in w]


def test_two_pruners_of_one_weight_in_one_epoch(load):
    (text,) = overlap(load, RANGE.format(0, 10, 2), RANGE.format(1, 8, 3))
    assert ":9:5: policies[1]: pruners 'a' and 'b' both write 'fc.weight' in the same epoch (4)" in text


def test_the_epochs_are_listed(load):
    assert "in the same epochs (0, 2, 4, ..., 8)" in overlap(load, RANGE.format(0, 10, 2), RANGE.format(0, 10, 1))[0]
    assert "in the same epochs (3, 5)" in overlap(load, "epochs: [3, 5, 9]", "epochs: [5, 3, 2]")[0]
    assert "(6, 8, 10, ...)" in overlap(load, RANGE.format(0, -1, 2), RANGE.format(6, -1, 1))[0]


@pytest.mark.parametrize(
    ("first", "second", "name"),
    [
        (RANGE.format(0, 10, 2), RANGE.format(1, 10, 2), "fc.weight"),
        (RANGE.format(0, 10, 1), RANGE.format(10, 20, 1), "fc.weight"),
        ("epochs: [0]", "epochs: [1]", "fc.weight"),
        ("epochs: [0]", "epochs: [0]", "conv2.weight"),
    ],
)
def test_no_warning_without_a_common_epoch_and_weight(load, first, second, name):
    assert overlap(load, first, second, name) == []


def test_wrapped_names_are_the_same_weight(load):
    assert len(overlap(load, "epochs: [0]", "epochs: [0]", "module.fc.weight")) == 1


def test_one_pruner_twice(load):
    (text,) = overlap(load, "epochs: [0, 1]", "epochs: [1]", b="a")
    assert "one decides after the other" in text and "'conv1.weight', 'fc.weight'" in text


def test_two_learning_rates(load):
    text = """\
lr_schedulers:
  x: {class: ExponentialLR, gamma: 0.9}
  y: {class: StepLR, step_size: 3}
policies:
  - lr_scheduler: {instance_name: x}
    epochs: [1, 2]
  - lr_scheduler: {instance_name: y}
    epochs: [2, 3]
"""
    (warned,) = load(text).warnings
    assert "LR schedulers 'x' and 'y' both set the learning rate in the same epoch (2): the later policy wins" in warned


def window(*arguments: float) -> PolicyWindow:
    return PolicyWindow.from_range(*arguments)


@pytest.mark.parametrize(
    ("first", "second", "epochs"),
    [
        (window(0, 7, 2), window(0, 10, 3), [0, 6]),
        (window(0, 4, 2), window(1, 4, 2), []),
        (window(0.5, 2.5, 0.5), window(1, 9, 1), [1, 2]),
        (window(0, 2, 1), window(5, 6, 1), []),
        (PolicyWindow.from_epochs([1, 4, 5]), window(4, 9, 1), [4, 5]),
        (window(3, 1_000_000, 7), window(2, 999_999, 11), list(range(24, 999_999, 77))),
    ],
)
def test_common_epochs(first, second, epochs):
    assert list(common_epochs(first, second)) == epochs
    assert list(common_epochs(second, first)) == epochs
