"""Checking the arguments a definition gives against what its class takes (layer 4)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

from distiller_ng.config.classes import ClassTable, ComponentClass
from distiller_ng.config.kinds import NESTED
from distiller_ng.config.marks import Path
from distiller_ng.config.problems import Report, shown
from distiller_ng.config.signatures import Argument
from distiller_ng.config.validation import check_value
from distiller_ng.errors import ArgumentError, did_you_mean, listed, nearest

__all__ = ["WrittenArguments", "check_arguments", "nested_table"]


@dataclass(slots=True)
class WrittenArguments:
    """Arguments that are sound so far, from which bad entries are taken out to find what else is wrong.

    ``nested`` names arguments that are definitions of their own. ``rejected`` are those left out as a whole: without
    them a constructor may complain about things that are no fault of the file. ``written_as`` maps arguments to the
    misspelt names they were found under. Positions in lists that lost entries are translated back to the file's.
    """

    values: dict[str, Any] = field(default_factory=dict)
    nested: frozenset[str] = frozenset()
    rejected: set[str] = field(default_factory=set)
    written_as: dict[str, str] = field(default_factory=dict)
    _positions: dict[str, list[int]] = field(default_factory=dict)

    def original(self, argument: Path) -> Path:
        """The path in the file of a path in :attr:`values`."""
        if not argument:
            return argument
        name, *below = argument
        kept = self._positions.get(str(name))
        if kept is not None and below and isinstance(below[0], int) and below[0] < len(kept):
            below[0] = kept[below[0]]
        return (self.written_as.get(str(name), name), *below)

    def is_credible(self, argument: Path) -> bool:
        """Whether a constructor's complaint about ``argument`` holds although arguments were rejected."""
        return not self.rejected or bool(argument and argument[0] in self.values)

    def drop(self, argument: Path) -> bool:
        """Take out the entry of a map, or the text of a list, that ``argument`` points into; False if there is none."""
        if len(argument) < 2 or argument[0] in self.nested:
            return False
        name, part = str(argument[0]), argument[1]
        value = self.values.get(name)
        if isinstance(value, Mapping) and part in value:
            self.values[name] = {key: entry for key, entry in value.items() if key != part}
        elif isinstance(value, list | tuple) and isinstance(part, int) and part < len(value):
            if not isinstance(value[part], str):
                return False  # a pair of numbers, not a list of names
            kept = self._positions.setdefault(name, list(range(len(value))))
            self.values[name] = [entry for at, entry in enumerate(value) if at != part]
            del kept[part]
        else:
            return False
        return bool(self.values[name])


def check_arguments(
    found: ComponentClass, given: Mapping[str, Any], path: Path, report: Report
) -> WrittenArguments | None:
    """The arguments that can be used; unknown, injected and missing ones and wrong types are reported.

    None stands for a class that cannot be built at all, because something it needs is missing or wrong.
    """
    meant = _check_names(found, given, path, report)
    nested = frozenset(name for name, argument in found.arguments.items() if nested_table(argument) is not None)
    written = WrittenArguments(nested=nested, written_as={name: key for key, name in meant.items() if key != name})
    for key, name in meant.items():
        argument = found.arguments[name]
        if not _check_one(argument, given[key], written, (*path, key), report):
            written.values.pop(name, None)
            written.rejected.add(name)
    required = [name for name, argument in found.arguments.items() if argument.required]
    missing = [name for name in required if name not in meant.values()]
    if missing:
        report.error(path, f"{found.name} needs {listed(missing)}", at_key=True)
    return written if all(name in written.values for name in required) else None


def _check_names(found: ComponentClass, given: Mapping[str, Any], path: Path, report: Report) -> dict[str, str]:
    """Report arguments the class does not take; ``{name as written: the argument that is meant}`` of the others."""
    meant = {name: name for name in given if name in found.arguments}
    for name in given:
        if name in found.injected or name in found.reserved:
            report.error((*path, name), f"{name} is injected by the library: leave it out", at_key=True)
        elif name in found.ignored:
            report.warn((*path, name), f"{name} is ignored: {found.ignored[name]}", at_key=True)
        elif name not in found.arguments:
            hint = did_you_mean(name, found.arguments)
            report.error((*path, name), f"{found.name} has no argument {name!r}. {hint}", at_key=True)
            free = [argument for argument in found.arguments if argument not in meant.values()]
            meant |= dict.fromkeys([name], close[0]) if (close := nearest(name, free, limit=1)) else {}
    return meant


def _check_one(argument: Argument, value: Any, written: WrittenArguments, path: Path, report: Report) -> bool:
    """Check one value and keep what is sound of it; False if nothing is."""
    table = nested_table(argument)
    if table is not None and isinstance(value, Mapping):
        written.values[argument.name] = dict(value)
        return _check_nested(table, value, path, report)
    checked, messages = check_value(argument, value)
    for below, message in messages:
        report.error((*path, *below), message)
    if not messages:
        written.values[argument.name] = checked
        return True
    written.values[argument.name] = dict(value) if isinstance(value, Mapping) else value
    entries = {below[:1] for below, _ in messages}
    # From the end of a list, so that positions stay right.
    return all(
        entry and written.drop((argument.name, *entry))
        for entry in sorted(entries, key=lambda e: e[0] if e and isinstance(e[0], int) else -1, reverse=True)
    )


def nested_table(argument: Argument) -> ClassTable | None:
    """Where the class of a nested definition is looked up, for an argument that takes one (``schedule``)."""
    members = (argument.annotation, *get_args(argument.annotation))
    return next((table for kind, table in NESTED.items() if kind in members), None)


def _check_nested(table: ClassTable, value: Mapping[Any, Any], path: Path, report: Report) -> bool:
    given = {key: entry for key, entry in value.items() if key != "class" and isinstance(key, str)}
    name = value.get("class")
    if not isinstance(name, str):
        got = f", got {shown(name)}" if "class" in value else ""
        report.error(path, f"a class is needed here: {listed(table.names())}{got}", at_key=True)
        return False
    try:
        found = table.get(name)
    except ArgumentError as error:
        report.error((*path, "class"), str(error))
        return False
    before = len(report.problems)
    check_arguments(found, given, path, report)
    return len(report.problems) == before
