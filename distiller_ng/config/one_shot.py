"""Compression without training, in one call (layer 4)."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from distiller_ng.config.api import read_schedule
from distiller_ng.config.frontends.recipe.variables import RecipeArgs
from distiller_ng.config.loader import OnUnmatched, Options, ScheduleLoader
from distiller_ng.config.marks import NOWHERE, Marks
from distiller_ng.config.parts import stages_of
from distiller_ng.config.plain import plain_data
from distiller_ng.config.problems import DICT_SOURCE, file_problem, shown
from distiller_ng.config.spec import ScheduleSpec
from distiller_ng.config.structure import read_spec
from distiller_ng.core.samples import GradientSampler, GradientSamplerLike, Loss
from distiller_ng.core.scheduler import CompressionScheduler
from distiller_ng.core.summary import CompressionSummary
from distiller_ng.errors import ArgumentError
from distiller_ng.graph.inputs import ExampleInputsLike

__all__ = ["apply"]


def apply(
    model: nn.Module,
    recipe: str | os.PathLike[str] | Mapping[str, Any] | ScheduleSpec,
    calibration_loader: GradientSamplerLike | Iterable[Any] | None = None,
    *,
    loss: Loss | None = None,
    recipe_args: RecipeArgs = None,
    example_inputs: ExampleInputsLike | None = None,
    teachers: Mapping[str, nn.Module] | None = None,
    on_unmatched: OnUnmatched = "error",
    allow_user_classes: bool = False,
) -> CompressionSummary:
    """Apply a recipe to a trained ``model`` at once, in place: every pruner prunes to the level its window ends with.

    ``recipe``: a schedule or recipe file, the text of one, or a dictionary of the shape a schedule has; its times do
    not matter, only its order does, and a recipe's stages follow each other. ``calibration_loader``: minibatches for
    what looks at data (``(inputs..., target)``, mappings, or inputs alone), or a :class:`GradientSampler`;
    ``loss(outputs, target)`` where gradients are needed, guessed if left out. ``recipe_args``, ``on_unmatched`` and the
    other arguments are those of :func:`file_config`. Returns planned and achieved sparsity (of the last stage).

    Magnitude pruning needs no data, :class:`WandaPruner` and :class:`SparseGPTPruner` inputs, :class:`OBSPruner` and
    :class:`MFACPruner` inputs and targets. Raises :class:`ScheduleError` for a recipe that does not fit the model, and
    :class:`CalibrationError` where data is needed and there is none. Example::

        summary = distiller.apply(model, {
            "pruners": {"p": {"class": "SparseGPTPruner", "mask_type": "2:4"}},
            "policies": [{"pruner": {"instance_name": "p"}, "epochs": [0]}],
        }, calibration_loader)
        print(summary)
    """
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    sampler = _sampler(calibration_loader, loss)
    options = {"on_unmatched": on_unmatched, "allow_user_classes": allow_user_classes, "teachers": teachers or {}}

    def run(part: ScheduleSpec) -> CompressionSummary:
        scheduler = CompressionScheduler(model, example_inputs=example_inputs)
        scheduler.grad_sampler = sampler
        filled = Options(scheduler, example_inputs=example_inputs, **options)  # type: ignore[arg-type]
        return ScheduleLoader(model, None, part, filled).load().run_once()

    *before, last = stages_of(_spec(recipe, recipe_args))
    for part in before:
        run(part)
    return run(last)


def _spec(recipe: Any, recipe_args: RecipeArgs) -> ScheduleSpec:
    if isinstance(recipe, ScheduleSpec):
        return recipe
    if not isinstance(recipe, Mapping):
        return read_schedule(recipe, recipe_args=recipe_args)
    if recipe_args is not None:
        raise ArgumentError("recipe_args are for recipes in files and texts", argument=("recipe_args",))
    data = plain_data(recipe, DICT_SOURCE)
    if not isinstance(data, dict):
        raise file_problem(DICT_SOURCE, f"a schedule is a mapping of sections, got {shown(recipe)}", NOWHERE)
    return read_spec(data, source=DICT_SOURCE, marks=Marks())


def _sampler(loader: Any, loss: Loss | None) -> GradientSampler | None:
    if loader is None or isinstance(loader, GradientSampler | Mapping):
        if loss is not None:
            message = "loss belongs to a calibration_loader of minibatches; a sampler has its own"
            raise ArgumentError(message, argument=("loss",))
        return None if loader is None else GradientSampler.of(loader)
    return GradientSampler(loader, loss)
