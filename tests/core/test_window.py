from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distiller_ng.core.position import TrainPosition
from distiller_ng.core.window import PolicyWindow
from distiller_ng.errors import ArgumentError


@given(st.integers(0, 50), st.integers(1, 60), st.integers(1, 20))
def test_whole_windows_are_pythons_range(start, length, frequency):
    frequency = min(frequency, length)
    window = PolicyWindow.from_range(start, start + length, frequency)
    expected = list(range(start, start + length, frequency))
    assert [e for e in range(start + length + 5) if window.is_active(e)] == expected
    assert window.active_epochs() == expected
    assert window.last_epoch == expected[-1]
    assert [e for e in expected if window.is_last(e)] == expected[-1:]
    assert window.progress(TrainPosition(expected[-1])) == 1.0


def test_progress_follows_agps_span_rule():
    window = PolicyWindow.from_range(1, 11, 2)  # epochs 1 3 5 7 9
    assert [window.progress(TrainPosition(e)) for e in window.active_epochs()] == [0, 0.25, 0.5, 0.75, 1]


def test_epochs_list_has_distillers_metadata():
    window = PolicyWindow.from_epochs([1, 2, 3])
    assert window.meta() == {"starting_epoch": 1, "ending_epoch": 4, "frequency": None}
    assert window.meta(2)["current_epoch"] == 2


def test_epochs_are_sorted_and_unique():
    assert PolicyWindow.from_epochs([4, 0, 4, 1]).active_epochs() == [0, 1, 4]


def test_open_end():
    window = PolicyWindow.from_range(3, -1)
    assert window.is_active(10_000) and not window.is_active(2)
    assert window.last_epoch is None
    assert window.active_epochs(until=6) == [3, 4, 5]
    with pytest.raises(ArgumentError, match="open window"):
        window.active_epochs()


def test_fractional_window():
    window = PolicyWindow.from_range(0.5, 2.0, 0.25)
    assert window.is_fractional
    at = lambda epoch, step: TrainPosition(epoch, step, 10)  # noqa: E731
    assert not window.contains(at(0, 4)) and window.contains(at(0, 5)) and not window.contains(at(2, 0))
    assert [window.due_count(at(0, s)) for s in (4, 5, 7, 8)] == [0, 1, 1, 2]
    assert window.is_over(at(2, 0)) and not window.is_over(at(1, 9))
    assert window.progress(at(1, 0)) == pytest.approx(1 / 3)
    assert math.isclose(window.progress(at(2, 0)), 1.0)


def test_fractions_survive_rounding():
    window = PolicyWindow.from_range(0.3, 0.9, 0.1)
    fired = [
        i
        for i in range(1, 10)
        if window.due_count(TrainPosition(0, i, 10)) > window.due_count(TrainPosition(0, i - 1, 10))
    ]
    assert fired == [3, 4, 5, 6, 7, 8, 9]


@pytest.mark.parametrize(("start", "end", "frequency"), [(1.1, 1.4, 0.3), (0.1, 0.15, 0.05)])
def test_a_frequency_as_long_as_the_window_survives_rounding(start, end, frequency):
    assert PolicyWindow.from_range(start, end, frequency).frequency == frequency


@pytest.mark.parametrize(
    ("arguments", "argument", "message"),
    [
        ({"epochs": [1], "starting_epoch": 0}, "epochs", "not both"),
        ({"starting_epoch": 0}, "ending_epoch", "ending_epoch missing"),
        ({"starting_epoch": 0, "ending_epoch": 4, "frequency": None}, "frequency", "frequency missing"),
        ({"starting_epoch": 4, "ending_epoch": 4}, "ending_epoch", "exclusive"),
        ({"starting_epoch": -1, "ending_epoch": 4}, "starting_epoch", "0 or more"),
        ({"starting_epoch": 0, "ending_epoch": 4, "frequency": 5}, "frequency", "at most"),
        ({"starting_epoch": 0, "ending_epoch": 4, "frequency": 0}, "frequency", "above 0"),
        ({"starting_epoch": "0", "ending_epoch": 4}, "starting_epoch", "number of epochs"),
        ({"starting_epoch": True, "ending_epoch": 4}, "starting_epoch", "number of epochs"),
        ({"starting_epoch": math.nan, "ending_epoch": 4}, "starting_epoch", "number of epochs"),
        ({"epochs": []}, "epochs", "empty"),
        ({"epochs": [1.5]}, "epochs", "whole numbers"),
        ({"epochs": "123"}, "epochs", "list"),
    ],
)
def test_impossible_windows_say_what_is_wrong(arguments, argument, message):
    with pytest.raises(ArgumentError, match=message) as caught:
        PolicyWindow.from_arguments(**arguments)
    assert caught.value.argument[0] == argument
