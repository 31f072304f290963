"""Scheduler objects that the user built on their own optimizer, driven to absolute epochs (layer 2)."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping
from typing import Any, cast

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from distiller_ng.errors import ArgumentError, LifecycleError
from distiller_ng.learning_rate.base import LRDriver, write_group_value
from distiller_ng.learning_rate.table import last_step

__all__ = ["LiveLR", "as_driver"]


class LiveLR(LRDriver):
    """Drives ``torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)`` and the like.

    Classes with a closed form get the value of the absolute epoch; the others are stepped until their ``last_epoch`` is
    that epoch, so a loop that steps the scheduler itself changes nothing. The deprecated ``step(epoch)`` is not used.

    Example: with gamma 0.9 and base 0.1, ``set_(optimizer, 2)`` sets 0.081 and leaves ``last_epoch`` at 2.
    """

    def __init__(self, scheduler: LRScheduler) -> None:
        self.scheduler = scheduler
        self.class_name = self.name = type(scheduler).__name__

    @property
    def optimizer(self) -> Optimizer:
        """The optimizer the scheduler was built on."""
        return self.scheduler.optimizer

    @property
    def metric(self) -> str | None:
        """``mode`` of ReduceLROnPlateau; None for the other classes."""
        return self.scheduler.mode if isinstance(self.scheduler, ReduceLROnPlateau) else None

    def bind(self, optimizer: Optimizer) -> None:
        """Raises :class:`LifecycleError` when the loop trains with another optimizer than the scheduler has."""
        mine = self.optimizer.param_groups
        if not any(group is other for group in optimizer.param_groups for other in mine):
            raise LifecycleError(
                f"{self.name} was built on another optimizer than the one the hooks get: build it on that one, or name "
                "its class in lr_schedulers"
            )

    def begin_(self, optimizer: Optimizer) -> None:
        """Nothing: building the scheduler set the value of epoch 0."""

    def set_(self, optimizer: Optimizer, epoch: int) -> None:
        """Set the value of ``epoch``."""
        self.bind(optimizer)
        scheduler = self.scheduler
        closed_form = getattr(scheduler, "_get_closed_form_lr", None)
        if closed_form is None or type(scheduler).step is not LRScheduler.step:
            self._step_to(epoch)
            return
        groups = self.optimizer.param_groups
        for group in groups[len(scheduler.base_lrs) :]:  # added since
            scheduler.base_lrs.append(group.setdefault("initial_lr", group["lr"]))
        scheduler.last_epoch = epoch
        for group, rate in zip(groups, closed_form(), strict=True):
            write_group_value(group, "lr", rate)
        scheduler._last_lr = [_copied(group["lr"]) for group in groups]

    def observe_(self, optimizer: Optimizer, value: float, epoch: int) -> None:
        """ReduceLROnPlateau: one step with the result after ``epoch``."""
        self.bind(optimizer)
        self.scheduler.last_epoch = epoch
        cast(ReduceLROnPlateau, self.scheduler).step(value)

    def _step_to(self, epoch: int) -> None:
        end = last_step(self.scheduler)
        target = epoch if end is None else min(epoch, end)
        if _progress(self.scheduler) > target:
            raise LifecycleError(
                f"{self.name} is already at {_progress(self.scheduler)}, past {target}: it was stepped elsewhere. "
                "Leave its steps to the policy, with unit='step' for one that counts optimizer steps"
            )
        while _progress(self.scheduler) < target:
            self.scheduler.step()

    def _state(self) -> dict[str, Any]:
        return _plain(self.scheduler.state_dict())

    def _load(self, state: Mapping[str, Any]) -> None:
        self.scheduler.load_state_dict(copy.deepcopy(dict(state)))


def as_driver(scheduler: Any) -> LRDriver:
    """A driver for whatever a policy was given; raises :class:`ArgumentError` for what is no scheduler."""
    if isinstance(scheduler, LRDriver):
        return scheduler
    if isinstance(scheduler, LRScheduler):
        return LiveLR(scheduler)
    what = f"the class {scheduler.__name__}" if isinstance(scheduler, type) else type(scheduler).__name__
    raise ArgumentError(
        f"expected a learning-rate scheduler, got {what}: pass an object such as "
        "torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9) or ScheduledLR('lr', 'ExponentialLR', {'gamma': 0.9})",
        argument=("lr_scheduler",),
    )


def _progress(scheduler: Any) -> int:
    """How far a scheduler was stepped; ChainedScheduler does not count, so its first member is asked."""
    while not hasattr(scheduler, "last_epoch"):
        scheduler = scheduler._schedulers[0]
    return int(scheduler.last_epoch)


def _plain(state: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a scheduler's state without counters (MultiStepLR's milestones): the constructor sets those."""
    kept = {key: value for key, value in state.items() if not isinstance(value, Counter)}
    if "_schedulers" in kept:
        kept["_schedulers"] = [_plain(member) for member in kept["_schedulers"]]
    return copy.deepcopy(kept)


def _copied(rate: Any) -> Any:
    return rate.clone() if isinstance(rate, Tensor) else rate
