"""Flow of solution procedure: how features of one layer turn into those of another (layer 2)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from distiller_ng.errors import ArgumentError
from distiller_ng.knowledge_distillation.base import DISTILLATION_LOSSES, Alignment, DistillationLoss

__all__ = ["FlowOfSolution", "flow_matrix"]


def flow_matrix(first: Tensor, second: Tensor) -> Tensor:
    """``G = F1 F2^T / (H W)``: features ``[N, C1, H, W]`` and ``[N, C2, H', W']`` give ``[N, C1, C2]``.

    The larger map is max-pooled to the smaller one's size, as in the paper.
    """
    size = [min(a, b) for a, b in zip(first.shape[2:], second.shape[2:])]
    one, two = (_pooled(features, size).flatten(2) for features in (first, second))
    return torch.bmm(one, two.transpose(1, 2)) / one.shape[2]


def _pooled(features: Tensor, size: list[int]) -> Tensor:
    if list(features.shape[2:]) == size:
        return features
    return functional.adaptive_max_pool2d(features, size)


@DISTILLATION_LOSSES.register("FSP")
class FlowOfSolution(DistillationLoss):
    """Squared difference of the flow matrices between two layers of each model, averaged over everything.

    It compares two layers of the student with two of the teacher; sizes in pixels may differ, numbers of channels are
    matched by projections.

    Source: Junho Yim, Donggyu Joo, Jihoon Bae, Junmo Kim, "A Gift from Knowledge Distillation" (2017),
    https://openaccess.thecvf.com/content_cvpr_2017/html/Yim_A_Gift_From_CVPR_2017_paper.html

    Example, one channel and two pixels: student ``[1, 1]`` and ``[2, 0]`` have ``G = (2 + 0) / 2 = 1``, teacher
    ``[1, 1]`` and ``[4, 2]`` have ``G = 3``: the loss is ``(1 - 3)^2 = 4``::

        distillers:
          fsp:
            class: KnowledgeDistiller
            teacher: resnet56
            layers:
              - {student: [layer1.0, layer1.2], teacher: [layer1.0, layer1.8], loss: FSP}
    """

    alignment: ClassVar[Alignment] = "channels"
    layers: ClassVar[int] = 2

    def check(self, student: Tensor, teacher: Tensor) -> None:
        """Maps are needed; raises :class:`ArgumentError`."""
        for features in (student, teacher):
            if features.dim() != 4:
                raise ArgumentError(f"FSP compares feature maps [N, C, H, W], got {list(features.shape)}")
        super().check(student, teacher)

    def distance(self, *values: Tensor) -> Tensor:
        """The mean squared difference of the flow matrices."""
        first, second, teacher_first, teacher_second = values
        return (flow_matrix(first, second) - flow_matrix(teacher_first, teacher_second)).square().mean()
