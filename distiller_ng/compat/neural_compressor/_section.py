"""Reading one mapping of a configuration value by value, noting every mistake with its place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from distiller_ng.config.marks import Path
from distiller_ng.config.problems import Report, shown
from distiller_ng.errors import did_you_mean, listed

__all__ = ["Section"]

_NOTHING: Mapping[str, Any] = {}


@dataclass(slots=True)
class Section:
    """A mapping at ``path``; a wrong value is noted in ``report`` and its default returned, so that reading goes on."""

    report: Report
    path: Path = ()
    values: Mapping[Any, Any] = field(default_factory=lambda: _NOTHING)

    @classmethod
    def of(cls, report: Report, path: Path, value: Any) -> Section:
        """The mapping ``value``; nothing (an empty section in a file) is an empty one."""
        if value is not None and not isinstance(value, Mapping):
            report.error(path, f"expected a mapping (keys and values), got {shown(value)}")
        return cls(report, path, value if isinstance(value, Mapping) else _NOTHING)

    def __contains__(self, name: str) -> bool:
        return name in self.values

    def error(self, name: str, message: str, *, at_key: bool = False) -> None:
        """Note a mistake at the value (or the key) called ``name``."""
        self.report.error((*self.path, name), message, at_key=at_key)

    def only(self, *names: str) -> Section:
        """Note every other key; returns the section."""
        for key in self.values:
            if key not in names:
                where = (*self.path, key if isinstance(key, str | int) else str(key))
                self.report.error(where, f"unknown key {key!r}. {did_you_mean(str(key), names)}", at_key=True)
        return self

    def section(self, name: str) -> Section:
        """The mapping called ``name``, empty where there is none."""
        return Section.of(self.report, (*self.path, name), self.values.get(name))

    def whole(self, name: str, default: int, *, least: int) -> int:
        """A whole number from ``least`` on."""
        value = self.values.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            self.error(name, f"expected a whole number from {least} on, got {shown(value)}")
            return default
        return value

    def real(self, name: str, default: float, *, least: float = 0.0, above: bool = False) -> float:
        """A number from ``least`` on, or above it."""
        value = self.values.get(name, default)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not (value > least if above else value >= least) or value == float("inf"):
            self.error(name, f"expected a number {'above' if above else 'from'} {least:g}, got {shown(value)}")
            return default
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        """True or false."""
        value = self.values.get(name, default)
        if not isinstance(value, bool):
            self.error(name, f"expected true or false, got {shown(value)}")
            return default
        return value

    def text(self, name: str, default: str, *, allowed: Iterable[str] = ()) -> str:
        """A text, one of ``allowed`` where given."""
        value, names = self.values.get(name, default), list(allowed)
        if not isinstance(value, str):
            self.error(name, f"expected a text, got {shown(value)}")
            return default
        if names and value not in names:
            self.error(name, f"{value!r} is not known here. {did_you_mean(value, names)}")
            return default
        return value

    def numbers(self, name: str) -> tuple[float, ...]:
        """A list of numbers, empty where there is none."""
        value = self.values.get(name, [])
        if not isinstance(value, list | tuple) or any(
            isinstance(item, bool) or not isinstance(item, int | float) for item in value
        ):
            self.error(name, f"expected a list of numbers, got {shown(value)}")
            return ()
        return tuple(float(item) for item in value)

    def choice(self, name: str, allowed: Iterable[str]) -> tuple[str, Section] | None:
        """``name`` holds exactly one key, which is one of ``allowed``: that key and what stands below it."""
        below, names = self.section(name), list(allowed)
        if len(below.values) != 1:
            found = listed(map(str, below.values)) or "none"
            self.error(name, f"exactly one is expected here, of {listed(names)}; got {found}", at_key=True)
            return None
        key = str(next(iter(below.values)))
        if key not in names:
            below.error(key, f"{key!r} is not built here: {listed(names)}", at_key=True)
            return None
        return key, below.section(key)
