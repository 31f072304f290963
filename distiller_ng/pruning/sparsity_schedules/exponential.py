"""The same fraction of the remaining weights in every step (layer 2)."""

from __future__ import annotations

from dataclasses import dataclass

from distiller_ng.errors import ArgumentError
from distiller_ng.pruning.sparsity_schedules.base import SPARSITY_SCHEDULES, check_sparsity

__all__ = ["Exponential"]


@SPARSITY_SCHEDULES.register("Exponential")
@dataclass(frozen=True, slots=True, kw_only=True)
class Exponential:
    """The density decays exponentially: ``1 - s = (1 - si) * ((1 - sf) / (1 - si))^progress``.

    Equal steps of progress prune an equal share of what is left, as iterative pruning does (J. Frankle and M. Carbin,
    "The Lottery Ticket Hypothesis", https://arxiv.org/abs/1803.03635). Half way from 0 to 0.75 the density is
    ``0.25^0.5 = 0.5``, so the target is 0.5. Both sparsities must be below 1. In a schedule::

        schedule: {class: Exponential, final_sparsity: 0.75}
    """

    initial_sparsity: float = 0.0
    final_sparsity: float

    def __post_init__(self) -> None:
        for name, value in (("initial_sparsity", self.initial_sparsity), ("final_sparsity", self.final_sparsity)):
            check_sparsity(name, value)
            if value == 1:
                raise ArgumentError(f"{name} must be below 1: an exponential never gets there", argument=(name,))

    def target(self, progress: float) -> float:
        """The sparsity at ``progress`` 0..1."""
        if progress >= 1.0:
            return self.final_sparsity  # exactly, without the rounding of the power
        dense = 1.0 - self.initial_sparsity
        return float(1.0 - dense * ((1.0 - self.final_sparsity) / dense) ** progress)
