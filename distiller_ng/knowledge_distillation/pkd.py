"""Patient knowledge distillation: squared distance of normalised hidden states (layer 2)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from distiller_ng.knowledge_distillation.base import DISTILLATION_LOSSES, DistillationLoss, channel_dim

__all__ = ["PatientDistance"]


@DISTILLATION_LOSSES.register("PKD")
class PatientDistance(DistillationLoss):
    """``|| s / ||s|| - t / ||t|| ||^2`` along the channels, averaged over samples and positions.

    Channels are dimension 1 of ``[N, C, H, W]``, else the last. It is twice the cosine distance.

    Source: Siqi Sun et al., "Patient Knowledge Distillation for BERT Model Compression" (2019), equation 6,
    https://arxiv.org/abs/1908.09355

    Example: student ``[[2, 0]]``, teacher ``[[0, 5]]`` give ``1 + 1 = 2``::

        distillers:
          pkd: {class: KnowledgeDistiller, teacher: bert, outputs: {hidden_states.2: hidden_states.4}, loss: PKD}
    """

    def distance(self, *values: Tensor) -> Tensor:
        """The mean squared distance of the directions."""
        student, teacher = values
        dim = channel_dim(student)
        difference = functional.normalize(student, dim=dim) - functional.normalize(teacher, dim=dim)
        return difference.square().sum(dim).mean()
