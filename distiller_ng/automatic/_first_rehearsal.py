"""A first schedule tried on a copy of the model: what it leaves."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import SGD

from distiller_ng.automatic._first_target import Technique
from distiller_ng.automatic._first_windows import Windows
from distiller_ng.automatic.candidates import Candidates, LayerChoice, PredictedCost
from distiller_ng.config import check_schedule, file_config
from distiller_ng.errors import ArgumentError, ScheduleError, ScheduleWarning
from distiller_ng.graph.inputs import ExampleInputs
from distiller_ng.names import ParameterIndex, unwrap
from distiller_ng.quantization import QuantAwareTrainRangeLinearQuantizer

__all__ = ["Rehearsed", "check_text", "rehearsal_windows", "rehearse", "rounded_parameters"]


@dataclass(frozen=True)
class Rehearsed:
    """The copy after the schedule, its cost, and the shapes of its parameters."""

    model: nn.Module
    cost: PredictedCost
    shapes: Mapping[str, tuple[int, ...]]


def rehearsal_windows(technique: Technique) -> Windows:
    """As early as possible: one decision, then the removal."""
    return Windows(2, (0, 1, 1), 1 if technique.group == "filter" else None)


def rehearse(model: nn.Module, inputs: ExampleInputs, text: str, bits: Mapping[str, int], *, group: str) -> Rehearsed:
    """Let a schedule of :func:`rehearsal_windows` act on a copy of the model, without training.

    What it prunes and removes depends on counts alone, so training will leave as much. ``bits``: of the parameters that
    are rounded, for their size; ``group``: of :class:`Candidates`, to count as it does. Raises :class:`GraphError`
    where filters cannot be removed.
    """
    made = _copied(model)
    optimizer = SGD(made.parameters(), lr=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ScheduleWarning)  # of so short a schedule
        scheduler = file_config(made, optimizer, text, example_inputs=inputs)
        for epoch in range(2):
            scheduler.on_epoch_begin(epoch, optimizer)
            scheduler.on_minibatch_begin(epoch, 0, 1, optimizer)
            scheduler.before_parameter_optimization(epoch, 0, 1, optimizer)
            scheduler.on_minibatch_end(epoch, 0, 1, optimizer)
            scheduler.on_epoch_end(epoch, optimizer)
        scheduler.finish()
    scheduler.masks.detach()
    shapes = {name: tuple(parameter.shape) for name, parameter in ParameterIndex(made).items()}
    cost = Candidates(made, inputs, group=group).cost({name: LayerChoice(bits=number) for name, number in bits.items()})
    return Rehearsed(made, cost, shapes)


def check_text(text: str, model: nn.Module, inputs: ExampleInputs) -> None:
    """Raise :class:`ScheduleError` for anything that is wrong with the finished text."""
    found = check_schedule(text, model, example_inputs=inputs)
    if found.problems:
        raise ScheduleError(found.problems)


def rounded_parameters(model: nn.Module, bits: int) -> tuple[dict[str, int], bool]:
    """Bits of the weights a quantizer will round, and whether any activations are."""
    made = unwrap(_copied(model))
    options: dict[str, Any] = {"bits_weights": bits, "bits_activations": bits, "per_channel_wts": True}
    rows = QuantAwareTrainRangeLinearQuantizer(made, SGD(made.parameters(), lr=0.1), **options).plan().rows
    index = ParameterIndex(made)
    names = {index.find(f"{row.module}.weight" if row.module else "weight") for row in rows if row.weights is not None}
    modules = [row for row in rows if row.activations is not None and row.module != "(inputs)"]
    return {name: bits for name in index if name in names}, bool(modules)


def _copied(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(unwrap(model))
    except (RuntimeError, TypeError, AttributeError) as error:
        raise ArgumentError(f"the model cannot be copied: {error}", argument=("model",)) from error
