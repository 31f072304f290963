"""The table of architectures: name, the data set each was designed for, how to build it (layer 5)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from torch import nn

from distiller_ng.errors import ArgumentError, did_you_mean
from distiller_ng.models._sizing import ImageSize
from distiller_ng.ops.dataset_shapes import DatasetShape, dataset_shape

__all__ = ["Architecture", "Builder", "architecture", "build", "designed_for", "zoo_names"]


class Builder(Protocol):
    """What builds a model: a class or function that takes at least these keywords, with defaults."""

    def __call__(self, *, num_classes: int = ..., in_channels: int = ..., input_size: ImageSize = ...) -> nn.Module:
        """A new model, with fresh weights."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """One architecture of the zoo. Calling it builds the model: ``resnet20_cifar(num_classes=100)``."""

    name: str
    home: str
    builder: Builder

    def __call__(self, **sizes: Any) -> nn.Module:
        """Build it; ``num_classes``, ``in_channels`` and ``input_size`` default to those of its home data set."""
        return self.builder(**sizes)


_ARCHITECTURES: dict[str, Architecture] = {}


def architecture(name: str, home: str, builder: Builder) -> Architecture:
    """Enter an architecture in the zoo; raises :class:`ArgumentError` when the name is taken."""
    if name in _ARCHITECTURES:
        raise ArgumentError(f"the architecture {name!r} is already in the zoo")
    _ARCHITECTURES[name] = Architecture(name, home, builder)
    return _ARCHITECTURES[name]


def zoo_names() -> list[str]:
    """All names, sorted."""
    return sorted(_ARCHITECTURES)


def designed_for(dataset: str) -> list[str]:
    """The architectures made for images of the data set's size, sorted: Fashion-MNIST's are MNIST's."""
    size = dataset_shape(dataset).input_shape
    return [name for name in zoo_names() if dataset_shape(_ARCHITECTURES[name].home).input_shape == size]


def build(name: str, shape: DatasetShape, *, others: list[str]) -> nn.Module:
    """The architecture called ``name``, sized for a data set.

    Raises :class:`ArgumentError` with the nearest of the zoo's names and ``others``.
    """
    entry = _ARCHITECTURES.get(name)
    if entry is None:
        raise ArgumentError(
            f"unknown architecture {name!r}. {did_you_mean(str(name), [*zoo_names(), *others])}", argument=("arch",)
        )
    return entry(num_classes=shape.num_classes, in_channels=shape.channels, input_size=shape.input_size)
