"""Attention transfer: the student looks where the teacher looks (layer 2)."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor
from torch.nn import functional

from distiller_ng.errors import ArgumentError
from distiller_ng.knowledge_distillation.base import (
    DISTILLATION_LOSSES,
    Alignment,
    DistillationLoss,
    channel_dim,
    check_positive,
)

__all__ = ["AttentionTransfer", "attention_map"]


def attention_map(features: Tensor, power: float = 2.0) -> Tensor:
    """Where features are large: ``mean_c |f|^power`` with the channels kept as one, ``[N, 1, H, W]`` or ``[N, T, 1]``.

    >>> attention_map(torch.tensor([[[[1.0, 0.0]], [[3.0, 2.0]]]])).flatten().tolist()
    [5.0, 2.0]
    """
    return features.abs().pow(power).mean(channel_dim(features), keepdim=True)


@DISTILLATION_LOSSES.register("AT")
class AttentionTransfer(DistillationLoss):
    """Squared difference of the attention maps, each of length 1, averaged over samples and positions.

    A map is ``Q = mean_c |F|^power`` of features ``[N, C, H, W]`` or ``[N, T, C]``; numbers of channels may differ,
    positions may not.

    Source: Sergey Zagoruyko, Nikos Komodakis, "Paying More Attention to Attention" (2017),
    https://arxiv.org/abs/1612.03928

    Example: one channel, student ``[1, 0]``, teacher ``[0, 2]``: the maps are ``[1, 0]`` and ``[0, 1]``, and the loss
    is ``(1 + 1) / 2 = 1``::

        distillers:
          at: {class: KnowledgeDistiller, teacher: resnet56, layers: {layer2: layer2, layer3: layer3}, loss: AT}
    """

    alignment: ClassVar[Alignment] = "positions"

    def __init__(self, power: float = 2.0) -> None:
        self.power = check_positive("power", power)

    def check(self, student: Tensor, teacher: Tensor) -> None:
        """Positions are needed; raises :class:`ArgumentError`."""
        if student.dim() < 3:
            raise ArgumentError(
                f"attention transfer needs positions, [N, C, H, W] or [N, T, C]; got {list(student.shape)}"
            )
        super().check(student, teacher)

    def distance(self, *values: Tensor) -> Tensor:
        """The mean squared difference of the two maps."""
        ours, theirs = (functional.normalize(attention_map(v, self.power).flatten(1)) for v in values)
        return (ours - theirs).square().mean()
