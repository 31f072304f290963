"""Importance as the size of the gradients (layer 2)."""

from __future__ import annotations

from torch import Tensor

from distiller_ng.pruning.importance._gradients import GradientImportance
from distiller_ng.pruning.importance.base import IMPORTANCES, Aggregate, Normalize

__all__ = ["GradientMagnitudeImportance"]


@IMPORTANCES.register("gradient")
class GradientMagnitudeImportance(GradientImportance):
    """``sum |dL/dw|`` over the whole group, averaged over the optimizer steps of the epoch before a decision.

    What no longer learns and no longer matters goes. ``aggregate`` and ``normalize``: see :class:`Importance`.

    Source: the gradient criterion that P. Molchanov et al. compare with in "Importance Estimation for Neural Network
    Pruning", https://arxiv.org/abs/1906.10771. A filter with gradients ``[0.5, -0.1]`` scores 0.6::

        pruners:
          gradient: {class: GroupPruner, importance: gradient, sparsity: 0.5}

    Raises :class:`CalibrationError` when there were no gradients.
    """

    def __init__(self, *, aggregate: Aggregate | None = None, normalize: Normalize | None = None) -> None:
        super().__init__(aggregate=aggregate, normalize=normalize)

    def saliency(self, weight: Tensor, gradient: Tensor) -> Tensor:
        """``|g|``."""
        return gradient.abs()
