"""Cross entropy of the student's softened distribution under the teacher's (layer 2)."""

from __future__ import annotations

import torch
from torch import Tensor

from distiller_ng.knowledge_distillation._softened import SoftenedLoss
from distiller_ng.knowledge_distillation.base import DISTILLATION_LOSSES

__all__ = ["SoftCrossEntropy"]


@DISTILLATION_LOSSES.register("CE")
class SoftCrossEntropy(SoftenedLoss):
    """``-sum_c p_t log p_s``, averaged over the batch, with ``p = softmax(logits / T)``.

    Source: Geoffrey Hinton, Oriol Vinyals, Jeff Dean, "Distilling the Knowledge in a Neural Network" (2015),
    https://arxiv.org/abs/1503.02531

    It is the KL divergence plus the teacher's entropy, which is constant: gradients are the same, the value is not 0
    when the student equals the teacher.

    Example: student ``[0, 0]``, teacher ``[log 3, 0]``, T = 1 give ``-(0.75 log 0.5 + 0.25 log 0.5) = 0.6931``::

        distillers:
          kd: {class: KnowledgeDistiller, teacher: resnet56, temperature: 4.0, logits: CE}
    """

    def distance(self, *values: Tensor) -> Tensor:
        """The cross entropy, without the factor ``T^2``."""
        student, teacher = values
        dim = self._dim(student)
        log_student = self._log_probabilities(student, dim)
        target = torch.softmax(teacher.to(student.dtype) / self.temperature, dim)
        return self._reduced(-target * log_student, dim)
