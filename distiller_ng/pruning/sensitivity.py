"""Pruning by a threshold in standard deviations (layer 2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from distiller_ng.core.context import StepContext
from distiller_ng.pruning._checks import check_map
from distiller_ng.pruning._threshold import StatisticsPruner
from distiller_ng.pruning.base import PRUNERS, MaskGroup, Scope, Target, targets_of_map
from distiller_ng.pruning.sparsity_schedules.base import ScheduleLike

__all__ = ["SensitivityPruner"]


@PRUNERS.register("SensitivityPruner", injected=("name",))
class SensitivityPruner(StatisticsPruner):
    """Prunes weights within ``s`` standard deviations of zero: ``mask = |w| > s * std(W)``.

    ``sensitivities`` maps parameters (names, ``re:`` patterns, tokens, ``*`` for all others) to ``s``. The standard
    deviation (unbiased) is measured once, before the first pruning, and kept: as the surviving weights are retrained
    the same threshold prunes more of them. Normally distributed weights lose 68.3 % with ``s = 1`` and 38.3 % with
    0.5. ``scope: global`` pools the standard deviation over all targets; ``schedule`` and ``pattern``: see
    :class:`ThresholdPruner`.

    Source: S. Han et al., "Learning both Weights and Connections for Efficient Neural Networks",
    https://arxiv.org/abs/1506.02626. Weights ``[-1, 0, 1, 4]`` have the deviation 2.16; ``s = 0.5`` makes the
    threshold 1.08 and the mask ``[0, 0, 0, 1]``::

        pruners:
          my_pruner:
            class: SensitivityPruner
            sensitivities: {'features.0.weight': 0.25, 'classifier.6.weight': 0.625}

    Raises :class:`ArgumentError` for a negative sensitivity.
    """

    def __init__(
        self,
        name: str,
        sensitivities: Mapping[str, float],
        *,
        schedule: ScheduleLike | None = None,
        scope: Scope = "layer",
        pattern: str | int | None = None,
    ) -> None:
        super().__init__(name, schedule=schedule, scope=scope, pattern=pattern)
        self.sensitivities = check_map("sensitivities", sensitivities, low=0, example="{conv1.weight: 0.5}")

    def targets(self) -> Sequence[Target]:
        """The keys of ``sensitivities``."""
        return targets_of_map("sensitivities", self.sensitivities)

    def measured(self, weight: Tensor) -> Tensor:
        """The weights themselves."""
        return weight

    def threshold(self, name: str, group: MaskGroup, ctx: StepContext) -> float:
        """``s * std``."""
        return self.sensitivities[self.target_of(name)] * self.statistics(name, group, ctx).std
