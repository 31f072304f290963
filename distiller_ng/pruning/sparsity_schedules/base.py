"""Sparsity schedules: pure, closed-form value objects (layer 2)."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any, Protocol, TypeAlias, runtime_checkable

from distiller_ng.errors import ArgumentError, did_you_mean
from distiller_ng.registry import Registry

__all__ = ["SPARSITY_SCHEDULES", "ScheduleLike", "SparsitySchedule", "as_schedule", "check_sparsity"]


@runtime_checkable
class SparsitySchedule(Protocol):
    """Anything with ``target(progress) -> sparsity``: both 0..1, the same answer every time."""

    def target(self, progress: float) -> float:
        """The sparsity wanted when ``progress`` of the window has passed."""
        ...


#: What users may write: an object, or ``{class: AGP, initial_sparsity: 0.05, final_sparsity: 0.9}``.
ScheduleLike: TypeAlias = SparsitySchedule | Mapping[str, Any]

SPARSITY_SCHEDULES: Registry[SparsitySchedule] = Registry(
    "sparsity schedule", "distiller_ng.pruning.sparsity_schedules"
)


def as_schedule(value: ScheduleLike, *, argument: Sequence[str | int] = ("schedule",)) -> SparsitySchedule:
    """Build the schedule a mapping describes; an object passes through.

    Raises :class:`ArgumentError` (with the path below ``argument``) for an unknown class, argument or value.
    """
    if not isinstance(value, Mapping):
        if isinstance(value, SparsitySchedule):
            return value
        raise ArgumentError(
            f"a sparsity schedule is a mapping like {{class: AGP, final_sparsity: 0.9}}, got {value!r}",
            argument=argument,
        )
    settings = dict(value)
    name = settings.pop("class", None)
    if not isinstance(name, str):
        allowed = ", ".join(SPARSITY_SCHEDULES.names())
        raise ArgumentError(f"a sparsity schedule needs a class; allowed: {allowed}", argument=argument)
    try:
        cls = SPARSITY_SCHEDULES.get(name).cls
    except ArgumentError as error:
        raise ArgumentError(str(error), argument=(*argument, "class")) from None
    parameters = inspect.signature(cls).parameters
    for key in settings:
        if key not in parameters:
            message = f"{name} has no argument {key!r}. {did_you_mean(key, parameters)}"
            raise ArgumentError(message, argument=(*argument, key))
    missing = [k for k, p in parameters.items() if p.default is p.empty and k not in settings]
    if missing:
        raise ArgumentError(f"{name} needs {', '.join(missing)}", argument=argument)
    try:
        return cls(**settings)
    except ArgumentError as error:
        raise ArgumentError(str(error), argument=(*argument, *error.argument)) from None


def check_sparsity(name: str, value: float, *inside: str | int) -> None:
    """Raises :class:`ArgumentError` at ``(name, *inside)`` unless ``value`` is a number from 0 to 1."""
    number = not isinstance(value, bool) and isinstance(value, Real)
    if not number or not 0 <= float(value) <= 1:
        raise ArgumentError(f"{name} must be a number from 0 to 1, got {value!r}", argument=(name, *inside))
