"""Distiller's schedule YAML: sections of named definitions, and a list of policies (layer 4)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from distiller_ng.config.documents import Document, load_document
from distiller_ng.config.frontends.base import FRONTENDS, Frontend
from distiller_ng.config.kinds import KINDS
from distiller_ng.config.problems import file_problem
from distiller_ng.config.recognition import describe, recognize
from distiller_ng.config.spec import ScheduleSpec
from distiller_ng.config.structure import POLICIES, VERSION, read_spec
from distiller_ng.errors import ArgumentError, ScheduleError, nearest

__all__ = ["ScheduleYaml"]

_SECTIONS = f"A schedule has at least one of the sections {', '.join([*KINDS, POLICIES])}"


@FRONTENDS.register("schedule_yaml")
class ScheduleYaml(Frontend):
    """The native language::

    pruners:
      fine: {class: AutomatedGradualPruner, initial_sparsity: 0.05, final_sparsity: 0.9, weights: [fc.weight]}
    policies:
      - pruner: {instance_name: fine}
        starting_epoch: 0
        ending_epoch: 30
        frequency: 2
    """

    priority: ClassVar[int] = 1000

    def accepts(self, path: Path | None, text: str) -> bool:
        """Everything: what is no schedule is refused by :meth:`parse`, which says what it seems to be."""
        return True

    def parse(self, text: str, *, source: str, recipe_args: Any = None) -> ScheduleSpec:
        """The spec of a schedule file; raises :class:`ScheduleError` for what is no schedule.

        Schedules have no variables: :class:`ArgumentError` for values of such.
        """
        if recipe_args:
            message = f"{source}: recipe_args are for recipes; a schedule has no variables"
            raise ArgumentError(message, argument=("recipe_args",))
        document = load_document(text, source)
        seems = _what_else(document, text)
        if seems is not None:
            raise file_problem(source, f"{seems} {_SECTIONS}")
        if document.problems:
            raise ScheduleError(document.problems)
        spec = read_spec(document.data, source=source, marks=document.marks, text=text)
        return _with_warnings(spec, document)


def _what_else(document: Document, text: str) -> str | None:
    """What a document without any section seems to be; None for a schedule, of misspelt sections perhaps."""
    data, sections = document.data, [*KINDS, POLICIES]
    if not isinstance(data, Mapping):
        return describe(data, text)
    if list(data) == [VERSION] or any(key in sections for key in data):
        return None
    known = recognize(data)
    if known is None and any(nearest(key, sections) for key in data if isinstance(key, str)):
        return None
    return known or describe(data, text)


def _with_warnings(spec: ScheduleSpec, document: Document) -> ScheduleSpec:
    return replace(spec, warnings=(*document.warnings, *spec.warnings))
