"""The registry of learning-rate schedulers, and what a policy needs of one (layer 2)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from distiller_ng.errors import CheckpointError
from distiller_ng.registry import Registry

__all__ = ["INJECTED", "LR_SCHEDULERS", "LRDriver", "Unit", "write_group_value"]

#: What one "epoch" of a scheduler class means: an epoch, or an optimizer step.
Unit: TypeAlias = Literal["epoch", "step"]

#: Constructor arguments of scheduler classes that a schedule never gives.
INJECTED = ("optimizer", "last_epoch")

LR_SCHEDULERS: Registry[LRScheduler] = Registry("lr_scheduler", "distiller_ng.learning_rate")


class LRDriver(ABC):
    """Sets the learning rates of an optimizer's groups for an absolute epoch (or step, see :data:`Unit`)."""

    name: str
    class_name: str
    unit: Unit = "epoch"

    @property
    @abstractmethod
    def optimizer(self) -> Optimizer | None:
        """The optimizer this driver was bound to, if any."""

    @property
    @abstractmethod
    def metric(self) -> str | None:
        """Which validation result it waits for (``"min"`` or ``"max"``, ReduceLROnPlateau); None for none."""

    @abstractmethod
    def bind(self, optimizer: Optimizer) -> None:
        """Record the base learning rates of ``optimizer``, moving none of its current ones."""

    @abstractmethod
    def begin_(self, optimizer: Optimizer) -> None:
        """Training begins inside the window: set the value of epoch 0 where it is not the base (warm-ups)."""

    @abstractmethod
    def set_(self, optimizer: Optimizer, epoch: int) -> None:
        """Set the value of the absolute ``epoch``."""

    @abstractmethod
    def observe_(self, optimizer: Optimizer, value: float, epoch: int) -> None:
        """Take the validation result after ``epoch``, and reduce the learning rates if it is time to."""

    @abstractmethod
    def _state(self) -> dict[str, Any]:
        """Plain values that a resumed run needs."""

    @abstractmethod
    def _load(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`_state`."""

    def state_dict(self) -> dict[str, Any]:
        """Plain values that a resumed run needs, with the class they belong to."""
        return {"class": self.class_name, "state": self._state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`state_dict`; raises :class:`CheckpointError` for the state of another class."""
        if set(state) != {"class", "state"} or state["class"] != self.class_name:
            raise CheckpointError(
                f"lr_scheduler {self.name!r} is a {self.class_name}, the checkpoint has "
                f"{state.get('class', sorted(state))!r} there"
            )
        self._load(state["state"])


def write_group_value(group: dict[str, Any], key: str, value: Any) -> None:
    """``group[key] = value``; a tensor in its place (capturable optimizers) is filled and stays the same one."""
    present = group.get(key)
    if isinstance(present, Tensor):
        with torch.no_grad():
            present.fill_(float(value))
    else:
        group[key] = value
