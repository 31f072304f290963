"""The functions that load schedules: read, check everything, and only then touch anything (layer 4)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from distiller_ng.config.classes import INJECTABLE
from distiller_ng.config.components import Builder
from distiller_ng.config.documents import read_text
from distiller_ng.config.frontends.base import frontend_for
from distiller_ng.config.frontends.recipe.variables import RecipeArgs
from distiller_ng.config.kinds import KINDS
from distiller_ng.config.loader import OnUnmatched, Options, ScheduleLoader
from distiller_ng.config.marks import NOWHERE, Marks, format_path
from distiller_ng.config.plain import plain_data
from distiller_ng.config.problems import DICT_SOURCE, TEXT_SOURCE, Report, file_problem, shown
from distiller_ng.config.spec import ScheduleSpec
from distiller_ng.config.structure import read_spec
from distiller_ng.core.context import Compat
from distiller_ng.core.scheduler import CompressionScheduler
from distiller_ng.errors import ArgumentError, listed
from distiller_ng.graph.inputs import ExampleInputsLike
from distiller_ng.names import ParameterIndex

__all__ = ["config_component_from_file_by_class", "dict_config", "file_config", "read_schedule"]

_ZOO = "zoo:"

_ZOO = "zoo:"


def file_config(
    model: nn.Module,
    optimizer: Optimizer | None,
    filename: str | os.PathLike[str],
    scheduler: CompressionScheduler | None = None,
    resumed_epoch: int | None = None,
    *,
    on_unmatched: OnUnmatched = "error",
    example_inputs: ExampleInputsLike | None = None,
    allow_user_classes: bool = False,
    teachers: Mapping[str, nn.Module] | None = None,
    compat: Compat | None = None,
    recipe_args: RecipeArgs = None,
) -> CompressionScheduler:
    """Load a schedule file, or a recipe, for ``model`` and return the scheduler that runs it.

    ``filename``: a schedule (YAML), a SparseML recipe (YAML, or Markdown with front matter), or the text of one: any
    string with a line break. ``recipe_args``: values for a recipe's variables, ``{"num_epochs": 20}``, JSON text or
    ``"num_epochs=20,init_lr=0.01"``.

    ``scheduler``: add the file's policies to this one instead of a new one; the one ``load_checkpoint`` returned then
    continues its run exactly if this is the run's schedule, else a warning says why it keeps only the masks.
    ``resumed_epoch``: the last epoch of the run that is continued (``start_epoch - 1``); it gives a fresh optimizer the
    learning rates of the next one. ``on_unmatched``: ``"warn"``
    leaves out names that match no parameter. ``example_inputs`` (a tuple) is what components need that follow the
    model's data flow. ``compat="distiller"`` (in the file: ``compat: distiller``) gives unchanged files the
    ancestor's rule for coupled layers; ``"sparseml"`` gives recipes that library's results where ours differ.
    ``allow_user_classes`` imports classes given as dotted paths. ``teachers`` are
    the models that ``distillers`` name: ``{"resnet56": module}``.

    Raises :class:`ScheduleError` with everything that is wrong, each as ``file:line:column: path: message``; nothing
    on the model or the optimizer has changed then. What is legal but odd is a :class:`ScheduleWarning`. Example::

        scheduler = distiller.file_config(model, optimizer, "resnet20.schedule_agp.yaml")
    """
    spec = read_schedule(filename, recipe_args=recipe_args)
    options = Options(
        scheduler, resumed_epoch, on_unmatched, example_inputs, allow_user_classes, teachers or {}, compat
    )
    return ScheduleLoader(model, optimizer, spec, options).load()


def dict_config(
    model: nn.Module,
    optimizer: Optimizer | None,
    sched_dict: Mapping[str, Any],
    scheduler: CompressionScheduler | None = None,
    resumed_epoch: int | None = None,
    *,
    on_unmatched: OnUnmatched = "error",
    example_inputs: ExampleInputsLike | None = None,
    allow_user_classes: bool = False,
    teachers: Mapping[str, nn.Module] | None = None,
    compat: Compat | None = None,
) -> CompressionScheduler:
    """Load a schedule given as a dictionary of the shape a file has; it is not changed.

    Arguments and errors are those of :func:`file_config`; problems are located by path. Example::

        dict_config(model, optimizer, {
            "pruners": {"p": {"class": "SparsityLevelParameterPruner", "levels": {"fc.weight": 0.5}}},
            "policies": [{"pruner": {"instance_name": "p"}, "epochs": [0]}],
        })
    """
    data = plain_data(sched_dict, DICT_SOURCE)
    if not isinstance(data, dict):
        raise file_problem(DICT_SOURCE, f"a schedule is a mapping of sections, got {shown(sched_dict)}", NOWHERE)
    options = Options(
        scheduler, resumed_epoch, on_unmatched, example_inputs, allow_user_classes, teachers or {}, compat
    )
    return ScheduleLoader(model, optimizer, read_spec(data, source=DICT_SOURCE, marks=Marks()), options).load()


def config_component_from_file_by_class(
    model: nn.Module, filename: str | os.PathLike[str], class_name: str, **extra_args: Any
) -> Any:
    """Build the first definition of ``class_name`` in a schedule file; policies and other definitions are ignored.

    ``extra_args`` are constructor arguments over those of the file, or what the library would inject (``optimizer``).
    Raises :class:`ScheduleError` when there is no such definition or it is wrong, and :class:`ArgumentError` for an
    extra argument the class does not take. Example::

        pruner = distiller.config_component_from_file_by_class(model, "agp.yaml", "AutomatedGradualPruner")
    """
    spec = read_schedule(filename)
    found = [component for component in spec.components if component.class_name == class_name]
    if not found:
        classes = listed(dict.fromkeys(component.class_name for component in spec.components)) or "none"
        raise file_problem(spec.source, f"no definition has the class {class_name!r}; classes in this file: {classes}")
    chosen = found[0]
    report = Report(spec.source, spec.marks)
    inside = format_path(chosen.path)
    report.problems += [problem for problem in spec.problems if problem.path.startswith(inside)]
    report.warnings += [warning for warning in spec.warnings if warning.path.startswith(inside)]
    if len(found) > 1:
        others = listed(repr(component.name) for component in found[1:])
        report.warn(chosen.path, f"{chosen.name!r} is taken; {others} {'have' if found[2:] else 'has'} the same class")
    builder = Builder(model, ParameterIndex(model), extra_args.get("optimizer"), report, extra_args)
    takes = builder.find(chosen, KINDS[chosen.section])
    unknown = [] if takes is None else [n for n in extra_args if n not in takes.arguments and n not in INJECTABLE]
    if unknown:
        raise ArgumentError(f"{class_name} takes no argument {listed(map(repr, unknown))}", argument=unknown[:1])
    component = builder.build(chosen)
    report.finish()
    return component


def read_schedule(filename: str | os.PathLike[str], *, recipe_args: RecipeArgs = None) -> ScheduleSpec:
    """Read a schedule or recipe without a model: what it says, where, and what is wrong with its shape.

    A string with a line break is the text itself. Raises :class:`ScheduleError` for a file that cannot be read as a
    schedule at all, and :class:`ArgumentError` for ``recipe_args`` that the recipe has no variables for.
    """
    given = {} if recipe_args is None else {"recipe_args": recipe_args}
    if isinstance(filename, str) and ("\n" in filename or "\r" in filename):
        return frontend_for(None, filename).parse(filename, source=TEXT_SOURCE, **given)
    source = os.fspath(filename)
    if source.startswith(_ZOO):
        raise file_problem(source, "SparseZoo has been shut down: give the recipe's file, or its text")
    text = read_text(source, source)
    return frontend_for(Path(source), text).parse(text, source=source, **given)
