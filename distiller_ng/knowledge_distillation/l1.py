"""Mean absolute error of logits or features (layer 2)."""

from __future__ import annotations

from torch import Tensor

from distiller_ng.knowledge_distillation.base import DISTILLATION_LOSSES, ElementwiseLoss

__all__ = ["MeanAbsoluteError"]


@DISTILLATION_LOSSES.register("L1")
class MeanAbsoluteError(ElementwiseLoss):
    """``|student - teacher|``, averaged over everything. With ``normalize``, divided by the teacher's ``mean(|t|)``.

    Source: Jangho Kim, SeongUk Park, Nojun Kwak, "Paraphrasing Complex Network: Network Compression via Factor
    Transfer" (2018), https://arxiv.org/abs/1802.04977

    Example: student ``[1, 2]``, teacher ``[3, 2]`` give ``(2 + 0) / 2 = 1``, normalized ``1 / 2.5 = 0.4``::

        distillers:
          hints: {class: KnowledgeDistiller, teacher: resnet56, layers: {layer2: layer2}, loss: L1}
    """

    def elements(self, student: Tensor, teacher: Tensor) -> Tensor:
        """``|student - teacher|``."""
        return (student - teacher).abs()

    def magnitude(self, teacher: Tensor) -> Tensor:
        """``mean(|teacher|)``."""
        return teacher.abs().mean()
