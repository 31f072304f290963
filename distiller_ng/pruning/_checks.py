"""Checks of constructor arguments shared by the pruners (layer 2)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from numbers import Real
from typing import Any

from distiller_ng.errors import ArgumentError

__all__ = ["check_choice", "check_map", "check_number", "check_weights"]


def check_number(
    value: Any, argument: tuple[str | int, ...], *, low: float = -math.inf, high: float = math.inf
) -> float:
    """``value`` as a finite float in ``low .. high``; raises :class:`ArgumentError` at ``argument``."""
    name = str(argument[0]) + "".join(f"[{part!r}]" for part in argument[1:])
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise ArgumentError(f"{name} must be a number, got {value!r}", argument=argument)
    if not low <= float(value) <= high:
        allowed = f"between {low:g} and {high:g}" if math.isfinite(high) else f"{low:g} or more"
        raise ArgumentError(f"{name} must be {allowed}, got {value!r}", argument=argument)
    return float(value)


def check_map(
    argument: str, values: Any, *, low: float = -math.inf, high: float = math.inf, example: str
) -> dict[str, float]:
    """A map of targets to numbers; raises :class:`ArgumentError` at the map or at the offending key."""
    if not isinstance(values, Mapping) or not values:
        message = f"{argument} must map parameters to numbers, like {example}; got {values!r}"
        raise ArgumentError(message, argument=(argument,))
    return {str(key): check_number(value, (argument, str(key)), low=low, high=high) for key, value in values.items()}


def check_weights(weights: Any) -> str | list[str]:
    """``weights`` as it was given, a list of targets; a plain string means exactly that one target.

    Raises :class:`ArgumentError` for an empty list or an item that is no text.
    """
    if isinstance(weights, str):
        names = [weights]
    elif isinstance(weights, Iterable) and not isinstance(weights, Mapping):
        names = list(weights)
    else:
        raise ArgumentError(f"weights must be a list of parameter names, got {weights!r}", argument=("weights",))
    if not names or names == [""]:
        raise ArgumentError(
            "weights names no parameter: list parameter names, 're:' patterns or __ALL_PRUNABLE__",
            argument=("weights",),
        )
    for position, name in enumerate(names):
        if not isinstance(name, str):
            raise ArgumentError(f"weights lists parameter names, got {name!r}", argument=("weights", position))
    return weights if isinstance(weights, str) else names


def check_choice(argument: str, value: Any, allowed: Iterable[str]) -> None:
    """Raises :class:`ArgumentError` unless ``value`` is one of ``allowed``."""
    choices = list(allowed)
    if value not in choices:
        raise ArgumentError(f"{argument} must be one of {', '.join(choices)}; got {value!r}", argument=(argument,))
