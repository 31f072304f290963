"""Checking the arguments a definition gives against what its class takes (layer 4)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
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
    """The arguments of a definition that are sound so far, and how they differ from what the file says.

    ``nested`` names arguments that are definitions of their own. ``pending`` are paths of what is missing or of a wrong
    type, and not among ``values`` as written; ``replaced`` are paths whose values were left out, or where others stand
    in for the user's (``has_examples``). ``written_as`` maps arguments to the misspelt names they were found under.
    Positions in lists that lost entries are translated back to the file's.
    """

    values: dict[str, Any] = field(default_factory=dict)
    nested: frozenset[str] = frozenset()
    pending: list[Path] = field(default_factory=list)
    replaced: frozenset[Path] = frozenset()
    has_examples: bool = False
    written_as: dict[str, str] = field(default_factory=dict)
    _positions: dict[str, list[int]] = field(default_factory=dict)

    def copy(self) -> WrittenArguments:
        """Another one that can be changed."""
        positions = {name: list(kept) for name, kept in self._positions.items()}
        return replace(self, values=dict(self.values), _positions=positions)

    def adopt(self, other: WrittenArguments) -> None:
        """Take over the values of a copy."""
        self.values, self._positions = other.values, other._positions
        self.pending, self.replaced = [], other.replaced

    def changed(self, path: Path, values: Mapping[str, Any], *, example: bool = True) -> WrittenArguments:
        """A copy with other values, where an example stands at ``path``, or nothing."""
        has_examples = self.has_examples or example
        result = replace(self.copy(), replaced=self.replaced | {path}, has_examples=has_examples)
        result.values = dict(values)
        return result

    def original(self, argument: Path) -> Path:
        """The path in the file of a path in :attr:`values`."""
        if not argument:
            return argument
        name, *below = argument
        kept = self._positions.get(str(name))
        if kept is not None and below and isinstance(below[0], int) and below[0] < len(kept):
            below[0] = kept[below[0]]
        return (self.written_as.get(str(name), name), *below)

    def at(self, path: Path) -> Any:
        """The value at a path; None if there is none."""
        here: Any = self.values
        for part in path:
            if isinstance(here, Mapping):
                here = here.get(part)
            elif isinstance(here, list | tuple) and isinstance(part, int) and part < len(here):
                here = here[part]
            else:
                return None
        return here

    def holds(self, path: Path) -> bool:
        """Whether there is a value at ``path``: nothing is said of what nobody wrote."""
        return bool(path) and path[0] in self.values and (path[0] not in self.nested or self.at(path[:2]) is not None)

    def is_made_up(self, path: Path) -> bool:
        """Whether a complaint about ``path`` is about an example, or may well be."""
        if not path:
            return bool(self.replaced)
        inside = path[0] in self.nested
        return any(r == path[: len(r)] or (inside and r[: len(path)] == path) for r in self.replaced)

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


def check_arguments(found: ComponentClass, given: Mapping[str, Any], path: Path, report: Report) -> WrittenArguments:
    """The arguments that can be used; unknown, injected and missing ones and wrong types are reported."""
    meant = _check_names(found, given, path, report)
    nested = frozenset(name for name, argument in found.arguments.items() if nested_table(argument) is not None)
    written = WrittenArguments(nested=nested, written_as={name: key for key, name in meant.items() if key != name})
    for key, name in meant.items():
        argument = found.arguments[name]
        if not _check_one(argument, given[key], written, (*path, key), report):
            written.values.pop(name, None)
            written.pending.append((name,))
    required = [name for name, argument in found.arguments.items() if argument.required]
    missing = [name for name in required if name not in meant.values()]
    if missing:
        report.error(path, f"{found.name} needs {listed(missing)}", at_key=True)
        written.pending += [(name,) for name in missing]
    return written


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
        inner = _check_nested(table, value, path, report)
        if inner is None:
            return False
        written.values[argument.name] = {"class": value["class"], **inner.values}
        written.pending += [(argument.name, *pending) for pending in inner.pending]
        return True
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


def _check_nested(table: ClassTable, value: Mapping[Any, Any], path: Path, report: Report) -> WrittenArguments | None:
    """Check a definition inside another; None if its class is not known."""
    given = {key: entry for key, entry in value.items() if key != "class" and isinstance(key, str)}
    name = value.get("class")
    if not isinstance(name, str):
        got = f", got {shown(name)}" if "class" in value else ""
        report.error(path, f"a class is needed here: {listed(table.names())}{got}", at_key=True)
        return None
    try:
        found = table.get(name)
    except ArgumentError as error:
        report.error((*path, "class"), str(error))
        return None
    return check_arguments(found, given, path, report)
