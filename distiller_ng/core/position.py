"""Where training stands: absolute epoch and optimizer step (layer 1)."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["TrainPosition"]


@dataclass(frozen=True, slots=True)
class TrainPosition:
    """One point in training, counted in optimizer steps.

    ``epoch`` is absolute and 0-based; ``minibatch_id`` counts optimizer steps already done in this epoch and
    ``minibatches_per_epoch`` how many there will be (without gradient accumulation both count minibatches).

    >>> TrainPosition(3, 25, 100).fraction
    3.25
    """

    epoch: int
    minibatch_id: int = 0
    minibatches_per_epoch: int = 1

    @property
    def fraction(self) -> float:
        """Position in epochs: ``epoch + minibatch_id / minibatches_per_epoch``."""
        return self.epoch + self.minibatch_id / self.minibatches_per_epoch

    @property
    def step(self) -> int:
        """Absolute optimizer step, were every epoch this long: ``epoch * minibatches_per_epoch + minibatch_id``."""
        return self.epoch * self.minibatches_per_epoch + self.minibatch_id
