"""A constructor's signature is the schema: names, types and defaults, and messages about values that do not fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pytest

from distiller_ng.config.docstrings import describe_argument, summary
from distiller_ng.config.signatures import NO_DEFAULT, Argument, arguments_of
from distiller_ng.config.validation import check_value

if TYPE_CHECKING:
    from nowhere import Unknown


class Base:
    """A base.

    ``depth`` is how deep.
    """

    def __init__(self, name: str, *, depth: int = 3) -> None: ...


class Child(Base):
    """Does one thing, with :class:`Base` below it.

    Between ``low`` and ``high`` nothing happens; ``level`` is a fraction. The ``level`` may be 0.

    Example::

        ``ignored``: in code
    """

    def __init__(self, level: float, *, low: Unknown = None, **kwargs: Any) -> None: ...


@dataclass
class Record:
    number: int
    text: str = "x"


def test_arguments_of_a_class_and_of_those_it_passes_on_to():
    found = arguments_of(Child)
    assert list(found) == ["level", "low", "name", "depth"]
    assert found["level"] == Argument("level", float, NO_DEFAULT) and found["level"].required
    assert found["depth"] == Argument("depth", int, 3) and not found["depth"].required


def test_an_annotation_for_type_checkers_only_accepts_anything():
    low = arguments_of(Child)["low"]
    assert check_value(low, object())[1] == []
    assert check_value(arguments_of(Child)["level"], "x")[1] != []


def test_arguments_of_a_dataclass_and_of_a_class_without_a_constructor():
    assert [(a.name, a.default) for a in arguments_of(Record).values()] == [("number", NO_DEFAULT), ("text", "x")]
    assert dict(arguments_of(type("Empty", (), {}))) == {}


GOOD = [
    (float, 1, 1.0),
    (float, 0.5, 0.5),
    (int, 3, 3),
    (bool, True, True),
    (str, "a", "a"),
    (float | None, None, None),
    (str | Sequence[str], "a", "a"),
    (str | Sequence[str], ["a", "b"], ["a", "b"]),
    (tuple[float, float], [1, 2], (1.0, 2.0)),
    (Mapping[str, float], {"a": 1}, {"a": 1.0}),
    (Mapping[str, tuple[float, str]], {"a": [1, "3D"]}, {"a": (1.0, "3D")}),
    (Literal["x", "y"], "y", "y"),
    (Annotated[float, "unit"], 2, 2.0),
    (Callable[[float], int], round, round),
    (int | float, 0.5, 0.5),
    (Any, {"a": [1]}, {"a": [1]}),
]


@pytest.mark.parametrize(("annotation", "value", "result"), GOOD, ids=[str(g[0]) + str(i) for i, g in enumerate(GOOD)])
def test_values_that_fit(annotation, value, result):
    checked, messages = check_value(Argument("a", annotation), value)
    assert messages == [] and checked == result and type(checked) is type(result)


BAD = [
    (float, "0.5", [((), "expected a number, got '0.5'; write it without quotes")]),
    (float, "high", [((), "expected a number, got 'high'")]),
    (float, True, [((), "expected a number, got true")]),
    (float, float("inf"), [((), "expected a finite number, got inf")]),
    (float, None, [((), "expected a number, got null (nothing)")]),
    (int, 1.0, [((), "expected a whole number, got 1.0")]),
    (int, False, [((), "expected a whole number, got false")]),
    (bool, 1, [((), "expected true or false, got 1")]),
    (bool, "yes", [((), "expected true or false, got 'yes'")]),
    (str, 3, [((), "expected text, got 3")]),
    (list[int], "12", [((), "expected a list, got '12'")]),
    (Sequence[float], "12", [((), "expected a list, got '12'")]),
    (Mapping[str, float], [1], [((), "expected a mapping, got a list")]),
    (
        Mapping[str, float],
        {"a": "x", "b": 1, "c": True},
        [
            (("a",), "expected a number, got 'x'"),
            (("c",), "expected a number, got true"),
        ],
    ),
    (Mapping[str, float], {3: 0.5}, [((3,), "expected text as the key, got 3")]),
    (str | Sequence[str], 7, [((), "expected text or a list, got 7")]),
    (
        str | Sequence[str],
        ["a", 3, None],
        [((1,), "expected text, got 3"), ((2,), "expected text, got null (nothing)")],
    ),
    (tuple[float, float], [1], [((1,), "a value is missing")]),
    (tuple[float, float], [1, 2, 3], [((), "expected a list of 2, got 3 values")]),
    (Literal["Max", "Mean_Abs"], "max", [((), "expected 'Max' or 'Mean_Abs', got 'max'. Did you mean 'Max'?")]),
    (Literal["Max", "Mean_Abs"] | None, 3, [((), "expected 'Max' or 'Mean_Abs', got 3")]),
    (Callable[[float], int], "floor", [((), "expected a Python function (from code only), got 'floor'")]),
    (
        Mapping[str, float | Sequence[float]],
        {"a": [1, "x"], "b": "y"},
        [
            (("a", 1), "expected a number, got 'x'"),
            (("b",), "expected a number or a list, got 'y'"),
        ],
    ),
    (Base, 3, [((), "expected a Base object (from code only), got 3")]),
    (str, 10**200, [((), f"expected text, got {'1' + '0' * 56}...")]),
]


@pytest.mark.parametrize(("annotation", "value", "messages"), BAD, ids=[str(b[0]) + str(i) for i, b in enumerate(BAD)])
def test_values_that_do_not_fit(annotation, value, messages):
    assert check_value(Argument("a", annotation), value)[1] == messages


def test_descriptions_come_from_docstrings():
    assert summary(Child) == "Does one thing, with `Base` below it."
    assert describe_argument(Child, "level") == "`level` is a fraction."
    assert describe_argument(Child, "high") == "Between `low` and `high` nothing happens"
    assert describe_argument(Child, "depth") == "`depth` is how deep."
    assert describe_argument(Child, "ignored") == "" and describe_argument(None, "x") == "" and summary(None) == ""
