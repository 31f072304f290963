"""Kullback-Leibler divergence of softened class distributions, the distillation loss of Hinton et al. (layer 2)."""

from __future__ import annotations

from torch import Tensor

from distiller_ng.knowledge_distillation._softened import SoftenedLoss
from distiller_ng.knowledge_distillation.base import DISTILLATION_LOSSES

__all__ = ["KLDivergence"]


@DISTILLATION_LOSSES.register("KL")
class KLDivergence(SoftenedLoss):
    """``sum_c p_t (log p_t - log p_s)``, averaged over the batch, with ``p = softmax(logits / T)``.

    Source: Geoffrey Hinton, Oriol Vinyals, Jeff Dean, "Distilling the Knowledge in a Neural Network" (2015),
    https://arxiv.org/abs/1503.02531

    Logits ``[N, C]``, ``[N, T, C]`` (tokens) or ``[N, C, H, W]`` (pixels); the mean runs over samples and positions.

    Example: student ``[0, 0]``, teacher ``[log 3, 0]``, T = 1: ``p_s = [0.5, 0.5]``, ``p_t = [0.75, 0.25]``, and the
    divergence is ``0.75 log 1.5 + 0.25 log 0.5 = 0.1308``::

        distillers:
          kd: {class: KnowledgeDistiller, teacher: resnet56, temperature: 4.0, logits: KL}
    """

    def distance(self, *values: Tensor) -> Tensor:
        """The divergence, without the factor ``T^2``."""
        student, teacher = values
        dim = self._dim(student)
        log_student = self._log_probabilities(student, dim)
        log_teacher = self._log_probabilities(teacher.to(student.dtype), dim)
        return self._reduced(log_teacher.exp() * (log_teacher - log_student), dim)
