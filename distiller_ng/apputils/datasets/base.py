"""What a data set is: its registry, the source that opens it, and the images a loader reads (layer 5).

A new data set is one file with one class::

    @DATASETS.register("my-set")
    class MySet(InMemorySource):
        num_classes = 2
        image_shape = (1, 8, 8)
        normalize = Normalize((0.5,), (0.5,))

        def read(self, split):
            return images, labels  # uint8 [N, 1, 8, 8] and int64 [N]
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, TypeAlias

import torch
from torch import Tensor
from torch.utils.data import Dataset

from distiller_ng.apputils.datasets.transforms import Compose, Normalize
from distiller_ng.errors import DatasetError, did_you_mean
from distiller_ng.registry import Registry

__all__ = ["DATASETS", "ImageSet", "ImageSource", "InMemorySource", "PathLike", "Split", "TensorImages", "open_dataset"]

PathLike: TypeAlias = "str | os.PathLike[str]"
Split: TypeAlias = Literal["train", "test"]


class ImageSet(Dataset[tuple[Tensor, int]]):
    """Images with one class label each; ``labels`` (int64 ``[N]``) can be read without decoding any image."""

    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


class TensorImages(ImageSet):
    """Images held in memory as uint8 ``[N, C, H, W]``, transformed a batch at a time.

    ``transform`` maps a uint8 batch to a float32 batch. A sample is ``(float32 [C, H, W], int)``. Raises
    :class:`DatasetError` when images and labels differ in number.
    """

    def __init__(self, images: Tensor, labels: Tensor, *, transform: Callable[[Tensor], Tensor]) -> None:
        if images.dim() != 4 or labels.dim() != 1 or len(images) != len(labels):
            raise DatasetError(
                f"images have shape {list(images.shape)} and labels {list(labels.shape)}; "
                "they must be [N, C, H, W] and [N] with the same N"
            )
        self.images = images
        self.labels = labels
        self.transform = transform

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        # index + 1 would make -1 an empty slice: select, then restore the batch dimension.
        return self.transform(self.images[index].unsqueeze(0))[0], int(self.labels[index])

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, int]]:
        """The samples of one batch; a loader calls this instead of ``__getitem__``, so transforms run vectorised."""
        chosen = torch.as_tensor(indices)
        images = self.transform(self.images[chosen])
        return list(zip(images.unbind(), self.labels[chosen].tolist(), strict=True))


class ImageSource(ABC):
    """One named data set: where its files are, what its images look like, how they are normalised and augmented.

    The constructor opens no file, so ``num_classes`` and ``image_shape`` (``(C, H, W)``) are known without any data.
    """

    num_classes: int
    image_shape: tuple[int, int, int]

    def __init__(self, data_dir: PathLike | None = None) -> None:
        self.data_dir = Path(data_dir).expanduser() if data_dir else None

    @classmethod
    def from_options(cls, options: str, data_dir: PathLike | None) -> ImageSource:
        """Open with what the user wrote after ``name:``; raises :class:`DatasetError` where a set takes no options."""
        if options:
            raise DatasetError(f"{cls.__name__} takes no options, but {options!r} was given: leave out ':{options}'")
        return cls(data_dir)

    @abstractmethod
    def train_set(self, *, augment: bool = True) -> ImageSet:
        """The training images, randomly augmented unless ``augment`` is False."""

    @abstractmethod
    def test_set(self) -> ImageSet:
        """The test images, never augmented."""


class InMemorySource(ImageSource):
    """A data set small enough to hold in memory: subclasses only read the arrays.

    ``augmentations`` run on uint8 batches before ``normalize``.
    """

    normalize: Normalize
    augmentations: tuple[Callable[[Tensor], Tensor], ...] = ()

    def __init__(self, data_dir: PathLike | None = None) -> None:
        super().__init__(data_dir)
        self._arrays: dict[Split, tuple[Tensor, Tensor]] = {}

    @abstractmethod
    def read(self, split: Split) -> tuple[Tensor, Tensor]:
        """uint8 images ``[N, C, H, W]`` and int64 labels ``[N]``; raises :class:`DatasetError`."""

    def train_set(self, *, augment: bool = True) -> TensorImages:
        """The training images; the augmented and the plain view share one copy in memory."""
        return self._view("train", Compose((*self.augmentations, self.normalize)) if augment else self.normalize)

    def test_set(self) -> TensorImages:
        """The test images."""
        return self._view("test", self.normalize)

    def _view(self, split: Split, transform: Callable[[Tensor], Tensor]) -> TensorImages:
        if split not in self._arrays:
            images, labels = self.read(split)
            self._check_labels(split, labels)
            self._arrays[split] = images, labels
        return TensorImages(*self._arrays[split], transform=transform)

    def _check_labels(self, split: Split, labels: Tensor) -> None:
        if len(labels) == 0:
            raise DatasetError(f"{type(self).__name__}: the {split} set holds no images")
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= self.num_classes:
            raise DatasetError(
                f"{type(self).__name__}: labels of the {split} set run from {low} to {high}; "
                f"{self.num_classes} classes allow 0..{self.num_classes - 1}. The files may belong to another data set"
            )


DATASETS: Registry[ImageSource] = Registry("data set", "distiller_ng.apputils.datasets")


def open_dataset(name: str, data_dir: PathLike | None = None) -> ImageSource:
    """The data set a user calls ``name``, optionally with options: ``"digits"``, ``"synthetic:1x28x28"``.

    Case does not matter, nor do underscores for hyphens (``fashion_mnist``). No file is opened yet. Raises
    :class:`DatasetError` for an unknown name, with the nearest ones.
    """
    kind, _, options = str(name).partition(":")
    for key in (kind, kind.lower().replace("_", "-")):
        if key in DATASETS:
            return DATASETS.get(key).cls.from_options(options, data_dir)
    raise DatasetError(f"unknown data set {name!r}. {did_you_mean(kind, DATASETS.names())}")
