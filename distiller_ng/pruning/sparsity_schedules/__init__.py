"""Sparsity as a function of progress, one curve a file (layer 2)."""

from distiller_ng.pruning.sparsity_schedules.agp import AGP
from distiller_ng.pruning.sparsity_schedules.base import (
    SPARSITY_SCHEDULES,
    ScheduleLike,
    SparsitySchedule,
    as_schedule,
)
from distiller_ng.pruning.sparsity_schedules.constant import Constant
from distiller_ng.pruning.sparsity_schedules.exponential import Exponential
from distiller_ng.pruning.sparsity_schedules.linear import Linear
from distiller_ng.pruning.sparsity_schedules.multi_step import MultiStep

__all__ = [
    "AGP",
    "SPARSITY_SCHEDULES",
    "Constant",
    "Exponential",
    "Linear",
    "MultiStep",
    "ScheduleLike",
    "SparsitySchedule",
    "as_schedule",
]
