"""How much each part of the loss counts, constant or over the epochs (layer 2)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any, NamedTuple, TypeAlias

from distiller_ng.errors import ArgumentError, did_you_mean

__all__ = ["DistillationLossWeights", "Weight", "check_weight", "read_loss_weights", "weight_at"]

#: A number, ``{epoch: number}`` with straight lines between the epochs, or a function of the epoch (with fractions).
Weight: TypeAlias = float | Mapping[float, float] | Callable[[float], float]


class DistillationLossWeights(NamedTuple):
    """Weights of the three parts of the loss: ``overall = student * L + distill * T^2 * D + teacher * L_t``.

    ``L`` is the loss the training loop computed (student against labels), ``D`` the distance from the teacher, and
    ``L_t`` the teacher's own loss against the labels. Each is a number from 0, or changes over the epochs:
    ``{0: 0.9, 30: 0.1}`` falls in a straight line from 0.9 in epoch 0 to 0.1 in epoch 30 and stays there.

    >>> DistillationLossWeights(0.7, 0.3, 0).student
    0.3
    """

    distill: Any
    student: Any
    teacher: Any = 0


def check_weight(name: str, weight: Any, argument: Sequence[str | int] = ()) -> Weight:
    """A weight that :func:`weight_at` can read; raises :class:`ArgumentError` that carries ``argument``."""
    where = tuple(argument) or (name,)
    if isinstance(weight, Mapping):
        return _breakpoints(name, weight, where)
    if callable(weight):
        found: Weight = weight
        return found
    return _number(name, weight, where)


def weight_at(weight: Weight, epoch: float) -> float:
    """The weight at a point in time, in epochs with fractions.

    >>> weight_at({0: 1.0, 10: 0.5}, 5)
    0.75
    """
    if isinstance(weight, Mapping):
        points = sorted((float(at), float(value)) for at, value in weight.items())
        if epoch <= points[0][0]:
            return points[0][1]
        for (before, low), (after, high) in itertools.pairwise(points):
            if epoch <= after:
                return low + (high - low) * (epoch - before) / (after - before)
        return points[-1][1]
    if callable(weight):
        return _number("weight", weight(epoch), ("loss_weights",))
    return float(weight)


def read_loss_weights(value: Any, *, has_logits: bool) -> DistillationLossWeights:
    """Loss weights as a user writes them: three numbers, a mapping, or None.

    None is ``(0.5, 0.5, 0)`` with a term on the logits and ``(0, 1, 0)`` without: layer terms have a gain of their own.
    Raises :class:`ArgumentError`.
    """
    names = DistillationLossWeights._fields
    if value is None:
        return DistillationLossWeights(0.5, 0.5, 0) if has_logits else DistillationLossWeights(0.0, 1.0, 0)
    if isinstance(value, Mapping):
        for name in value:
            if name not in names:
                raise ArgumentError(
                    f"loss_weights has no {name!r}. {did_you_mean(str(name), names)}", argument=("loss_weights", name)
                )
        for name in ("distill", "student"):
            if name not in value:
                raise ArgumentError(
                    f"loss_weights needs {name}: {{distill: 0.5, student: 0.5}}", argument=("loss_weights",)
                )
        value = [value["distill"], value["student"], value.get("teacher", 0)]
    if isinstance(value, str) or not isinstance(value, Sequence) or not 2 <= len(value) <= 3:
        raise ArgumentError(
            f"loss_weights are DistillationLossWeights(distill, student, teacher), got {value!r}",
            argument=("loss_weights",),
        )
    checked = [check_weight(name, part, ("loss_weights", name)) for name, part in zip(names, value)]
    weights = DistillationLossWeights(*checked)
    if all(isinstance(part, Real) and part == 0 for part in weights):
        raise ArgumentError("all loss_weights are 0: nothing would be trained", argument=("loss_weights",))
    return weights


def _breakpoints(name: str, weight: Mapping[Any, Any], where: tuple[str | int, ...]) -> Mapping[float, float]:
    if not weight:
        raise ArgumentError(f"{name}: give at least one epoch, {{0: 0.9, 30: 0.1}}", argument=where)
    points: dict[float, float] = {}
    for epoch, value in weight.items():
        points[_number(f"{name}: an epoch", _as_number(epoch), where)] = _number(f"{name}: a weight", value, where)
    return points


def _as_number(key: Any) -> Any:
    """Keys of a schedule may have become text on the way through JSON."""
    try:
        return float(key) if isinstance(key, str) else key
    except ValueError:
        return key


def _number(name: str, value: Any, where: tuple[str | int, ...]) -> float:
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value) or value < 0:
        raise ArgumentError(f"{name} must be a finite number from 0, got {value!r}", argument=where)
    return float(value)
