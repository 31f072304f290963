"""Relational knowledge distillation: distances and angles between the samples of a batch (layer 2)."""

from __future__ import annotations

import math
from numbers import Real
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from distiller_ng.errors import ArgumentError
from distiller_ng.knowledge_distillation.base import DISTILLATION_LOSSES, Alignment, DistillationLoss

__all__ = ["Relation"]


@DISTILLATION_LOSSES.register("Relation", "RKD")
class Relation(DistillationLoss):
    """Huber distance between the student's and the teacher's relations of the samples in a batch.

    Relations are the pairwise distances, divided by their mean (``distance_weight``), and the cosines of the angles of
    all triples (``angle_weight``). Features are flattened, ``[N, D]``; their sizes may differ, so there are no
    projections. Angles cost ``N^3`` numbers. A batch of one sample has no relations: the loss is 0.

    Source: Wonpyo Park, Dongju Kim, Yan Lu, Minsu Cho, "Relational Knowledge Distillation" (2019),
    https://arxiv.org/abs/1904.05068, where the weights are 25 and 50 beside a task loss.

    Example: student ``[[0], [1], [2]]``, teacher ``[[0], [1], [3]]``. Distances 1, 2, 1 over their mean 4/3 are 0.75,
    1.5, 0.75; 1, 3, 2 over 2 are 0.5, 1.5, 1. Huber of the differences 0.25, 0, -0.25 is 1/32, 0, 1/32; over all nine
    pairs the mean is ``4 / 32 / 9 = 0.01389``. Points on a line have the same angles in the same order, so the second
    part is 0::

        distillers:
          rkd: {class: KnowledgeDistiller, teacher: resnet56, layers: {avgpool: avgpool}, loss: RKD, gain: 25.0}
    """

    alignment: ClassVar[Alignment] = "batch"

    def __init__(self, distance_weight: float = 1.0, angle_weight: float = 2.0) -> None:
        for name, value in (("distance_weight", distance_weight), ("angle_weight", angle_weight)):
            if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value) or value < 0:
                raise ArgumentError(f"{name} must be a finite number from 0, got {value!r}", argument=(name,))
        self.distance_weight = float(distance_weight)
        self.angle_weight = float(angle_weight)

    def distance(self, *values: Tensor) -> Tensor:
        """The weighted sum of both parts."""
        student, teacher = (value.flatten(1) for value in values)
        total = student.sum() * 0
        if len(student) < 2:
            return total
        if self.distance_weight:
            parts = functional.smooth_l1_loss(_distances(student), _distances(teacher).to(student.dtype))
            total = total + self.distance_weight * parts
        if self.angle_weight:
            parts = functional.smooth_l1_loss(_angles(student), _angles(teacher).to(student.dtype))
            total = total + self.angle_weight * parts
        return total


def _distances(features: Tensor) -> Tensor:
    """Pairwise distances ``[N, N]`` over their mean; samples that are equal have distance 0 and gradient 0."""
    squares = (features.unsqueeze(1) - features.unsqueeze(0)).square().sum(-1)
    apart = squares > 0
    distances = torch.where(apart, squares, 1.0).sqrt() * apart
    count = apart.sum().clamp(min=1)
    mean = distances.sum() / count
    return distances / torch.where(mean > 0, mean, 1.0)


def _angles(features: Tensor) -> Tensor:
    """Cosines ``[N, N, N]`` of the angle at sample i between samples j and k."""
    differences = features.unsqueeze(0) - features.unsqueeze(1)
    directions = functional.normalize(differences, dim=2)
    return torch.bmm(directions, directions.transpose(1, 2))
