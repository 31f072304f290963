"""Mean squared error of logits or features (layer 2)."""

from __future__ import annotations

from torch import Tensor

from distiller_ng.knowledge_distillation.base import DISTILLATION_LOSSES, ElementwiseLoss

__all__ = ["MeanSquaredError"]


@DISTILLATION_LOSSES.register("MSE")
class MeanSquaredError(ElementwiseLoss):
    """``(student - teacher)^2``, averaged over everything. With ``normalize``, divided by the teacher's ``mean(t^2)``.

    Source: Adriana Romero et al., "FitNets: Hints for Thin Deep Nets" (2015), https://arxiv.org/abs/1412.6550

    Example: student ``[1, 2]``, teacher ``[3, 2]`` give ``(4 + 0) / 2 = 2``, normalized ``2 / 6.5 = 0.3077``::

        distillers:
          hints: {class: KnowledgeDistiller, teacher: resnet56, layers: {layer2: layer2}, loss: MSE}
    """

    def elements(self, student: Tensor, teacher: Tensor) -> Tensor:
        """``(student - teacher)^2``."""
        return (student - teacher).square()

    def magnitude(self, teacher: Tensor) -> Tensor:
        """``mean(teacher^2)``."""
        return teacher.square().mean()
