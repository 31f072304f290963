"""Batch norms that keep their statistics while the model goes on training (layer 2)."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn

from distiller_ng.quantization._derived import Derived, derive_

__all__ = ["FrozenStatistics", "batch_norms", "freeze_statistics_"]


class FrozenStatistics(Derived):
    """What the subclasses made here add to a batch norm's own class: training mode no longer reaches it.

    Running mean and variance are used in training too and stay as they are; scale and shift go on learning.
    """

    prefix: ClassVar[str] = "Frozen"

    def train(self, mode: bool = True) -> Any:
        """Stay in evaluation mode."""
        return super().train(False)

    def extra_repr(self) -> str:
        """The module's own description, and that it is frozen."""
        return ", ".join(part for part in (super().extra_repr(), "frozen statistics") if part)


def batch_norms(model: nn.Module) -> list[nn.Module]:
    """The batch norms of a model that have running statistics."""
    return [
        module
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None
    ]


def freeze_statistics_(model: nn.Module) -> None:
    """Make every batch norm with running statistics use and keep them, in place; of each only the class changes."""
    for module in batch_norms(model):
        derive_(module, FrozenStatistics)
        module.train(False)
