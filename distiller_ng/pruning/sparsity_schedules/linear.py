"""A straight line from one sparsity to another (layer 2)."""

from __future__ import annotations

from dataclasses import dataclass

from distiller_ng.pruning.sparsity_schedules.base import SPARSITY_SCHEDULES, check_sparsity

__all__ = ["Linear"]


@SPARSITY_SCHEDULES.register("Linear")
@dataclass(frozen=True, slots=True, kw_only=True)
class Linear:
    """As much in every step: ``s = si + (sf - si) * progress``; it may also fall.

    A quarter of the way from 0.2 to 0.8 the target is 0.35. In a schedule::

        schedule: {class: Linear, initial_sparsity: 0.2, final_sparsity: 0.8}
    """

    initial_sparsity: float = 0.0
    final_sparsity: float

    def __post_init__(self) -> None:
        check_sparsity("initial_sparsity", self.initial_sparsity)
        check_sparsity("final_sparsity", self.final_sparsity)

    def target(self, progress: float) -> float:
        """The sparsity at ``progress`` 0..1."""
        # Weighted so that both ends are exact: s_i + (s_f - s_i) may miss s_f by one rounding.
        return self.initial_sparsity * (1.0 - progress) + self.final_sparsity * progress
