"""The extension that moves learning rates from one value to another (layer 3)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Literal, TypeAlias, get_args

from distiller_ng.core.context import StepContext
from distiller_ng.core.policy import Policy
from distiller_ng.core.window import PolicyWindow
from distiller_ng.errors import ArgumentError, did_you_mean
from distiller_ng.names import ParameterIndex
from distiller_ng.policies._optimizer_values import check_groups, check_rate, write_groups
from distiller_ng.policies.extensions import EXTENSIONS
from distiller_ng.registry import RecipeTag

__all__ = ["LRFunction", "LearningRateFunction"]

LRFunction: TypeAlias = Literal["linear", "cosine", "cyclic_linear", "constant"]


def _linear(x: float, first: float, last: float) -> float:
    return first + x * (last - first)


def _cosine(x: float, first: float, last: float) -> float:
    return last + (first - last) * (1 + math.cos(math.pi * x)) / 2


def _constant(x: float, first: float, last: float) -> float:
    return first


_CURVES: Mapping[str, Callable[[float, float, float], float]] = MappingProxyType(
    {"linear": _linear, "cosine": _cosine, "constant": _constant}
)


@EXTENSIONS.register(
    "LearningRateFunction",
    recipe_tag=RecipeTag(
        "LearningRateFunctionModifier",
        ends="run",
        update_frequency=-1.0,
        fixed_frequency=True,
        params=None,
        spellings={"cycle_epoch": "cycle_epochs", "groups": "param_groups"},
        ignored={"constant_logging": "what is logged is the loggers' business"},
    ),
)
class LearningRateFunction(Policy):
    """Moves the learning rate from ``init_lr`` to ``final_lr`` over its window, and leaves it there.

    ``lr_func``: ``linear``; ``cosine`` (half a wave); ``cyclic_linear``: from ``init_lr`` to ``final_lr`` every
    ``cycle_epochs`` epochs, reached with the cycle's last step (a shorter cycle may come last); ``constant``:
    ``init_lr``. ``param_groups``: numbers of the optimizer's groups to set (default: all).

    Source: SparseML's ``LearningRateFunctionModifier``; there, the value after the end lies on the curve's extension
    (below 0, possibly) and cycles end at ``init_lr`` (``compat: sparseml`` does so). From 0.1 to 0.01 over epochs 0 to
    10, a linear rate is 0.055 at epoch 5, and 0.01 from epoch 10 on::

        extensions:
          lr: {class: LearningRateFunction, lr_func: linear, init_lr: 0.1, final_lr: 0.01}
        policies:
          - extension: {instance_name: lr}
            starting_epoch: 0
            ending_epoch: 10
            frequency: -1
            trigger: step

    Raises :class:`ArgumentError` for another function, and for rates outside 0..1.
    """

    def __init__(
        self,
        lr_func: LRFunction,
        init_lr: float,
        final_lr: float | None = None,
        *,
        cycle_epochs: float = 1.0,
        param_groups: Sequence[int] | None = None,
    ) -> None:
        if lr_func not in get_args(LRFunction):
            hint = did_you_mean(str(lr_func), get_args(LRFunction))
            raise ArgumentError(f"unknown lr_func {lr_func!r}. {hint}", argument=("lr_func",))
        if final_lr is None and lr_func != "constant":
            raise ArgumentError(f"lr_func {lr_func} needs final_lr", argument=("final_lr",))
        self.lr_func: LRFunction = lr_func
        self.init_lr = check_rate("init_lr", init_lr, low_is_allowed=True)
        self.final_lr = self.init_lr if final_lr is None else check_rate("final_lr", final_lr, low_is_allowed=True)
        if isinstance(cycle_epochs, bool) or not cycle_epochs > 0:
            raise ArgumentError(f"cycle_epochs is above 0, got {cycle_epochs!r}", argument=("cycle_epochs",))
        self.cycle_epochs = float(cycle_epochs)
        self.param_groups = check_groups(param_groups)

    # -- hooks ------------------------------------------------------------------------------------------------------

    def on_epoch_begin(self, ctx: StepContext) -> None:
        """The value of the epoch, in a window of whole epochs."""
        self.on_update(ctx)

    def on_update(self, ctx: StepContext) -> None:
        """The value of this step."""
        self._write(ctx, self._value(ctx))

    def on_window_end(self, ctx: StepContext) -> None:
        """The final value, which stays."""
        if ctx.compat == "sparseml":
            self._write(ctx, self._value(ctx))
        else:
            self._write(ctx, self.init_lr if self.lr_func == "constant" else self.final_lr)

    def check(self, window: PolicyWindow, parameters: ParameterIndex) -> None:
        """A rate on its way somewhere needs a window that ends."""
        if self.lr_func != "constant" and math.isinf(window.end):
            message = "a learning rate that ends at final_lr needs a window with an end"
            raise ArgumentError(message, argument=("ending_epoch",))

    def describe(self) -> str:
        """``LearningRateFunction(linear)``."""
        return f"LearningRateFunction({self.lr_func})"

    # -- internals --------------------------------------------------------------------------------------------------

    def _write(self, ctx: StepContext, value: float) -> None:
        write_groups(ctx, self.param_groups, "lr", value, "LearningRateFunction")

    def _value(self, ctx: StepContext) -> float:
        if self.lr_func == "cyclic_linear":
            return self._cycle(ctx)
        return _CURVES[self.lr_func](self._share(ctx), self.init_lr, self.final_lr)

    def _share(self, ctx: StepContext) -> float:
        """How much of the window has passed, beyond 1 only where SparseML's values are asked for."""
        window = ctx.window
        if ctx.compat != "sparseml" or not window.is_stepwise or math.isinf(window.end):
            return window.progress(ctx.position)
        return (ctx.position.fraction - window.first) / (window.end - window.first)

    def _cycle(self, ctx: StepContext) -> float:
        """``c`` steps a cycle, ``done`` steps since the start: ``(done mod c) / (c - 1)`` of the way."""
        window, length = ctx.window, ctx.position.epoch_length
        if math.isinf(window.end) or math.isinf(ctx.position.fraction):
            return self.init_lr
        total = (window.end - window.first) * length
        done = (ctx.position.fraction - window.first) * length
        cycle = self.cycle_epochs * length
        if done > math.floor(total / cycle + 1e-9) * cycle + 1e-6:
            cycle = math.fmod(total, cycle)
        if cycle <= 1:
            return self.final_lr
        share = math.fmod(done + 1e-9, cycle) / (cycle - 1)
        return self.init_lr - min(share, 1.0) * (self.init_lr - self.final_lr)
