"""Whether teachers and layers fit a student."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from torch import nn

from distiller_ng.errors import ScheduleWarning, TargetError, did_you_mean
from distiller_ng.knowledge_distillation.pairs import FeaturePair, Place
from distiller_ng.knowledge_distillation.teachers import TeacherSource
from distiller_ng.names import unwrap
from distiller_ng.ops.modules import model_find_module

__all__ = ["check_places", "warn_about_size"]

_GAP = 10  # teacher's parameters over the student's, above which distillation tends to help less


def check_places(model: nn.Module, places: Sequence[Place], whose: str, pair: FeaturePair) -> None:
    """Every layer a pair names must be in the model; raises :class:`TargetError` with the nearest names."""
    for place in places:
        if place.layer and model_find_module(model, place.layer) is None:
            names = [name for name, _ in unwrap(model).named_modules() if name]
            raise TargetError(
                f"the {whose} has no layer {place.layer!r}. {did_you_mean(place.layer, names)}",
                argument=(*pair.argument, whose) if isinstance(pair.argument[-1], int) else pair.argument,
            )


def warn_about_size(student: nn.Module, sources: Sequence[TeacherSource]) -> None:
    """A :class:`ScheduleWarning` for a teacher that is far larger than the student."""
    mine = sum(p.numel() for p in student.parameters())
    for source in sources:
        theirs = 0 if source.module is None else sum(p.numel() for p in source.module.parameters())
        if mine and theirs > _GAP * mine:
            warnings.warn(
                f"teacher {source.name!r} has {theirs / mine:.0f} times the student's parameters: over such a gap "
                "distillation helps less. A teacher of a size in between, itself distilled from the large one, often "
                "does better: see the teacher assistant in examples/distillation",
                ScheduleWarning,
                stacklevel=4,
            )
