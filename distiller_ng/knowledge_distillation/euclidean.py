"""Euclidean distance of logits or features (layer 2)."""

from __future__ import annotations

import torch
from torch import Tensor

from distiller_ng.knowledge_distillation.base import DISTILLATION_LOSSES, DistillationLoss

__all__ = ["EuclideanDistance"]


@DISTILLATION_LOSSES.register("Euclidean")
class EuclideanDistance(DistillationLoss):
    """``||student - teacher||_2`` of each sample, averaged over the batch. It has no temperature.

    Source: named as a distance between logits in Geoffrey Hinton, Oriol Vinyals, Jeff Dean, "Distilling the Knowledge
    in a Neural Network" (2015), section 2.1, https://arxiv.org/abs/1503.02531

    The gradient has length 1 however far the student is, and is 0 where it equals the teacher.

    Example: student ``[[0, 0], [1, 1]]``, teacher ``[[3, 4], [1, 1]]`` give ``(5 + 0) / 2 = 2.5``::

        distillers:
          kd: {class: KnowledgeDistiller, teacher: resnet56, logits: Euclidean}
    """

    def distance(self, *values: Tensor) -> Tensor:
        """The mean norm of the difference."""
        student, teacher = values
        lengths: Tensor = torch.linalg.vector_norm((student - teacher).flatten(1), dim=1)
        return lengths.mean()
