"""From a recipe's spec to a scheduler on a model, with what SparseML's calls are given."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from distiller_ng.config.loader import OnUnmatched, Options, ScheduleLoader
from distiller_ng.config.parts import part_of, stages_of
from distiller_ng.config.spec import ModifierSpec, ScheduleSpec
from distiller_ng.core.position import TrainPosition
from distiller_ng.core.scheduler import CompressionScheduler
from distiller_ng.core.summary import CompressionSummary
from distiller_ng.errors import ArgumentError, ScheduleWarning, did_you_mean

__all__ = ["Given", "check", "load", "one_shot", "structure"]

_TEACHER = "teacher"
_STRUCTURAL = ("QuantizationModifier", "LayerPruningModifier")
_PARTS = 1_000_000  # of an epoch
_NAMES = (
    "distillation_teacher",
    "grad_sampler",
    "calibration_dataloader",
    "calibration_function",
    "example_inputs",
    "on_unmatched",
)


@dataclass(frozen=True, slots=True)
class Given:
    """Keyword arguments of ``modify``, ``initialize`` and ``apply``."""

    distillation_teacher: Any = None
    grad_sampler: Any = None
    calibration_dataloader: Any = None
    calibration_function: Any = None
    example_inputs: Any = None
    on_unmatched: OnUnmatched = "error"

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Given:
        """Raises :class:`ArgumentError` for others."""
        for name in given:
            if name not in _NAMES:
                message = f"there is no argument {name!r}. {did_you_mean(name, _NAMES)}"
                raise ArgumentError(message, argument=(name,))
        teacher = given.get("distillation_teacher")
        if not (teacher is None or isinstance(teacher, nn.Module) or teacher in ("self", "disable")):
            message = f"distillation_teacher is a module, 'self' or 'disable'; got {teacher!r}"
            raise ArgumentError(message, argument=("distillation_teacher",))
        return cls(**given)

    def give(self, scheduler: CompressionScheduler) -> None:
        """Tell the scheduler where gradients and calibration data come from."""
        source = self.grad_sampler if self.grad_sampler is not None else self.calibration_dataloader
        if source is not None:
            scheduler.grad_sampler = source


def load(spec: ScheduleSpec, module: nn.Module, optimizer: Optimizer | None, given: Given) -> CompressionScheduler:
    """The scheduler that runs ``spec`` on ``module``; raises :class:`ScheduleError`."""
    scheduler, loader = _prepared(spec, module, optimizer, given)
    loader.load()
    if optimizer is None:
        scheduler.masks.detach()
        scheduler.optimizer = None
    return scheduler


def check(spec: ScheduleSpec, module: nn.Module, given: Given) -> None:
    """Raises :class:`ScheduleError` for what does not fit the model; changes nothing."""
    _prepared(spec, module, None, given)[1].check()


def one_shot(spec: ScheduleSpec, module: nn.Module, given: Given) -> CompressionSummary:
    """Every modifier at its end, stage after stage; the summary is that of the last stage."""
    *before, last = stages_of(spec)
    for part in before:
        load(part, module, None, given).run_once()
    return load(last, module, None, given).run_once()


def structure(spec: ScheduleSpec, module: nn.Module, epoch: float, given: Given) -> None:
    """Structural modifiers that have begun by ``epoch``, as if training stood there."""

    def is_due(modifier: ModifierSpec) -> bool:
        start, end = (float(modifier.properties.get(name, -1)) for name in ("start_epoch", "end_epoch"))
        return modifier.tag in _STRUCTURAL and start <= epoch and (end < 0 or epoch < end)

    part = part_of(spec, is_due)
    if part.policies:
        scheduler = load(part, module, None, given)
        for entry in scheduler.entries:
            scheduler.start_entry(entry, _position(epoch))


def _position(epoch: float) -> TrainPosition:
    """That epoch; what is due later (frozen observers and norms) is not done yet."""
    if math.isinf(epoch):
        return TrainPosition.one_shot()
    whole = math.floor(epoch)
    return TrainPosition(whole, round((epoch - whole) * _PARTS), _PARTS)


def _prepared(
    spec: ScheduleSpec, module: nn.Module, optimizer: Optimizer | None, given: Given
) -> tuple[CompressionScheduler, ScheduleLoader]:
    spec, teachers = _with_teacher(spec, given.distillation_teacher)
    scheduler = CompressionScheduler(module, example_inputs=given.example_inputs)
    given.give(scheduler)
    options = Options(scheduler, None, given.on_unmatched, given.example_inputs, teachers=teachers)
    return scheduler, ScheduleLoader(module, optimizer or _stand_in(module), spec, options)


def _stand_in(module: nn.Module) -> Optimizer:
    """An optimizer that is never stepped, for components that give parameters to one."""
    return torch.optim.SGD([*module.parameters()] or [nn.Parameter(torch.zeros(1))], lr=0.0)


def _with_teacher(spec: ScheduleSpec, teacher: Any) -> tuple[ScheduleSpec, dict[str, nn.Module]]:
    """The spec with the teacher that was given, or without distillation where that is disabled."""
    if teacher == "disable":
        without = part_of(spec, lambda m: m.instance[0] != "distillers")
        if len(without.policies) != len(spec.policies):
            warnings.warn("distillation_teacher='disable': the recipe does not distil", ScheduleWarning, stacklevel=3)
        return without, {}
    if teacher == "self":
        components = [
            replace(c, args={**c.args, "teacher": "self"}) if c.section == "distillers" else c for c in spec.components
        ]
        return replace(spec, components=tuple(components)), {}
    return spec, {} if teacher is None else {_TEACHER: teacher}
