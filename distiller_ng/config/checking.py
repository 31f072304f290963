"""Checking schedules without loading them: every problem as data, with a model or without (layer 4)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, Optimizer

from distiller_ng.config.api import read_schedule
from distiller_ng.config.frontends.recipe.variables import RecipeArgs
from distiller_ng.config.loader import Options, ScheduleLoader
from distiller_ng.errors import Problem, ScheduleError
from distiller_ng.graph.inputs import ExampleInputsLike
from distiller_ng.knowledge_distillation._read_teachers import names_a_teacher

__all__ = ["ScheduleCheck", "check_schedule"]


@dataclass(frozen=True, slots=True)
class ScheduleCheck:
    """What is wrong (``problems``) and what is odd (``warnings``) in one file, in the order of its lines.

    ``unchecked``: what could not be looked at, one sentence each. ``str()``: one line a finding.
    """

    source: str
    problems: tuple[Problem, ...] = ()
    warnings: tuple[Problem, ...] = ()
    unchecked: tuple[str, ...] = ()

    @property
    def is_sound(self) -> bool:
        """Whether the schedule would load, as far as it was looked at."""
        return not self.problems

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [*map(str, self.problems), *(f"{warning} (warning)" for warning in self.warnings)]
        lines += [f"{self.source}: {note}" for note in self.unchecked]
        return "\n".join(lines)


def check_schedule(
    filename: str | os.PathLike[str],
    model: nn.Module | None = None,
    optimizer: Optimizer | None = None,
    *,
    example_inputs: ExampleInputsLike | None = None,
    allow_user_classes: bool = False,
    teachers: Mapping[str, nn.Module] | None = None,
    recipe_args: RecipeArgs = None,
) -> ScheduleCheck:
    """Everything that is wrong or odd in a schedule or recipe; nothing is raised for it, and nothing changes.

    With ``model``, what ``file_config`` checks: names, patterns, shapes, conflicts. Without, everything that needs no
    model: sections, classes, arguments and their values, windows, whether patterns can be read. ``optimizer``: SGD
    with momentum if left out, as LR schedulers are tried on it. Definitions that need teachers are read but not built
    if ``teachers`` is left out. Other arguments are those of ``file_config``. Example::

        check = check_schedule("agp.yaml")
        print(check)          # agp.yaml:4:25: pruners.fine.final_sparsity: final_sparsity must be ..., got 1.5
        check.is_sound        # False
    """
    unknown = frozenset(name for name, value in (("model", model), ("teachers", teachers)) if value is None)
    subject = nn.Module() if model is None else model
    try:
        spec = read_schedule(filename, recipe_args=recipe_args)
    except ScheduleError as error:
        return ScheduleCheck(error.problems[0].source, error.problems)
    options = Options(
        example_inputs=example_inputs,
        allow_user_classes=allow_user_classes,
        teachers=teachers or {},
        unknown=unknown,
    )
    report = ScheduleLoader(subject, optimizer or _optimizer(subject), spec, options).review()
    notes = ["names and shapes were not checked: no model was given"] if model is None else []
    if teachers is None and any(names_a_teacher(one.args) for one in spec.section("distillers")):
        notes.append("distillers were checked without their teachers")
    return ScheduleCheck(spec.source, _ordered(report.problems), _ordered(report.warnings), tuple(notes))


def _ordered(found: list[Problem]) -> tuple[Problem, ...]:
    return tuple(sorted(found, key=lambda problem: (problem.line, problem.column)))


def _optimizer(model: nn.Module) -> Optimizer:
    parameters = list(model.parameters()) or [nn.Parameter(torch.zeros(1))]
    return SGD(parameters, lr=0.1, momentum=0.9)
