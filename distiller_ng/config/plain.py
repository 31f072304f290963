"""A private copy of a dictionary that describes a schedule, in the types a YAML file would give (layer 4)."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

from distiller_ng.config.documents import MAX_DEPTH, MAX_NODES
from distiller_ng.config.marks import NOWHERE
from distiller_ng.config.problems import file_problem

__all__ = ["plain_data"]


def plain_data(value: Any, source: str) -> Any:
    """Copy mappings and lists at any depth; numpy's numbers become Python's, other objects stay what they are.

    >>> plain_data({"epochs": range(3)}, "demo")
    {'epochs': [0, 1, 2]}

    Raises :class:`ScheduleError` for data that contains itself or is far larger than any schedule.
    """
    return _Copier(source).copy(value, 0)


class _Copier:
    def __init__(self, source: str) -> None:
        self._source = source
        self._nodes = 0

    def copy(self, value: Any, depth: int) -> Any:
        self._nodes += 1
        if depth > MAX_DEPTH or self._nodes > MAX_NODES:
            message = f"more than {MAX_DEPTH} levels or {MAX_NODES} values (does the data contain itself?)"
            raise file_problem(self._source, message, NOWHERE)
        if isinstance(value, Mapping):
            return {key: self.copy(entry, depth + 1) for key, entry in value.items()}
        if isinstance(value, list | tuple | range):
            return [self.copy(entry, depth + 1) for entry in value]
        if isinstance(value, bool | int | float | str) or value is None:
            return value
        if isinstance(value, Integral):
            return int(value)
        return float(value) if isinstance(value, Real) else value
