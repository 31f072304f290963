"""What the images of a data set look like, as far as a model needs to know (layer 1).

``dataset_shape("cifar10").input_shape`` -> ``(1, 3, 32, 32)``. Reading the images is the application's business.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from distiller_ng.errors import ArgumentError, did_you_mean

__all__ = ["DatasetShape", "dataset_names", "dataset_shape", "register_dataset_shape"]

# synthetic:CxHxW or synthetic:CxHxW:classes, as the application's data set of that name reads it.
_SYNTHETIC = re.compile(r"synthetic:(\d+)x(\d+)x(\d+)(?::(\d+))?")


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetShape:
    """Image size and number of classes: MNIST is ``channels=1, height=28, width=28, num_classes=10``.

    Sizes are in pixels. Raises :class:`ArgumentError` for any number below 1.
    """

    channels: int
    height: int
    width: int
    num_classes: int = 10

    def __post_init__(self) -> None:
        for key in ("channels", "height", "width", "num_classes"):
            if getattr(self, key) < 1:
                raise ArgumentError(f"{key} must be 1 or more, not {getattr(self, key)}", argument=(key,))

    @property
    def input_size(self) -> tuple[int, int]:
        """``(H, W)``: ``(28, 28)`` for MNIST."""
        return self.height, self.width

    @property
    def input_shape(self) -> tuple[int, int, int, int]:
        """The shape of a batch of one image, ``(1, C, H, W)``: ``(1, 1, 28, 28)`` for MNIST."""
        return 1, self.channels, self.height, self.width


_SHAPES: dict[str, DatasetShape] = {
    "digits": DatasetShape(channels=1, height=8, width=8),
    "mnist": DatasetShape(channels=1, height=28, width=28),
    "fashion-mnist": DatasetShape(channels=1, height=28, width=28),
    "cifar10": DatasetShape(channels=3, height=32, width=32),
    "imagenet": DatasetShape(channels=3, height=224, width=224, num_classes=1000),
    "synthetic": DatasetShape(channels=3, height=32, width=32),
}


def dataset_names() -> list[str]:
    """The known data sets, sorted."""
    return sorted(_SHAPES)


def dataset_key(dataset: str) -> str:
    """The one spelling of a data set's name: ``"Fashion_MNIST"`` -> ``"fashion-mnist"``."""
    return str(dataset) if dataset in _SHAPES else str(dataset).lower().replace("_", "-")


def dataset_shape(dataset: str) -> DatasetShape:
    """The shape of a data set by name; case does not matter, nor do underscores for hyphens.

    ``"synthetic:1x28x28:7"`` means synthetic images of that size and 7 classes. Raises :class:`ArgumentError` for an
    unknown name, with the nearest ones.
    """
    key = dataset_key(dataset)
    known = _SHAPES.get(key)
    if known is not None:
        return known
    sizes = _SYNTHETIC.fullmatch(key)
    if sizes is None:
        raise ArgumentError(
            f"unknown data set {dataset!r}. {did_you_mean(key, _SHAPES)} For your own images call "
            "register_dataset_shape(name, DatasetShape(...)) first, or write 'synthetic:3x64x64:5' for their size",
            argument=("dataset",),
        )
    channels, height, width, classes = (int(size) if size else 10 for size in sizes.groups())
    return DatasetShape(channels=channels, height=height, width=width, num_classes=classes)


def register_dataset_shape(dataset: str, shape: DatasetShape) -> None:
    """Make a data set of your own known, so that every model of the zoo can be built for it.

    Example: ``register_dataset_shape("leaves", DatasetShape(channels=3, height=64, width=64, num_classes=5))``.
    Registering the same shape again does nothing; raises :class:`ArgumentError` when the name means another one.
    """
    key = dataset_key(dataset)
    known = _SHAPES.setdefault(key, shape)
    if known != shape:
        raise ArgumentError(f"the data set {key!r} is already registered, as {known}", argument=("dataset",))
