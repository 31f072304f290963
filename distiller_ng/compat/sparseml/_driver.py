"""Calling a scheduler's hooks from a loop that knows nothing of it: by hooks on the model and the optimizer."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from distiller_ng.core.scheduler import CompressionScheduler
from distiller_ng.errors import ArgumentError, ScheduleWarning

__all__ = ["StepDriver"]


class _ForwardHook:
    """The hook on the model; copies and pickles of the model get one that does nothing."""

    def __init__(self, driver: StepDriver | None) -> None:
        self._driver = driver

    def __call__(self, module: nn.Module, args: Any) -> None:
        if self._driver is not None:
            self._driver.before_forward(module)

    def __deepcopy__(self, memo: Any) -> _ForwardHook:
        return _ForwardHook(None)

    def __reduce__(self) -> tuple[type[_ForwardHook], tuple[None]]:
        return _ForwardHook, (None,)


class StepDriver:
    """Opens a minibatch at the first forward pass in training mode, and closes it after the optimizer's step.

    ``steps_per_epoch`` optimizer steps make an epoch; it need not be whole (12.5: epochs of 13 and 12 steps). ``done``:
    steps already made, for a run that goes on.
    """

    def __init__(
        self, scheduler: CompressionScheduler, optimizer: Optimizer, steps_per_epoch: float, done: int = 0
    ) -> None:
        if isinstance(steps_per_epoch, bool) or not 0 < steps_per_epoch < math.inf:
            message = f"steps_per_epoch is the number of optimizer steps in an epoch, got {steps_per_epoch!r}"
            raise ArgumentError(message, argument=("steps_per_epoch",))
        self.scheduler, self.optimizer, self.steps_per_epoch = scheduler, optimizer, float(steps_per_epoch)
        self.done = done
        #: Whether the loop passes its losses through the manager.
        self.sees_losses = False
        self._epoch_open = self._minibatch_open = False
        scheduler.steps_per_epoch = None if self.steps_per_epoch.is_integer() else self.steps_per_epoch
        self._hooks: list[RemovableHandle] = [
            scheduler.model.register_forward_pre_hook(_ForwardHook(self)),
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        ]

    @property
    def epoch(self) -> int:
        """The epoch of the next step."""
        return math.floor(self.done / self.steps_per_epoch + 1e-9)

    def where(self) -> tuple[int, int, int]:
        """Epoch, number of the next step in it, and how many it has."""
        first = self._first_of(self.epoch)
        return self.epoch, self.done - first, self._first_of(self.epoch + 1) - first

    def open(self) -> tuple[int, int, int]:
        """Begin the minibatch of the next step, if that is still to do; returns :meth:`where`."""
        where = self.where()
        if not self._epoch_open:
            self._epoch_open = True
            self.scheduler.on_epoch_begin(where[0], self.optimizer)
        if not self._minibatch_open:
            self._minibatch_open = True
            self.scheduler.on_minibatch_begin(*where, self.optimizer)
        return where

    def restore(self, done: int) -> None:
        """Go on after ``done`` steps, with a scheduler whose state was restored at that point."""
        self.done = done
        phase = self.scheduler.state_dict()["lifecycle"]["phase"]
        self._epoch_open, self._minibatch_open = phase != "idle", phase == "minibatch"

    def close(self) -> None:
        """Take all hooks away; an epoch that is not complete stays open."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        if self._minibatch_open:
            self._minibatch_open = False
            self.scheduler.on_minibatch_end(*self.where(), self.optimizer)

    # -- internals --------------------------------------------------------------------------------------------------

    def _first_of(self, epoch: int) -> int:
        return math.ceil(epoch * self.steps_per_epoch - 1e-9)

    def before_forward(self, module: nn.Module) -> None:
        """A forward pass of the model begins; those of training open the minibatch."""
        if module.training and torch.is_grad_enabled() and not self._minibatch_open:
            self.open()

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        where = self.open()
        if not self.sees_losses and self._adds_to_losses():
            self.sees_losses = True  # said once
            message = (
                "the recipe adds to the loss, which it never sees: loss = manager.loss_update(loss) before backward"
            )
            warnings.warn(message, ScheduleWarning, stacklevel=4)
        self.scheduler.before_parameter_optimization(*where, self.optimizer)

    def _adds_to_losses(self) -> bool:
        entries = self.scheduler.entries
        return any(entry.started and entry.policy.listens_to("before_backward_pass") for entry in entries)

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if self._minibatch_open:
            self._end_minibatch()

    def _end_minibatch(self) -> None:
        epoch, position, length = self.where()
        self._minibatch_open = False
        self.scheduler.on_minibatch_end(epoch, position, length, self.optimizer)
        self.done += 1
        if position + 1 == length:
            self._epoch_open = False
            self.scheduler.on_epoch_end(epoch, self.optimizer)
