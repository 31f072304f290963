"""What every integration is given: a schedule to load for a model and its optimizer (layer 5)."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from torch import nn
from torch.optim import Optimizer

from distiller_ng.config import dict_config, file_config
from distiller_ng.core.scheduler import CompressionScheduler
from distiller_ng.errors import ArgumentError

__all__ = ["Schedule", "checked_monitor", "compressed_module", "load_schedule"]

#: A file, its content as a dictionary, or a function ``(model, optimizer) -> CompressionScheduler``.
Schedule: TypeAlias = (
    "str | os.PathLike[str] | Mapping[str, Any] | Callable[[nn.Module, Optimizer], CompressionScheduler]"
)


def load_schedule(schedule: Schedule, model: nn.Module, optimizer: Optimizer, **options: Any) -> CompressionScheduler:
    """The scheduler of ``schedule``; ``options`` are those of :func:`distiller_ng.file_config`.

    Raises what :func:`file_config` raises, and :class:`ArgumentError` for anything that is no schedule.
    """
    if isinstance(schedule, str | os.PathLike):
        return file_config(model, optimizer, schedule, **options)
    if isinstance(schedule, Mapping):
        return dict_config(model, optimizer, schedule, **options)
    made = schedule(model, optimizer) if callable(schedule) else schedule
    if not isinstance(made, CompressionScheduler):
        raise ArgumentError(
            "a schedule is a file, a dictionary, or a function (model, optimizer) that returns a "
            f"CompressionScheduler, got {made!r}",
            argument=("schedule",),
        )
    return made


def compressed_module(model: nn.Module, module: str | None) -> nn.Module:
    """The submodule of that name, or the model itself. Raises :class:`ArgumentError` for a name it does not have."""
    if module is None:
        return model
    try:
        return model.get_submodule(module)
    except AttributeError as error:
        raise ArgumentError(f"{type(model).__name__} has no module {module!r}: {error}") from error


def checked_monitor(monitor: Mapping[str, str] | None) -> dict[str, str]:
    """``{"min": metric, "max": metric}``, either key or none. Raises :class:`ArgumentError` for other keys."""
    if monitor is not None and not set(monitor) <= {"min", "max"}:
        raise ArgumentError(f"monitor names metrics as 'min' and 'max', got {dict(monitor)}", argument=("monitor",))
    return dict(monitor or {})
