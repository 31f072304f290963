"""The extension that drives learning rates by one of four classic rules, counted in epochs (layer 3)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from numbers import Real
from types import MappingProxyType
from typing import Any, Literal, TypeAlias, get_args

from distiller_ng.core.context import StepContext
from distiller_ng.core.policy import Policy
from distiller_ng.core.window import PolicyWindow
from distiller_ng.errors import ArgumentError, did_you_mean, listed
from distiller_ng.learning_rate.base import write_group_value
from distiller_ng.names import ParameterIndex
from distiller_ng.policies._optimizer_values import check_rate, groups_of
from distiller_ng.policies.extensions import EXTENSIONS
from distiller_ng.registry import RecipeTag

__all__ = ["LRClass", "LearningRate"]

LRClass: TypeAlias = Literal["StepLR", "MultiStepLR", "ExponentialLR", "CosineAnnealingWarmRestarts"]

_NEEDS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "StepLR": ("gamma", "step_size"),
        "MultiStepLR": ("gamma", "milestones"),
        "ExponentialLR": ("gamma",),
        "CosineAnnealingWarmRestarts": ("lr_min", "cycle_epochs"),
    }
)
_OPTIONAL: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"CosineAnnealingWarmRestarts": ("cycle_mult", "T_mult"), "ExponentialLR": ("step_size",)}
)
_NEAR = 1e-9


@EXTENSIONS.register(
    "LearningRate",
    recipe_tag=RecipeTag(
        "LearningRateModifier",
        end_epoch=-1.0,
        update_frequency=-1.0,
        fixed_frequency=True,
        params=None,
        ignored={"constant_logging": "what is logged is the loggers' business"},
    ),
)
class LearningRate(Policy):
    """Sets the learning rate to ``init_lr`` when its window starts, and lets it fall as ``lr_class`` says.

    ``lr_kwargs`` are in epochs. ``StepLR``: ``gamma`` times as much every ``step_size`` epochs; ``ExponentialLR``:
    every epoch; ``MultiStepLR``: at each of ``milestones`` (absolute epochs); ``CosineAnnealingWarmRestarts``: from
    ``init_lr`` down to ``lr_min`` in ``cycle_epochs`` epochs, again and again, each cycle ``T_mult`` times as long as
    the one before (default 1). Without ``init_lr`` the optimizer's own rates are the beginning. At the window's end
    nothing more happens: the rate stays.

    Source: SparseML's ``LearningRateModifier``. From 0.1, ``MultiStepLR`` with ``gamma`` 0.1 and milestones 2 and 3.5
    gives 0.1, from epoch 2 on 0.01, and from the middle of epoch 3 on 0.001::

        extensions:
          lr:
            class: LearningRate
            lr_class: MultiStepLR
            lr_kwargs: {gamma: 0.1, milestones: [2.0, 3.5]}
            init_lr: 0.1
        policies:
          - extension: {instance_name: lr}
            starting_epoch: 0
            ending_epoch: 25
            frequency: -1
            trigger: step

    Raises :class:`ArgumentError` for another class, and for arguments it lacks or does not take.
    """

    def __init__(self, lr_class: LRClass, lr_kwargs: Mapping[str, Any], init_lr: float | None = None) -> None:
        if lr_class not in get_args(LRClass):
            hint = did_you_mean(str(lr_class), get_args(LRClass))
            raise ArgumentError(f"unknown lr_class {lr_class!r}. {hint}", argument=("lr_class",))
        self.lr_class: LRClass = lr_class
        self.lr_kwargs = _checked_kwargs(lr_class, lr_kwargs)
        self.init_lr = None if init_lr is None else check_rate("init_lr", init_lr, low_is_allowed=False)
        self._bases: list[float] | None = None

    # -- hooks ------------------------------------------------------------------------------------------------------

    def on_epoch_begin(self, ctx: StepContext) -> None:
        """The value of the epoch, in a window of whole epochs."""
        self.on_update(ctx)

    def on_update(self, ctx: StepContext) -> None:
        """The value of this step."""
        groups = groups_of(ctx, (), "LearningRate")
        if not groups:
            return
        if self._bases is None:
            self._bases = [float(g["lr"]) if self.init_lr is None else self.init_lr for g in groups]
        bases = [*self._bases, *self._bases[-1:] * (len(groups) - len(self._bases))]
        for group, base in zip(groups, bases, strict=False):
            write_group_value(group, "lr", self.value(base, ctx))

    def check(self, window: PolicyWindow, parameters: ParameterIndex) -> None:
        """Milestones lie inside the window."""
        for position, milestone in enumerate(self.lr_kwargs.get("milestones", ())):
            if not window.first < milestone < window.end:
                message = f"milestones lie inside the window ({window}), got {milestone:g}"
                raise ArgumentError(message, argument=("lr_kwargs", "milestones", position))

    def describe(self) -> str:
        """``LearningRate(StepLR)``."""
        return f"LearningRate({self.lr_class})"

    def value(self, base: float, ctx: StepContext) -> float:
        """The rate of this step that belongs to a beginning of ``base``."""
        start, length, kwargs = ctx.window.first, ctx.position.epoch_length, self.lr_kwargs
        if self.lr_class == "CosineAnnealingWarmRestarts":
            return _cosine(base, ctx.position.fraction - start, kwargs)
        done = ctx.position.step - round(start * length)
        if self.lr_class == "MultiStepLR":
            falls = sum(done >= round((milestone - start) * length) for milestone in kwargs["milestones"])
        else:
            falls = done // max(round(kwargs.get("step_size", 1.0) * length), 1)
        return float(base * kwargs["gamma"] ** falls)

    # -- state ------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The rates at the beginning."""
        return {"bases": None if self._bases is None else list(self._bases)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`state_dict`."""
        self._bases = None if state["bases"] is None else [float(base) for base in state["bases"]]


def _cosine(base: float, passed: float, kwargs: Mapping[str, Any]) -> float:
    cycle, passed = kwargs["cycle_epochs"], passed + _NEAR
    grows = kwargs.get("T_mult", kwargs.get("cycle_mult", 1))
    while grows > 1 and passed >= cycle:
        passed, cycle = passed - cycle, cycle * grows
    share = math.fmod(passed, cycle) / cycle
    return float(kwargs["lr_min"] + (base - kwargs["lr_min"]) * (1 + math.cos(math.pi * share)) / 2)


# -- checks ------------------------------------------------------------------------------------------------------------


def _checked_kwargs(lr_class: str, kwargs: Any) -> dict[str, Any]:
    if not isinstance(kwargs, Mapping):
        raise ArgumentError(f"lr_kwargs is a mapping, {{gamma: 0.1, ...}}; got {kwargs!r}", argument=("lr_kwargs",))
    allowed = (*_NEEDS[lr_class], *_OPTIONAL.get(lr_class, ()))
    for key in kwargs:
        if key not in allowed:
            hint = did_you_mean(str(key), allowed)
            raise ArgumentError(f"{lr_class} has no argument {key!r}. {hint}", argument=("lr_kwargs", key))
    missing = [key for key in _NEEDS[lr_class] if key not in kwargs]
    if missing:
        raise ArgumentError(f"{lr_class} needs {listed(missing)} in lr_kwargs", argument=("lr_kwargs",))
    checked = {}
    for key, value in kwargs.items():
        check: Callable[[Any, str], Any] = _CHECKS.get(key, _above_zero)
        checked[key] = check(value, key)
    return checked


def _milestones(value: Any, key: str) -> list[float]:
    if isinstance(value, str) or not isinstance(value, list | tuple) or not value:
        raise ArgumentError(f"milestones is a list of epochs, got {value!r}", argument=("lr_kwargs", key))
    return sorted(_number(entry, (key, position)) for position, entry in enumerate(value))


def _above_zero(value: Any, key: str) -> float:
    number = _number(value, (key,))
    if number <= 0:
        raise ArgumentError(f"{key} is above 0, got {value!r}", argument=("lr_kwargs", key))
    return number


def _not_negative(value: Any, key: str) -> float:
    number = _number(value, (key,))
    if number < 0:
        raise ArgumentError(f"{key} is a learning rate from 0 on, got {value!r}", argument=("lr_kwargs", key))
    return number


def _number(value: Any, path: tuple[str | int, ...]) -> float:
    """A number, or one written as text."""
    try:
        number = math.nan if isinstance(value, bool) or not isinstance(value, str | Real) else float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ArgumentError(f"{path[0]} takes numbers, got {value!r}", argument=("lr_kwargs", *path))
    return number


_CHECKS: Mapping[str, Callable[[Any, str], Any]] = MappingProxyType(
    {"milestones": _milestones, "lr_min": _not_negative}
)
