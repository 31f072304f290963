"""Magnitude pruning to a level, for new schedules (layer 2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from distiller_ng.pruning._checks import check_weights
from distiller_ng.pruning._level import ElementLevelPruner
from distiller_ng.pruning.base import PRUNERS, Scope, Target, targets_of_list
from distiller_ng.pruning.sparsity_schedules.base import ScheduleLike

__all__ = ["MagnitudePruner"]


@PRUNERS.register("MagnitudePruner", injected=("name",))
class MagnitudePruner(ElementLevelPruner):
    """Prunes the weights of lowest magnitude; the level is fixed, follows a schedule, or is an N:M pattern's.

    ``weights`` are targets: names, ``re:`` patterns, ``__ALL_PRUNABLE__``. Of ``sparsity`` (0..1), ``schedule`` and
    ``pattern`` at least one says how much: exactly ``int(s * n)`` of ``n`` weights, in each tensor (``scope: layer``)
    or over all of them (``scope: global``). With a pattern and a level, what the pattern drops goes first, so a level
    rising to ``1 - N / M`` ends in exactly the pattern. Optimizer state of weights that are pruned or come back is
    zeroed.

    Source: S. Han et al., "Learning both Weights and Connections for Efficient Neural Networks",
    https://arxiv.org/abs/1506.02626. ``[1, 4]`` and ``[2, 3]`` at 0.5 keep 4 and 3 by layer as well as globally; at
    0.25 nothing is pruned by layer (``int(0.25 * 2) = 0``) and only the 1 globally::

        pruners:
          gradual:
            class: MagnitudePruner
            weights: __ALL_PRUNABLE__
            schedule: {class: AGP, initial_sparsity: 0.05, final_sparsity: 0.9}
            scope: global

    Raises :class:`ArgumentError` when nothing says how much to prune.
    """

    resets_optimizer_state: ClassVar[bool] = True

    def __init__(
        self,
        name: str,
        weights: str | Sequence[str],
        *,
        sparsity: float | None = None,
        schedule: ScheduleLike | None = None,
        scope: Scope = "layer",
        pattern: str | int | None = None,
    ) -> None:
        super().__init__(name, sparsity, schedule=schedule, scope=scope, pattern=pattern)
        self.weights = check_weights(weights)

    def targets(self) -> Sequence[Target]:
        """``weights``."""
        return targets_of_list("weights", self.weights)
