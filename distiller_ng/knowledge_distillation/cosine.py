"""Cosine distance of logits or features (layer 2)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from distiller_ng.knowledge_distillation.base import DISTILLATION_LOSSES, ElementwiseLoss, channel_dim

__all__ = ["CosineDistance"]


@DISTILLATION_LOSSES.register("Cosine")
class CosineDistance(ElementwiseLoss):
    """``1 - cos(student, teacher)`` along the channels, averaged over samples and positions.

    Channels are dimension 1 of ``[N, C, H, W]``, else the last: ``[N, C]``, ``[N, T, C]``. Vectors of zeros count 1.

    Source: Victor Sanh et al., "DistilBERT, a distilled version of BERT" (2019), section 2,
    https://arxiv.org/abs/1910.01108

    Example: student ``[[1, 0]]``, teacher ``[[3, 4]]`` give ``1 - 3 / 5 = 0.4``::

        distillers:
          hidden: {class: KnowledgeDistiller, teacher: bert, outputs: {hidden_states.3: hidden_states.6}, loss: cosine}
    """

    def elements(self, student: Tensor, teacher: Tensor) -> Tensor:
        """``1 - cos`` with the channels kept as one."""
        dim = channel_dim(student)
        return 1 - functional.cosine_similarity(student, teacher, dim=dim).unsqueeze(dim)
