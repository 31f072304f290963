"""The cubic schedule of automated gradual pruning (layer 2)."""

from __future__ import annotations

from dataclasses import dataclass

from distiller_ng.errors import ArgumentError
from distiller_ng.pruning.sparsity_schedules.base import SPARSITY_SCHEDULES, check_sparsity

__all__ = ["AGP"]


@SPARSITY_SCHEDULES.register("AGP")
@dataclass(frozen=True, slots=True, kw_only=True)
class AGP:
    """Fast at first, slow at the end: ``s = sf + (si - sf) * (1 - progress)^3``.

    Source: M. Zhu and S. Gupta, "To prune, or not to prune: exploring the efficacy of pruning for model compression",
    https://arxiv.org/abs/1710.01878. ``final_sparsity`` must exceed ``initial_sparsity``. Half way from 0.05 to 0.85
    the target is ``0.85 - 0.8 * 0.125 = 0.75``. In a schedule::

        schedule: {class: AGP, initial_sparsity: 0.05, final_sparsity: 0.85}
    """

    initial_sparsity: float = 0.0
    final_sparsity: float

    def __post_init__(self) -> None:
        check_sparsity("initial_sparsity", self.initial_sparsity)
        check_sparsity("final_sparsity", self.final_sparsity)
        if not self.final_sparsity > self.initial_sparsity:
            raise ArgumentError(
                f"final_sparsity ({self.final_sparsity}) must exceed initial_sparsity ({self.initial_sparsity})",
                argument=("final_sparsity",),
            )

    def target(self, progress: float) -> float:
        """The sparsity at ``progress`` 0..1."""
        return self.final_sparsity + (self.initial_sparsity - self.final_sparsity) * (1.0 - progress) ** 3
