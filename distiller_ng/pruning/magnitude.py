"""Pruning by an absolute threshold (layer 2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from distiller_ng.core.context import StepContext
from distiller_ng.errors import ArgumentError
from distiller_ng.pruning._checks import check_map
from distiller_ng.pruning._threshold import ThresholdPruner
from distiller_ng.pruning.base import DEFAULT_TARGET, PRUNERS, MaskGroup, Scope, Target, targets_of_map
from distiller_ng.pruning.sparsity_schedules.base import ScheduleLike

__all__ = ["MagnitudeParameterPruner"]


@PRUNERS.register("MagnitudeParameterPruner", injected=("name",))
class MagnitudeParameterPruner(ThresholdPruner):
    """Prunes every weight that is not larger than its parameter's threshold: ``mask = |w| > t``.

    ``thresholds`` maps parameters (names, ``re:`` patterns, tokens) to thresholds in units of the weights; the key
    ``*`` is required and holds for **every** other parameter, biases and batch norms included (write ``'*': 0`` to
    leave those alone: only weights that are 0 already are masked). ``schedule``, ``scope`` and ``pattern``: see
    :class:`ThresholdPruner`.

    Source: S. Han et al., "Learning both Weights and Connections for Efficient Neural Networks",
    https://arxiv.org/abs/1506.02626. Weights ``[0.2, -0.5, 0.4]`` with threshold 0.4 give the mask ``[0, 1, 0]``::

        pruners:
          small_weights:
            class: MagnitudeParameterPruner
            thresholds: {conv1.weight: 0.02, '*': 0.01}

    Raises :class:`ArgumentError` without ``*`` or for a negative threshold.
    """

    def __init__(
        self,
        name: str,
        thresholds: Mapping[str, float],
        *,
        schedule: ScheduleLike | None = None,
        scope: Scope = "layer",
        pattern: str | int | None = None,
    ) -> None:
        super().__init__(name, schedule=schedule, scope=scope, pattern=pattern)
        self.thresholds = check_map("thresholds", thresholds, low=0, example="{conv1.weight: 0.02, '*': 0.01}")
        if DEFAULT_TARGET not in self.thresholds:
            raise ArgumentError(
                "thresholds needs the key '*', the threshold of every parameter that is not named; write '*': 0 to "
                "prune nothing else",
                argument=("thresholds",),
            )

    def targets(self) -> Sequence[Target]:
        """The keys of ``thresholds``."""
        return targets_of_map("thresholds", self.thresholds)

    def threshold(self, name: str, group: MaskGroup, ctx: StepContext) -> float:
        """What ``thresholds`` says."""
        return self.thresholds[self.target_of(name)]
