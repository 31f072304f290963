"""Between SparseML's distillation properties and our constructor's arguments (layer 2)."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real
from typing import Any

from distiller_ng.errors import ArgumentError

__all__ = ["distillation_from_recipe", "distillation_to_recipe"]

_HARDNESS, _TEMPERATURE = 0.5, 2.0


def distillation_from_recipe(properties: Mapping[str, Any]) -> dict[str, Any]:
    """``hardness`` h becomes the weights ``{distill: h, student: 1 - h}``; empty lists of keys mean all.

    >>> distillation_from_recipe({"hardness": 0.25})
    {'loss_weights': {'distill': 0.25, 'student': 0.75}, 'temperature': 2.0}
    """
    arguments = {name: value for name, value in properties.items() if value is not None}
    for keys in ("output_keys", "teacher_input_keys"):
        if keys in arguments and not arguments[keys]:
            del arguments[keys]
    hardness = _number(arguments.pop("hardness", _HARDNESS))
    if isinstance(hardness, bool) or not isinstance(hardness, Real) or not 0 <= float(hardness) <= 1:
        raise ArgumentError(f"hardness is a number from 0 to 1, got {hardness!r}", argument=("hardness",))
    arguments["loss_weights"] = {"distill": float(hardness), "student": 1.0 - float(hardness)}
    arguments.setdefault("temperature", _TEMPERATURE)
    return arguments


def _number(value: Any) -> Any:
    """A number that is written as text; anything else as it is."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def distillation_to_recipe(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The reverse; raises :class:`ArgumentError` for weights that are no hardness."""
    properties = dict(arguments)
    weights = properties.pop("loss_weights", None)
    if weights is not None:
        share = weights.get("distill") if isinstance(weights, Mapping) else None
        rest = weights.get("student") if isinstance(weights, Mapping) else None
        if not isinstance(share, int | float) or not isinstance(rest, int | float) or abs(share + rest - 1) > 1e-9:
            message = "a recipe has one hardness: loss_weights must be {distill: h, student: 1 - h}"
            raise ArgumentError(message, argument=("loss_weights",))
        properties["hardness"] = share
    properties.pop("teacher", None)
    properties.setdefault("temperature", 1.0)
    return properties
