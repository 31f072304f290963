"""Where training stands: absolute epoch and optimizer step (layer 1)."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["TrainPosition"]


@dataclass(frozen=True, slots=True)
class TrainPosition:
    """One point in training, counted in optimizer steps.

    ``epoch`` is absolute and 0-based; ``minibatch_id`` counts optimizer steps already done in this epoch and
    ``minibatches_per_epoch`` how many there will be (without gradient accumulation both count minibatches).
    ``steps_per_epoch``: the exact number, where an epoch is no whole number of steps long (12.5: epochs have 13 and
    12 steps in turn).

    >>> TrainPosition(3, 25, 100).fraction
    3.25
    >>> TrainPosition(1, 0, 12, steps_per_epoch=12.5).fraction
    1.04
    """

    epoch: int
    minibatch_id: int = 0
    minibatches_per_epoch: int = 1
    steps_per_epoch: float | None = None

    @classmethod
    def one_shot(cls) -> TrainPosition:
        """After all training: every window is complete there."""
        return cls(0, 0, 1, math.inf)

    @property
    def fraction(self) -> float:
        """Position in epochs: ``epoch + minibatch_id / minibatches_per_epoch``; infinity for one-shot use."""
        exact = self.steps_per_epoch
        if exact is None:
            return self.epoch + self.minibatch_id / self.minibatches_per_epoch
        if math.isinf(exact):
            return math.inf
        return (math.ceil(self.epoch * exact) + self.minibatch_id) / exact

    @property
    def epoch_length(self) -> float:
        """Optimizer steps in an epoch."""
        return self.minibatches_per_epoch if self.steps_per_epoch is None else self.steps_per_epoch

    @property
    def step(self) -> int:
        """Absolute optimizer step, were every epoch this long: ``epoch * minibatches_per_epoch + minibatch_id``."""
        if self.steps_per_epoch is not None and math.isfinite(self.steps_per_epoch):
            return math.ceil(self.epoch * self.steps_per_epoch) + self.minibatch_id
        return self.epoch * self.minibatches_per_epoch + self.minibatch_id
