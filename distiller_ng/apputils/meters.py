"""Running top-1, top-5 and mean losses of an epoch (layer 5)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["ClassificationMeter", "ConfusionMatrix"]


class ClassificationMeter:
    """Accumulates predictions of an epoch; accuracies are percentages, losses means over images.

    With fewer than five classes top-5 counts all of them. Example: logits ``[[2., 1.], [0., 3.]]`` with labels
    ``[0, 0]`` give ``top1 == 50.0`` and ``top5 == 100.0``.
    """

    def __init__(self) -> None:
        self.images = 0
        self._top1 = self._top5 = 0
        self._losses: dict[str, float] = {}

    def add(self, output: Tensor, target: Tensor, losses: Mapping[str, Tensor | float]) -> None:
        """One batch: logits ``[N, classes]``, labels ``[N]`` and mean losses by name."""
        count = len(target)
        ranked = output.detach().topk(min(5, output.shape[1]), dim=1).indices == target.unsqueeze(1)
        self.images += count
        self._top1 += int(ranked[:, 0].sum())
        self._top5 += int(ranked.sum())
        for name, value in losses.items():
            self._losses[name] = self._losses.get(name, 0.0) + float(value) * count

    @property
    def top1(self) -> float:
        """Percentage of images whose label got the highest logit; 0 without images."""
        return 100.0 * self._top1 / self.images if self.images else 0.0

    @property
    def top5(self) -> float:
        """Percentage of images whose label is among the five highest logits."""
        return 100.0 * self._top5 / self.images if self.images else 0.0

    @property
    def losses(self) -> dict[str, float]:
        """The mean of each loss."""
        return {name: total / self.images for name, total in self._losses.items()} if self.images else {}


class ConfusionMatrix:
    """Counts ``[true class, predicted class]``."""

    def __init__(self, num_classes: int) -> None:
        self.counts = torch.zeros(num_classes, num_classes, dtype=torch.int64)

    def add(self, output: Tensor, target: Tensor) -> None:
        """One batch of logits ``[N, classes]`` and labels ``[N]``."""
        classes = len(self.counts)
        cells = target.cpu() * classes + output.detach().argmax(dim=1).cpu()
        self.counts += cells.bincount(minlength=classes * classes).reshape(classes, classes)

    def __str__(self) -> str:
        width = max(len(str(int(self.counts.max()))), len(str(len(self.counts)))) + 1
        heading = "true\\predicted".ljust(14) + "".join(f"{c:>{width}}" for c in range(len(self.counts)))
        lines = [f"{c:>14}" + "".join(f"{n:>{width}}" for n in row) for c, row in enumerate(self.counts.tolist())]
        return "\n".join([heading, *lines])
