"""Setting a value in an optimizer's parameter groups, for the extensions that do (layer 3)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

from torch.optim import Optimizer

from distiller_ng.core.context import StepContext
from distiller_ng.errors import ArgumentError, LifecycleError
from distiller_ng.learning_rate.base import write_group_value

__all__ = ["check_groups", "check_rate", "groups_of", "write_groups"]


def check_groups(value: Any) -> tuple[int, ...]:
    """Indices of parameter groups; nothing and an empty list mean all of them."""
    if not value:
        return ()
    groups = [value] if isinstance(value, Integral) else value
    if isinstance(groups, str) or not isinstance(groups, Sequence):
        raise ArgumentError(
            f"param_groups is a list of group numbers from 0, got {value!r}", argument=("param_groups",)
        )
    for position, group in enumerate(groups):
        if isinstance(group, bool) or not isinstance(group, Integral) or group < 0:
            message = f"param_groups holds whole numbers from 0, got {group!r}"
            raise ArgumentError(message, argument=("param_groups", position))
    return tuple(int(group) for group in groups)


def check_rate(name: str, value: Any, *, low_is_allowed: bool) -> float:
    """A learning rate of at most 1; raises :class:`ArgumentError` with the argument's name."""
    fine = not isinstance(value, bool) and isinstance(value, Real)
    if not fine or not (0 <= value <= 1 if low_is_allowed else 0 < value <= 1):
        span = "from 0 to 1" if low_is_allowed else "above 0, at most 1"
        raise ArgumentError(f"{name} is a learning rate {span}, got {value!r}", argument=(name,))
    return float(value)


def groups_of(ctx: StepContext, wanted: Sequence[int], who: str) -> list[dict[str, Any]]:
    """The groups of the scheduler's optimizer; raises :class:`LifecycleError` without one, or without such a group.

    In one-shot use nothing is trained: there are none.
    """
    if math.isinf(ctx.position.fraction):
        return []
    optimizer: Optimizer | None = ctx.optimizer
    if optimizer is None:
        raise LifecycleError(
            f"{who} has no optimizer to set: pass it to the hooks, on_epoch_begin(epoch, optimizer), or when the "
            "schedule is loaded, file_config(model, optimizer, filename)"
        )
    groups = optimizer.param_groups
    if wanted and max(wanted) >= len(groups):
        raise LifecycleError(f"{who}: param_groups names group {max(wanted)}, the optimizer has {len(groups)}")
    return [groups[index] for index in wanted] if wanted else list(groups)


def write_groups(ctx: StepContext, wanted: Sequence[int], key: str, value: float, who: str) -> None:
    """``group[key] = value`` in all groups, or in those that are wanted."""
    for group in groups_of(ctx, wanted, who):
        write_group_value(group, key, value)
