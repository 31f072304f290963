"""Running top-1, top-5 and mean losses of an epoch, for models that are no classifiers the losses (layer 5)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["ClassificationMeter", "ConfusionMatrix", "are_probabilities", "known", "scored"]


def scored(output: Any, target: Tensor) -> tuple[Tensor, Tensor] | None:
    """Logits ``[N, classes]`` and classes ``[N]`` of a batch that top-1 can be counted of; else None.

    Of a mapping ``logits`` is taken, of a tuple the first. Targets are classes, or probabilities ``[N, classes]``.
    Example: outputs ``[32, 1]`` and numbers ``[32, 1]`` are a regression -> None.
    """
    if isinstance(output, Mapping):
        output = output.get("logits")
    elif isinstance(output, tuple | list):
        output = output[0] if output else None
    if not isinstance(output, Tensor) or output.dim() != 2 or output.shape[1] < 2 or len(output) != len(target):
        return None
    if target.dim() == 1 and not target.is_floating_point():
        return output, target
    return (output, target.argmax(dim=1)) if are_probabilities(output, target) else None


def are_probabilities(output: Tensor, target: Tensor) -> bool:
    """Whether targets are probabilities of the classes of ``output`` ``[N, classes]``: rows that sum to 1."""
    if target.shape != output.shape or output.dim() != 2 or output.shape[1] < 2:
        return False
    values = target.detach().double()
    return bool((values >= 0).all()) and bool(((values.sum(dim=1) - 1).abs() < 1e-2).all())


def known(**scores: float) -> dict[str, float]:
    """Those that are numbers: ``known(Loss=0.5, Top1=nan)`` -> ``{"Loss": 0.5}``."""
    return {name: value for name, value in scores.items() if not math.isnan(value)}


class ClassificationMeter:
    """Accumulates predictions of an epoch; accuracies are percentages, losses means over images.

    With fewer than five classes top-5 counts all of them. Example: logits ``[[2., 1.], [0., 3.]]`` with labels
    ``[0, 0]`` give ``top1 == 50.0`` and ``top5 == 100.0``. Where :func:`scored` finds no classes, both are NaN.
    """

    def __init__(self) -> None:
        self.images = 0
        self._top1 = self._top5 = 0
        self._has_classes = True
        self._losses: dict[str, float] = {}

    def add(self, output: Any, target: Tensor, losses: Mapping[str, Tensor | float]) -> None:
        """One batch: what the model returned, its targets and mean losses by name."""
        count = len(target)
        found = scored(output, target)
        self._has_classes = self._has_classes and found is not None
        if found is not None:
            logits, classes = found
            ranked = logits.detach().topk(min(5, logits.shape[1]), dim=1).indices == classes.unsqueeze(1)
            self._top1 += int(ranked[:, 0].sum())
            self._top5 += int(ranked.sum())
        self.images += count
        for name, value in losses.items():
            self._losses[name] = self._losses.get(name, 0.0) + float(value) * count

    @property
    def top1(self) -> float:
        """Percentage of images whose label got the highest logit; 0 without images."""
        return self._percent(self._top1)

    @property
    def top5(self) -> float:
        """Percentage of images whose label is among the five highest logits."""
        return self._percent(self._top5)

    def _percent(self, hits: int) -> float:
        if not self._has_classes:
            return math.nan
        return 100.0 * hits / self.images if self.images else 0.0

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
