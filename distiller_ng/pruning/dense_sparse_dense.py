"""Sparse for a while, then dense again (layer 2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from torch import Tensor

from distiller_ng.core.context import StepContext
from distiller_ng.core.window import PolicyWindow
from distiller_ng.pruning._checks import check_weights
from distiller_ng.pruning._level import ElementLevelPruner
from distiller_ng.pruning.base import PRUNERS, MaskGroup, Scope, Target, targets_of_list
from distiller_ng.pruning.sparsity_schedules.base import ScheduleLike

__all__ = ["DenseSparseDense"]


@PRUNERS.register("DenseSparseDense", injected=("name",))
class DenseSparseDense(ElementLevelPruner):
    """Regularizes a network by training it sparse for the policy's window and dense again after it.

    At the window's first epoch the weights of lowest magnitude are pruned, up to ``sparsity`` (0.25 to 0.5 in the
    source), and that mask is held; when the window ends this pruner's masks are released, and the weights start again
    from zero, with zeroed optimizer state. Masks of other pruners stay. With ``schedule`` the level is decided again
    at every active epoch instead. Several windows make several sparse phases: give the pruner one policy for each.
    Train the dense phase with a tenth of the learning rate, as the source does.

    Source: S. Han et al., "DSD: Dense-Sparse-Dense Training for Deep Neural Networks",
    https://arxiv.org/abs/1607.04381. Weights ``[0.2, -0.5, 0.4, 0.1]`` at 0.5 train as ``[0, -0.5, 0.4, 0]`` in epochs
    10 to 19 here, and all four learn from epoch 20 on::

        pruners:
          dsd:
            class: DenseSparseDense
            weights: __ALL_PRUNABLE__
            sparsity: 0.5
        policies:
          - pruner: {instance_name: dsd}
            starting_epoch: 10
            ending_epoch: 20
            frequency: 1

    Raises :class:`ArgumentError` when nothing says how much to prune.
    """

    resets_optimizer_state: ClassVar[bool] = True
    releases_at_window_end: ClassVar[bool] = True

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

    def compute_masks(self, group: MaskGroup, ctx: StepContext) -> Mapping[str, Tensor]:
        """Once in a window, or with a schedule at every call."""
        if self.schedule is None and all(self.owner in ctx.masks[name].owners for name in group.names):
            return {}
        return super().compute_masks(group, ctx)

    def planned_sparsity(self, name: str, window: PolicyWindow) -> float | None:
        """0: what the window pruned is dense again after it."""
        return 0.0
