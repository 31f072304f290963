"""Listening to a training loop through its scheduler, for records of a run (layer 1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from distiller_ng.core.policy import LossComponent
from distiller_ng.core.summary import CompressionSummary

__all__ = ["RunObserver"]


class RunObserver:
    """What a scheduler tells whoever is in its ``observers``; every method does nothing unless overridden.

    An observer changes nothing and is no part of the scheduler's state: a run with one trains as a run without, and
    either can be resumed as the other. ``epoch`` is absolute and 0-based.
    """

    def epoch_began(self, epoch: int) -> None:
        """Policies are about to act at the beginning of ``epoch``; also told when a resumed run goes on inside it."""

    def loss_seen(
        self,
        epoch: int,
        minibatch_id: int,
        minibatches_per_epoch: int,
        losses: tuple[Tensor | None, Tensor],
        components: Sequence[LossComponent],
    ) -> None:
        """The loop folded its loss: ``losses`` are the loss it gave and the one to differentiate, both undivided."""

    def epoch_ended(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Policies have acted at the end of ``epoch``, masks are applied; ``metrics`` is what the loop reported."""

    def finished(self, summary: CompressionSummary) -> None:
        """The run has ended; the scheduler compared planned with achieved sparsity."""
