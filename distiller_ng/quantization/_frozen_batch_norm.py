"""Batch norms that keep their statistics while the model goes on training (layer 2)."""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import nn

__all__ = ["FrozenStatistics", "batch_norms", "freeze_statistics_"]


class FrozenStatistics(nn.Module):
    """What the subclasses made here add to a batch norm's own class: training mode no longer reaches it.

    Running mean and variance are used in training too and stay as they are; scale and shift go on learning.
    """

    def train(self, mode: bool = True) -> Any:
        """Stay in evaluation mode."""
        return super().train(False)

    def extra_repr(self) -> str:
        """The module's own description, and that it is frozen."""
        return ", ".join(part for part in (super().extra_repr(), "frozen statistics") if part)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        # The class cannot be found by its name, so copies and pickles make it again.
        cls = type(self)
        return _rebuild, (cls.__mro__[cls.__mro__.index(FrozenStatistics) + 1],), dict(self.__dict__)


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
        if not isinstance(module, FrozenStatistics):
            module.__class__ = _frozen_class(type(module))  # type: ignore[arg-type]
            module.train(False)


@cache
def _frozen_class(cls: type[Any]) -> type[nn.Module]:
    return type(f"Frozen{cls.__name__}", (FrozenStatistics, cls), {"__module__": cls.__module__})


def _rebuild(cls: type[nn.Module]) -> nn.Module:
    frozen = _frozen_class(cls)  # type: ignore[arg-type]
    return frozen.__new__(frozen)
