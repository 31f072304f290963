"""Every error and warning class of the library (layer 0: standard library only).

A user's mistake raises a subclass of :class:`DistillerError` whose message says what was received, what is allowed,
what to write instead, and where. Each class also derives from the builtin a ported script would catch.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

__all__ = [
    "ArgumentError",
    "CalibrationError",
    "CheckpointError",
    "DatasetError",
    "DistillerError",
    "ExportError",
    "GraphError",
    "LifecycleError",
    "Problem",
    "ScheduleError",
    "ScheduleWarning",
    "TargetError",
    "did_you_mean",
    "listed",
    "nearest",
]


class DistillerError(Exception):
    """Base of every error this library raises on purpose."""


class ArgumentError(DistillerError, ValueError):
    """An argument of a component is wrong.

    ``argument`` is the path to the offending value, outermost first, e.g. ``("levels", "conv1.weight")``: the config
    front end uses it to point at the line and column in the user's file.
    """

    def __init__(self, message: str, *, argument: Sequence[str | int] = ()) -> None:
        super().__init__(message)
        self.argument: tuple[str | int, ...] = tuple(argument)


class TargetError(ArgumentError):
    """A name, pattern or token matches no parameter or module of the model, or one that cannot be compressed."""


class LifecycleError(DistillerError, RuntimeError):
    """A hook was called in an impossible order, or a resumed loop continues from the wrong place."""


class GraphError(DistillerError, ValueError):
    """The model's structure cannot be followed far enough for what was asked."""


class CheckpointError(DistillerError, ValueError, KeyError):
    """A checkpoint or state dict does not fit what it is loaded into."""

    __str__ = Exception.__str__  # KeyError's shows the message in quotes


class CalibrationError(DistillerError, ValueError):
    """Calibration statistics are missing or belong to another model."""


class ExportError(DistillerError, ValueError):
    """A model cannot be written for the requested runtime."""


class DatasetError(DistillerError, ValueError):
    """A data set is unknown, missing or damaged; the message says how to get it."""


class ScheduleWarning(UserWarning):
    """Something in a schedule is legal but probably not what its author meant."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a schedule: ``file:line:col: path: message``; line and column count from 1.

    Line 0 stands for data that came from no file; then only the path says where it is.
    """

    source: str
    line: int
    column: int
    path: str
    message: str

    def __str__(self) -> str:
        where = f"{self.path}: " if self.path else ""
        place = f":{self.line}:{self.column}" if self.line else ""
        return f"{self.source}{place}: {where}{self.message}"


class ScheduleError(DistillerError, ValueError):
    """Everything that is wrong with one schedule, reported together.

    ``problems`` holds one :class:`Problem` for each; the message lists them one a line.
    """

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems: tuple[Problem, ...] = tuple(problems)
        super().__init__("\n".join(str(p) for p in self.problems))


def nearest(name: str, allowed: Iterable[str], *, limit: int = 3) -> list[str]:
    """The names most like ``name``, best first: ``nearest("conv.wieght", ["conv.weight"])`` -> ``["conv.weight"]``."""
    candidates = [str(a) for a in allowed]
    found = difflib.get_close_matches(str(name), candidates, n=limit, cutoff=0.6)
    if not found:
        lowered = {c.lower(): c for c in candidates}
        found = [lowered[m] for m in difflib.get_close_matches(str(name).lower(), list(lowered), n=limit, cutoff=0.6)]
    return found


def listed(names: Iterable[str], *, limit: int = 12) -> str:
    """Names as readable text, shortened after ``limit``: ``listed(["a", "b"])`` -> ``"a, b"``."""
    everything = [str(n) for n in names]
    more = len(everything) - limit
    return ", ".join(everything[:limit]) + (f", ... ({more} more)" if more > 0 else "")


def did_you_mean(name: str, allowed: Iterable[str]) -> str:
    """The end of an error message: the nearest names if any are near, else what is allowed."""
    candidates = [str(a) for a in allowed]
    close = nearest(name, candidates)
    if close:
        return f"Did you mean {' or '.join(repr(c) for c in close)}?"
    return f"allowed: {listed(sorted(candidates))}" if candidates else "allowed: none"
