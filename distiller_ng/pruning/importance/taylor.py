"""Importance as a first-order estimate of what the loss loses (layer 2)."""

from __future__ import annotations

from torch import Tensor

from distiller_ng.pruning.importance._gradients import GradientImportance
from distiller_ng.pruning.importance.base import IMPORTANCES, Aggregate, Normalize

__all__ = ["TaylorImportance"]


@IMPORTANCES.register("taylor")
class TaylorImportance(GradientImportance):
    """``sum |w * dL/dw|`` over the whole group, averaged over the optimizer steps of the epoch before a decision.

    Scores are changes of the loss and compare between layers as they are, so ``normalize`` is ``none`` unless given;
    ``aggregate``: see :class:`Importance`.

    Source: P. Molchanov et al., "Importance Estimation for Neural Network Pruning",
    https://arxiv.org/abs/1906.10771. A filter ``[1, -2]`` with gradients ``[0.5, 0.1]`` scores ``0.5 + 0.2 = 0.7``::

        pruners:
          taylor: {class: GroupPruner, importance: taylor, scope: global, target: {macs: 0.5}}

    Raises :class:`CalibrationError` when there were no gradients.
    """

    default_normalize = "none"

    def __init__(self, *, aggregate: Aggregate | None = None, normalize: Normalize | None = None) -> None:
        super().__init__(aggregate=aggregate, normalize=normalize)

    def saliency(self, weight: Tensor, gradient: Tensor) -> Tensor:
        """``|w * g|``."""
        return (weight * gradient).abs()
