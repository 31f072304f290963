"""The policy that sets learning rates in its window (layer 3)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from distiller_ng.core.context import StepContext
from distiller_ng.core.policy import Policy
from distiller_ng.core.window import PolicyWindow
from distiller_ng.errors import ArgumentError, CheckpointError, LifecycleError, did_you_mean
from distiller_ng.learning_rate.base import LRDriver, Unit
from distiller_ng.learning_rate.live import as_driver
from distiller_ng.names import ParameterIndex

__all__ = ["LRPolicy"]


class LRPolicy(Policy):
    """At the end of each active epoch ``e``, sets the learning rates of epoch ``e + 1``.

    Epochs are absolute: an ``ExponentialLR`` with gamma 0.9 and ``starting_epoch: 24`` leaves the learning rate alone
    through epoch 24 and then sets ``base * 0.9 ** 25``. Where the window begins at epoch 0, a warm-up's low start is
    set before the first minibatch; nothing else moves a learning rate before the window, loading a schedule included.

    ``lr_scheduler`` is a :class:`ScheduledLR` or a torch scheduler object built on the training optimizer. With
    ``unit="step"`` (default: the scheduler's own unit, or ``"epoch"``) values belong to absolute optimizer steps and
    are set after each real one. ``ReduceLROnPlateau`` steps once at the end of each active epoch with the metric of its
    mode, which the loop passes: ``on_epoch_end(epoch, optimizer, metrics={'min': val_loss, 'max': top1})``.

    Example::

        policy = LRPolicy(torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.9))
        scheduler.add_policy(policy, starting_epoch=24, ending_epoch=200)

    In a schedule::

        lr_schedulers:
          pruning_lr: {class: ExponentialLR, gamma: 0.9}
        policies:
          - lr_scheduler: {instance_name: pruning_lr}
            starting_epoch: 24
            ending_epoch: 200
            frequency: 1
    """

    def __init__(self, lr_scheduler: LRDriver | LRScheduler, *, unit: Unit | None = None) -> None:
        self._driver = as_driver(lr_scheduler)
        if unit not in (None, "epoch", "step"):
            raise ArgumentError(
                f"unknown unit {unit!r}. {did_you_mean(str(unit), ('epoch', 'step'))}", argument=("unit",)
            )
        self.lr_scheduler = lr_scheduler
        self.unit: Unit = unit or self._driver.unit
        if self.unit == "step" and self._driver.metric is not None:
            raise ArgumentError(
                f"{self._driver.class_name} acts on validation results, once an epoch: unit must be 'epoch'",
                argument=("unit",),
            )
        self._begun = False

    def check(self, window: PolicyWindow, parameters: ParameterIndex) -> None:
        """Metrics come at the end of epochs: ReduceLROnPlateau refuses windows in fractions of epochs."""
        if window.is_fractional and self._driver.metric is not None:
            raise ArgumentError(
                f"{self._driver.class_name} needs metrics, which exist at the end of an epoch: give whole epochs",
                argument=("starting_epoch",),
            )

    def listens_to(self, hook: str) -> bool:
        """Minibatches matter only with ``unit="step"``; a scheduler object of the user's has begun already."""
        if hook == "on_minibatch_end":
            return self.unit == "step"
        if hook == "on_epoch_begin":
            return self._driver is self.lr_scheduler and self._driver.metric is None
        return super().listens_to(hook)

    def describe(self) -> str:
        """``LRPolicy(pruning_lr: ExponentialLR)``."""
        name, class_name = self._driver.name, self._driver.class_name
        return f"LRPolicy({class_name if name == class_name else f'{name}: {class_name}'})"

    def on_epoch_begin(self, ctx: StepContext) -> None:
        """Record base learning rates; at the very start of training also set a warm-up's first value."""
        optimizer = ctx.optimizer or self._driver.optimizer
        if optimizer is None:  # the loop may name it later, at the epoch's end
            return
        self._driver.bind(optimizer)
        if ctx.position.step == 0 and not self._begun:
            self._driver.begin_(optimizer)
        self._begun = True

    def on_minibatch_end(self, ctx: StepContext) -> None:
        """After a real optimizer step, with ``unit="step"``: the values of the next one."""
        if ctx.is_step:
            self._driver.set_(self._optimizer(ctx), ctx.position.step + 1)

    def on_epoch_end(self, ctx: StepContext) -> None:
        """The values of the next epoch, or one step of ReduceLROnPlateau.

        Raises :class:`LifecycleError` without an optimizer, or without the metric it needs.
        """
        if self.unit == "step":
            return
        optimizer, metric = self._optimizer(ctx), self._driver.metric
        if metric is None:
            self._driver.set_(optimizer, ctx.epoch + 1)
        else:
            self._driver.observe_(optimizer, self._value(ctx, metric), ctx.epoch)

    def on_update(self, ctx: StepContext) -> None:
        """A window in fractions of epochs is due: the values of the epoch it is in (none in one-shot use)."""
        if self.unit == "epoch" and math.isfinite(ctx.position.fraction):
            self._driver.set_(self._optimizer(ctx), math.floor(ctx.position.fraction))

    def state_dict(self) -> dict[str, Any]:
        """The base learning rates and whatever the scheduler remembers (ReduceLROnPlateau: best value and counters)."""
        return {"begun": self._begun, "lr_scheduler": self._driver.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`state_dict`; raises :class:`CheckpointError` when it belongs to another scheduler class.

        Learning rates themselves are the optimizer's state: load that too.
        """
        if set(state) != {"begun", "lr_scheduler"}:
            raise CheckpointError(f"{self.describe()} expects the keys begun and lr_scheduler, got {sorted(state)}")
        self._driver.load_state_dict(state["lr_scheduler"])
        self._begun = bool(state["begun"])

    # -- internals --------------------------------------------------------------------------------------------------

    def _optimizer(self, ctx: StepContext) -> Optimizer:
        optimizer = ctx.optimizer or self._driver.optimizer
        if optimizer is None:
            raise LifecycleError(
                f"{self.describe()} has no optimizer to set: pass it to the hooks, on_epoch_end(epoch, optimizer), or "
                "when the schedule is loaded, file_config(model, optimizer, filename)"
            )
        return optimizer

    def _value(self, ctx: StepContext, metric: str) -> float:
        if metric not in ctx.metrics:
            given = f"only {sorted(ctx.metrics)} came" if ctx.metrics else "none came"
            raise LifecycleError(
                f"{self.describe()} needs the validation result {metric!r}, {given}: call "
                f"on_epoch_end({ctx.epoch}, optimizer, metrics={{'min': val_loss, 'max': top1}})"
            )
        return float(ctx.metrics[metric])
