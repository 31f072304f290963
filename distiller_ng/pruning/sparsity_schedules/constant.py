"""The same sparsity all the time (layer 2)."""

from __future__ import annotations

from dataclasses import dataclass

from distiller_ng.pruning.sparsity_schedules.base import SPARSITY_SCHEDULES, check_sparsity

__all__ = ["Constant"]


@SPARSITY_SCHEDULES.register("Constant")
@dataclass(frozen=True, slots=True)
class Constant:
    """``s = sparsity``, whatever the progress: ``Constant(0.5).target(0.3)`` is 0.5. In a schedule::

    schedule: {class: Constant, sparsity: 0.5}
    """

    sparsity: float

    def __post_init__(self) -> None:
        check_sparsity("sparsity", self.sparsity)

    def target(self, progress: float) -> float:
        """The sparsity at ``progress`` 0..1."""
        return self.sparsity
