"""Importance as a second-order estimate of what the loss loses (layer 2)."""

from __future__ import annotations

from torch import Tensor

from distiller_ng.pruning.importance._gradients import GradientImportance
from distiller_ng.pruning.importance.base import IMPORTANCES, Aggregate, Normalize

__all__ = ["HessianDiagonalImportance"]


@IMPORTANCES.register("hessian_diagonal")
class HessianDiagonalImportance(GradientImportance):
    """``sum w^2 * h / 2`` over the whole group, ``h`` the diagonal of the Hessian, as in Optimal Brain Damage.

    ``h`` is the empirical Fisher information, the mean of ``g^2`` over the optimizer steps of the epoch before a
    decision: it costs no extra backward pass and is never negative. Gradients of whole batches make it smaller by
    about the batch size, alike for all channels. ``normalize`` is ``none`` unless given; ``aggregate``: see
    :class:`Importance`.

    Sources: Y. LeCun et al., "Optimal Brain Damage", NIPS 1989; L. Theis et al., "Faster gaze prediction with dense
    networks and Fisher pruning", https://arxiv.org/abs/1801.05787. A filter ``[1, -2]`` with gradients ``[0.5, 0.1]``
    scores ``(0.25 + 0.04) / 2 = 0.145``::

        pruners:
          obd: {class: GroupPruner, importance: hessian_diagonal, scope: global, target: {macs: 0.5}}

    Raises :class:`CalibrationError` when there were no gradients.
    """

    default_normalize = "none"

    def __init__(self, *, aggregate: Aggregate | None = None, normalize: Normalize | None = None) -> None:
        super().__init__(aggregate=aggregate, normalize=normalize)

    def saliency(self, weight: Tensor, gradient: Tensor) -> Tensor:
        """``(w * g)^2 / 2``."""
        return (weight * gradient).square() / 2
