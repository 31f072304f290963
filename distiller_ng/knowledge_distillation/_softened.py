"""What losses on softened class distributions share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from distiller_ng.errors import ArgumentError, did_you_mean
from distiller_ng.knowledge_distillation.base import DistillationLoss, channel_dim, check_positive

__all__ = ["Reduction", "SoftenedLoss"]

Reduction: TypeAlias = Literal["batchmean", "mean"]
_REDUCTIONS = ("batchmean", "mean")


class SoftenedLoss(DistillationLoss):
    """Compares ``softmax(student / T)`` with ``softmax(teacher / T)``; its :attr:`scale` is ``T^2``.

    The factor keeps the gradients of the same size at any temperature (Hinton et al., section 2). ``class_dim`` is the
    dimension of the classes; None: 1 for ``[N, C, H, W]``, else the last. ``reduction="batchmean"`` is the mean over
    samples (and positions) of the sum over classes; ``"mean"`` divides by the number of classes too.
    """

    def __init__(
        self, temperature: float = 1.0, *, class_dim: int | None = None, reduction: Reduction = "batchmean"
    ) -> None:
        self.temperature = check_positive("temperature", temperature)
        if class_dim is not None and (isinstance(class_dim, bool) or not isinstance(class_dim, int) or class_dim == 0):
            raise ArgumentError(
                f"class_dim is the dimension of the classes, not 0, which is the batch; got {class_dim!r}",
                argument=("class_dim",),
            )
        if reduction not in _REDUCTIONS:
            raise ArgumentError(
                f"unknown reduction {reduction!r}. {did_you_mean(str(reduction), _REDUCTIONS)}",
                argument=("reduction",),
            )
        self.class_dim = class_dim
        self.reduction = reduction

    @property
    def scale(self) -> float:
        """``T^2``."""
        return self.temperature**2

    def combine(self, targets: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
        """The teachers' probabilities, averaged, as logits: softened again they give exactly that average."""
        if len(targets) == 1:
            return targets[0]
        device = targets[0].device
        logs = [
            torch.log_softmax(target.float().to(device) / self.temperature, self._dim(target)) + math.log(weight)
            for target, weight in zip(targets, weights)
            if weight > 0
        ]
        return self.temperature * torch.logsumexp(torch.stack(logs), 0)

    def _dim(self, logits: Tensor) -> int:
        if self.class_dim is None:
            return channel_dim(logits)
        dim = self.class_dim + logits.dim() if self.class_dim < 0 else self.class_dim
        if not 0 < dim < logits.dim():
            raise ArgumentError(
                f"class_dim {self.class_dim} of logits of shape {list(logits.shape)}", argument=("class_dim",)
            )
        return dim

    def _log_probabilities(self, logits: Tensor, dim: int) -> Tensor:
        """Finite also for classes that are masked out with -infinity, whose probability is 0."""
        logs = torch.log_softmax(logits / self.temperature, dim)
        return logs.clamp(min=torch.finfo(logs.dtype).min / 4)

    def _reduced(self, elements: Tensor, dim: int) -> Tensor:
        """The mean over samples and positions of the sum over classes, or the mean over everything."""
        return elements.mean() if self.reduction == "mean" else elements.sum(dim).mean()
