"""Sparsity schedules against values worked out by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distiller_ng.errors import ArgumentError
from distiller_ng.pruning.sparsity_schedules import (
    AGP,
    SPARSITY_SCHEDULES,
    Constant,
    Exponential,
    Linear,
    MultiStep,
    as_schedule,
)

PROGRESS = st.floats(0, 1)


@pytest.mark.parametrize(
    ("schedule", "progress", "target"),
    [
        (AGP(initial_sparsity=0.05, final_sparsity=0.85), 0.0, 0.05),
        (AGP(initial_sparsity=0.05, final_sparsity=0.85), 0.5, 0.75),  # 0.85 - 0.8 / 8
        (AGP(initial_sparsity=0.05, final_sparsity=0.85), 1.0, 0.85),
        (AGP(final_sparsity=0.64), 0.25, 0.64 * (1 - 27 / 64)),
        (Linear(initial_sparsity=0.2, final_sparsity=0.8), 0.25, 0.35),
        (Linear(initial_sparsity=0.8, final_sparsity=0.2), 1.0, 0.2),
        (Constant(0.5), 0.3, 0.5),
        (Exponential(final_sparsity=0.75), 0.5, 0.5),
        (Exponential(initial_sparsity=0.5, final_sparsity=0.875), 0.5, 0.75),
        (Exponential(initial_sparsity=0.1, final_sparsity=0.9), 0.0, 0.1),
        (Exponential(initial_sparsity=0.1, final_sparsity=0.9), 1.0, 0.9),
        (MultiStep([0, 0.5], [0.3, 0.6]), 0.49, 0.3),
        (MultiStep([0, 0.5], [0.3, 0.6]), 0.5, 0.6),
        (MultiStep([0.25, 0.5], [0.3, 0.6]), 0.2, 0.0),
        (MultiStep([0.5], [0.1, 0.6]), 0.2, 0.1),
        (MultiStep([0.5], [0.1, 0.6]), 1.0, 0.6),
        (MultiStep([], [0.4]), 0.7, 0.4),
    ],
)
def test_targets(schedule, progress, target):
    assert schedule.target(progress) == pytest.approx(target, abs=1e-12)


@given(PROGRESS, PROGRESS)
def test_rising_schedules_never_fall_and_end_exactly(first, second):
    for schedule in (
        AGP(initial_sparsity=0.1, final_sparsity=0.7),
        Linear(initial_sparsity=0.1, final_sparsity=0.7),
        Exponential(initial_sparsity=0.1, final_sparsity=0.7),
        MultiStep([0.0, 0.3, 1.0], [0.1, 0.2, 0.7]),
    ):
        low, high = sorted((first, second))
        assert schedule.target(low) <= schedule.target(high) + 1e-12
        assert schedule.target(1.0) == 0.7
        assert schedule.target(0.0) == pytest.approx(0.1, abs=1e-12)


@pytest.mark.parametrize(
    ("described", "argument"),
    [
        ({"class": "AGP", "initial_sparsity": 0.9, "final_sparsity": 0.3}, ("schedule", "final_sparsity")),
        ({"class": "AGP", "initial_sparsity": 0.3, "final_sparsity": 0.3}, ("schedule", "final_sparsity")),
        ({"class": "AGP", "final_sparsity": 1.3}, ("schedule", "final_sparsity")),
        ({"class": "Linear", "initial_sparsity": True, "final_sparsity": 0.3}, ("schedule", "initial_sparsity")),
        ({"class": "Exponential", "final_sparsity": 1}, ("schedule", "final_sparsity")),
        ({"class": "Constant", "sparsity": "half"}, ("schedule", "sparsity")),
        ({"class": "MultiStep", "milestones": [0.5, 0.2], "levels": [0.1, 0.2]}, ("schedule", "milestones")),
        ({"class": "MultiStep", "milestones": [0.5], "levels": [0.1, 0.2, 0.3]}, ("schedule", "levels")),
        ({"class": "MultiStep", "milestones": [0.5], "levels": [1.1]}, ("schedule", "levels", 0)),
        ({"class": "MultiStep", "milestones": 0.5, "levels": [0.1]}, ("schedule", "milestones")),
        ({"class": "AGPP", "final_sparsity": 0.3}, ("schedule", "class")),
        ({"class": "AGP", "final": 0.3}, ("schedule", "final")),
        ({"class": "AGP"}, ("schedule",)),
        ({"final_sparsity": 0.3}, ("schedule",)),
        (0.5, ("schedule",)),
    ],
)
def test_what_is_wrong_is_pointed_at(described, argument):
    with pytest.raises(ArgumentError) as caught:
        as_schedule(described)
    assert caught.value.argument == argument


def test_mappings_build_and_objects_pass_through():
    assert as_schedule({"class": "Linear", "final_sparsity": 0.8}) == Linear(final_sparsity=0.8)
    mine = Constant(0.2)
    assert as_schedule(mine) is mine


def test_every_registered_schedule_is_hashable_and_has_values_above():
    assert SPARSITY_SCHEDULES.names() == ["AGP", "Constant", "Exponential", "Linear", "MultiStep"]
    assert len({AGP(final_sparsity=0.5), MultiStep([0.5], [0.5]), Constant(0.5)}) == 3
