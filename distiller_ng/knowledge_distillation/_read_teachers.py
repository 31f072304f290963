"""Reading which teachers a user names."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real
from typing import Any

from torch import nn

from distiller_ng.errors import ArgumentError, did_you_mean
from distiller_ng.knowledge_distillation.own_teacher import OwnTeacher
from distiller_ng.knowledge_distillation.teachers import TeacherSource
from distiller_ng.names import unwrap

__all__ = ["names_a_teacher", "read_teachers"]


def read_teachers(
    teacher: Any, ema: Any, teachers: Mapping[str, nn.Module], *, student: nn.Module | None
) -> list[TeacherSource]:
    """The sources of what a user writes: a name, ``"self"``, ``{"ema": 0.999}``, a module, or a list of these.

    Nothing written means the only one given.
    ``ema`` is short for the third. Raises :class:`ArgumentError` for a name that was not given, for both or none, and
    for the student as its own teacher.
    """
    if ema is not None:
        if teacher is not None:
            raise ArgumentError("give either teacher or ema, not both", argument=("ema",))
        return [OwnTeacher("ema", check_decay(ema, ("ema",)))]
    if teacher is None and len(teachers) == 1:
        teacher = next(iter(teachers))
    if teacher is None:
        raise ArgumentError(
            "teacher is missing: a name of file_config(..., teachers={...}), self, or {ema: 0.999}. With a recipe: "
            "modify(..., distillation_teacher=...), or the variable 'distillation: optional' to go without",
            argument=("teacher",),
        )
    several = isinstance(teacher, list | tuple)
    written = list(teacher) if several else [teacher]
    if not written:
        raise ArgumentError("teacher is an empty list: give at least one", argument=("teacher",))
    found: list[TeacherSource] = []
    for at, entry in enumerate(written):
        where: tuple[str | int, ...] = ("teacher", at) if several else ("teacher",)
        source = _source(entry, teachers, where, default=f"teacher {at}" if several else "teacher")
        if any(other.name == source.name for other in found):
            raise ArgumentError(f"teacher {source.name!r} stands twice in the list", argument=where)
        if student is not None and source.module is not None and unwrap(source.module) is unwrap(student):
            raise ArgumentError(
                "the teacher is the student itself, which changes with every step: teacher: self takes a frozen copy, "
                "ema: 0.999 a moving average",
                argument=where,
            )
        found.append(source)
    return found


def names_a_teacher(arguments: Mapping[str, Any]) -> bool:
    """Whether a distiller of these arguments has to be given models, or makes its teacher of the student itself."""
    teacher = arguments.get("teacher")
    if teacher is None:
        return arguments.get("ema") is None
    written = teacher if isinstance(teacher, list | tuple) else [teacher]
    return not all(entry == "self" or (isinstance(entry, Mapping) and set(entry) == {"ema"}) for entry in written)


def _source(
    entry: Any, teachers: Mapping[str, nn.Module], where: tuple[str | int, ...], *, default: str
) -> TeacherSource:
    if isinstance(entry, TeacherSource):
        return entry
    if isinstance(entry, nn.Module):
        known = next((name for name, module in teachers.items() if module is entry), default)
        return TeacherSource(known, entry)
    if isinstance(entry, Mapping) and set(entry) == {"ema"}:
        return OwnTeacher("ema", check_decay(entry["ema"], (*where, "ema")))
    if entry == "self":
        return OwnTeacher("self")
    if not isinstance(entry, str):
        raise ArgumentError(
            f"teacher is a name, self, {{ema: 0.999}} or a list of these; from code, a module. Got {entry!r}",
            argument=where,
        )
    if entry not in teachers:
        if entry.casefold() == "ema":
            raise ArgumentError("a moving average needs its decay: teacher: {ema: 0.999}", argument=where)
        hint = did_you_mean(entry, [*teachers, "self"]) if teachers else "No teachers were given"
        raise ArgumentError(
            f"no teacher is called {entry!r}. {hint}: file_config(..., teachers={{{entry!r}: module}}), or write self",
            argument=where,
        )
    return TeacherSource(entry, teachers[entry])


def check_decay(value: Any, argument: tuple[str | int, ...]) -> float:
    """The decay of a moving average, from 0 and below 1; raises :class:`ArgumentError`."""
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= float(value) < 1:
        raise ArgumentError(f"ema is the average's decay, from 0 and below 1 (0.999), got {value!r}", argument=argument)
    return float(value)
