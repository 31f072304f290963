"""``start_epoch``, ``end_epoch`` and ``update_frequency`` of a modifier, checked (layer 4)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any

from distiller_ng.config.frontends.recipe.variables import UNRESOLVED
from distiller_ng.config.marks import Path
from distiller_ng.config.problems import Report, shown
from distiller_ng.core.window import EVERY_STEP, FROM_FIRST_STEP, OPEN_END
from distiller_ng.registry import RecipeTag

__all__ = ["END", "FREQUENCY", "START", "Timing", "latest_epoch", "number_of", "read_timing"]

START, END, FREQUENCY = "start_epoch", "end_epoch", "update_frequency"
_FIELDS = {"starting_epoch": START, "ending_epoch": END, "frequency": FREQUENCY}
_SAFE = 0.0  # stands in for a time that was refused


@dataclass(frozen=True, slots=True)
class Timing:
    """When a modifier acts, in epochs; -1 as recipes use it. ``frequency`` 0: at start and end only."""

    start: float
    end: float
    frequency: float

    @property
    def order(self) -> tuple[float, float]:
        """What modifiers are sorted by: the end, never last, then the start."""
        return (math.inf if self.end == OPEN_END else self.end, self.start)

    def for_policy(self) -> dict[str, Any]:
        """The keys of a schedule's policy."""
        return {
            "starting_epoch": self.start,
            "ending_epoch": self.end,
            "frequency": self.frequency,
            "trigger": "step",
        }

    @staticmethod
    def paths(path: Path) -> dict[str, Path]:
        """Where those keys stand in the recipe."""
        return {
            key: (*path, _FIELDS.get(key, START)) for key in ("starting_epoch", "ending_epoch", "frequency", "trigger")
        }


def read_timing(tag: RecipeTag, properties: Mapping[str, Any], path: Path, run_end: float, report: Report) -> Timing:
    """The times of one modifier; what is wrong with them is reported.

    ``run_end``: the last epoch of the run, for rules that end there; -1 if nothing says it.
    """
    reader = _Reader(tag, properties, path, report)
    start = reader.start()
    end = OPEN_END if tag.ends == "ignored" else reader.end(max(start, 0.0), run_end)
    return Timing(start, float(end), reader.frequency())


@dataclass(frozen=True, slots=True)
class _Reader:
    tag: RecipeTag
    properties: Mapping[str, Any]
    path: Path
    report: Report

    def start(self) -> float:
        start = self._number(START, self.tag.start_epoch)
        if start is not None and start < 0 and start != FROM_FIRST_STEP:
            self._error(START, f"start_epoch is 0 or more, or -1 for the first step; got {start:g}")
            return _SAFE
        return _SAFE if start is None else start

    def end(self, first: float, run_end: float) -> float:
        tag = self.tag
        end = self._number(END, OPEN_END if tag.ends == "never" else tag.end_epoch)
        if end is None:
            return OPEN_END
        if tag.ends == "never" and end != OPEN_END:
            self._error(END, f"{tag.tag} never ends: leave end_epoch out")
        elif tag.ends == "run" and end == OPEN_END:
            if run_end > first:
                return run_end
            self._error(END, "end_epoch -1 is the last epoch of the run, but no other modifier says which")
        elif end == OPEN_END and tag.ends in ("from_start", "after_start"):
            self._error(END, f"{tag.tag} needs an end_epoch; it cannot be -1")
        elif end != OPEN_END and (end < first or (end == first and tag.ends in ("after_start", "run"))):
            relation = "before" if tag.ends in ("open", "from_start") else "before or at"
            self._error(END, f"end_epoch ({end:g}) lies {relation} start_epoch ({first:g})")
        else:
            return end
        return OPEN_END

    def frequency(self) -> float:
        tag = self.tag
        if tag.fixed_frequency:
            return float(EVERY_STEP if tag.update_frequency is None else tag.update_frequency)
        frequency = self._number(FREQUENCY, tag.update_frequency)
        if frequency is None:
            return float(EVERY_STEP)
        if self.properties.get(FREQUENCY) is not None and frequency <= 0 and frequency != EVERY_STEP:
            self._error(FREQUENCY, f"update_frequency is above 0, or -1 for every step; got {frequency:g}")
            return float(EVERY_STEP)
        return frequency

    def _number(self, name: str, default: float | None) -> float | None:
        value = self.properties.get(name)
        if value is None:
            if default is None:
                self.report.error(self.path, f"{self.tag.tag} needs {name}", at_key=True)
            return default
        number = number_of(value)
        if number is None and value is not UNRESOLVED:
            self._error(name, f"{name} is a number of epochs, got {shown(value)}")
        return number

    def _error(self, name: str, message: str) -> None:
        self.report.error((*self.path, name), message)


def number_of(value: Any) -> float | None:
    """A finite number, or one written as text; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, Real | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def latest_epoch(properties: Mapping[str, Any]) -> int:
    """The larger of a modifier's start and end, rounded up; -1 if it has neither."""
    values = [number_of(properties.get(name)) for name in (START, END)]
    return max([math.ceil(value) for value in values if value is not None and value > -1] or [-1])
