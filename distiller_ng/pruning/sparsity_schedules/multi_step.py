"""Sparsity in steps (layer 2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from distiller_ng.errors import ArgumentError
from distiller_ng.pruning.sparsity_schedules.base import SPARSITY_SCHEDULES, check_sparsity

__all__ = ["MultiStep"]


@SPARSITY_SCHEDULES.register("MultiStep")
@dataclass(frozen=True, slots=True)
class MultiStep:
    """Each level holds from its milestone to the next one; milestones are fractions of the window, ascending.

    With as many ``levels`` as ``milestones`` the target before the first milestone is 0; with one level more, that
    first level holds there. ``milestones: [0, 0.5]``, ``levels: [0.3, 0.6]`` gives 0.3 up to half way, then 0.6. In a
    schedule::

        schedule: {class: MultiStep, milestones: [0, 0.5], levels: [0.3, 0.6]}
    """

    milestones: Sequence[float]
    levels: Sequence[float]

    def __post_init__(self) -> None:
        # Tuples, so that the value object stays hashable and nobody changes it from outside.
        for name in ("milestones", "levels"):
            values = getattr(self, name)
            if isinstance(values, str) or not isinstance(values, Sequence):
                raise ArgumentError(f"{name} must be a list of numbers from 0 to 1, got {values!r}", argument=(name,))
            for position, value in enumerate(values):
                check_sparsity(name, value, position)
            object.__setattr__(self, name, tuple(values))
        if not self.levels or len(self.levels) - len(self.milestones) not in (0, 1):
            raise ArgumentError(
                f"MultiStep needs a level for each milestone, and may have one more for the time before the first; got "
                f"{len(self.milestones)} milestones and {len(self.levels)} levels",
                argument=("levels",),
            )
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ArgumentError(f"milestones must ascend, got {list(self.milestones)}", argument=("milestones",))

    def target(self, progress: float) -> float:
        """The sparsity at ``progress`` 0..1."""
        before = [0.0] if len(self.levels) == len(self.milestones) else []
        passed = sum(1 for milestone in self.milestones if progress >= milestone)
        return float([*before, *self.levels][passed])
