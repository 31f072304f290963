"""Collecting everything that is wrong with a schedule, so that it can be reported at once (layer 4)."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any

from distiller_ng.config.marks import Mark, Marks, Path, format_path
from distiller_ng.errors import Problem, ScheduleError, ScheduleWarning

__all__ = ["DICT_SOURCE", "TEXT_SOURCE", "Report", "file_problem", "problem", "shown"]

#: What stands for the file's name when a schedule was given as a dictionary.
DICT_SOURCE = "<dict>"
#: The same, for one given as text.
TEXT_SOURCE = "<text>"
_SHOWN = 60
_PACKAGE_FOLDER = str(FilePath(__file__).parent)


def problem(source: str, mark: Mark, path: Path, message: str) -> Problem:
    """One problem; without a line (``line == 0``) it prints as ``source: path: message``."""
    return Problem(source, mark.line, mark.column, format_path(path), message)


def shown(value: Any) -> str:
    """A value as an error message shows it, shortened: ``shown([1, 2])`` -> ``"a list"``."""
    if value is None:
        return "null (nothing)"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def file_problem(source: str, message: str, mark: Mark | None = None) -> ScheduleError:
    """The error for a file that cannot be read as a schedule at all."""
    return ScheduleError([problem(source, mark or Mark(1, 1), (), message)])


@dataclass(slots=True)
class Report:
    """Problems and warnings found so far in one schedule, each with its place."""

    source: str
    marks: Marks
    problems: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)
    read_warnings: int = field(init=False)
    _seen: dict[int, set[tuple[int, int, str, str]]] = field(init=False, default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self.read_warnings = len(self.warnings)

    def error(self, path: Path, message: str, *, at_key: bool = False) -> None:
        """Note something that makes the schedule unusable."""
        self._note(self.problems, path, message, at_key)

    def warn(self, path: Path, message: str, *, at_key: bool = False) -> None:
        """Note something legal that its author probably did not mean."""
        self._note(self.warnings, path, message, at_key)

    def finish(self) -> None:
        """Raise :class:`ScheduleError` if there are problems; else emit the warnings.

        With problems only those warnings are emitted that reading the file gave: they may explain a problem, the others
        may be nothing but its consequence.
        """
        if self.problems:
            emit(self.warnings[: self.read_warnings])
            raise ScheduleError(sorted(self.problems, key=lambda p: (p.line, p.column)))
        emit(self.warnings)

    def _note(self, notes: list[Problem], path: Path, message: str, at_key: bool) -> None:
        path = self.marks.written(path)
        mark = self.marks.of_key(path) if at_key else self.marks.of_value(path)
        note = problem(self.source, mark, path, message)
        seen = self._seen.setdefault(id(notes), {_key(one) for one in notes})
        if _key(note) not in seen:
            seen.add(_key(note))
            notes.append(note)


def _key(note: Problem) -> tuple[int, int, str, str]:
    return note.line, note.column, note.path, note.message


def emit(notes: Iterable[Problem]) -> None:
    """Warn once for each note, blaming the line of the user's program that asked for the schedule."""
    level = _callers_level()
    for note in notes:
        warnings.warn(str(note), ScheduleWarning, stacklevel=level)


def _callers_level() -> int:
    """How many frames above :func:`emit` the first one outside this package is (as ``stacklevel`` counts)."""
    frame = sys._getframe(1)
    level = 1
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE_FOLDER):
        frame = frame.f_back
        level += 1
    return level
