"""ImageNet, or any photos sorted into one folder a class (layer 5)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from distiller_ng.apputils.datasets._photos import RandomResizedCrop, ResizeCenterCrop
from distiller_ng.apputils.datasets.base import DATASETS, ImageSet, ImageSource, PathLike
from distiller_ng.apputils.datasets.transforms import Compose, Normalize, RandomHorizontalFlip
from distiller_ng.errors import DatasetError, listed

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["FolderImages", "ImageNet", "class_names", "labelled_files"]

_logger = logging.getLogger(__name__)
_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".bmp", ".tif", ".tiff", ".webp"})
_LAYOUT = "data_dir/train/CLASS/*.JPEG and data_dir/val/CLASS/*.JPEG, one folder a class with the same names in both"


def _check_pillow() -> None:
    try:
        import PIL.Image  # noqa: F401
    except ImportError as error:
        raise DatasetError(f"reading photos needs Pillow ({error}): pip install pillow") from error


class FolderImages(ImageSet):
    """Image files, decoded one at a time: ``paths[i]`` has class ``labels[i]``.

    A sample is ``(float32 [3, H, W], int)``. A file that cannot be decoded raises :class:`DatasetError` naming it.
    """

    def __init__(
        self,
        paths: list[Path],
        labels: list[int],
        *,
        shape: Callable[[Image], Tensor],
        transform: Callable[[Tensor], Tensor],
    ) -> None:
        self.paths = paths
        self.labels = torch.tensor(labels)
        self.shape = shape
        self.transform = transform

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        from PIL import Image

        path = self.paths[index]
        try:
            with Image.open(path) as opened:
                image = opened.convert("RGB")
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise DatasetError(f"{path}: not a readable image ({error}); replace or remove it") from error
        return self.transform(self.shape(image).unsqueeze(0))[0], int(self.labels[index])


@DATASETS.register("imagenet")
class ImageNet(ImageSource):
    """ILSVRC 2012 (Russakovsky et al., https://arxiv.org/abs/1409.0575) as an image folder.

    ``data_dir`` holds ``train`` and ``val`` (which serves as the test set), each with one folder a class; classes are
    numbered by sorted folder name. Any other set of photos in that layout works too. Training: random resized crop of
    ``crop`` pixels and mirroring; test: shorter side to ``resize``, centre crop. Normalised a channel as
    ``(x / 255 - mean) / std`` with mean 0.485, 0.456, 0.406 and deviation 0.229, 0.224, 0.225: black becomes -2.1179,
    -2.0357, -1.8044. Inception networks want ``crop=299, resize=336``.
    """

    num_classes = 1000
    image_shape = (3, 224, 224)
    normalize = Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

    def __init__(self, data_dir: PathLike | None = None, *, crop: int = 224, resize: int = 256) -> None:
        super().__init__(data_dir)
        self.image_shape = (3, crop, crop)
        self._test_shape = ResizeCenterCrop(resize, crop)
        self._train_shape = RandomResizedCrop(crop)
        self._files: dict[str, tuple[list[Path], list[int]]] = {}

    def train_set(self, *, augment: bool = True) -> FolderImages:
        """The images under ``train``; without ``augment`` they are cut as test images are."""
        if not augment:
            return self._images("train", self._test_shape, self.normalize)
        return self._images("train", self._train_shape, Compose((RandomHorizontalFlip(), self.normalize)))

    def test_set(self) -> FolderImages:
        """The images under ``val``."""
        return self._images("val", self._test_shape, self.normalize)

    def _images(
        self, part: str, shape: Callable[[Image], Tensor], transform: Callable[[Tensor], Tensor]
    ) -> FolderImages:
        _check_pillow()
        if part not in self._files:
            folder = self._folder(part)
            self._files[part] = labelled_files(folder, self._classes(folder))
        return FolderImages(*self._files[part], shape=shape, transform=transform)

    def _folder(self, part: str) -> Path:
        if self.data_dir is None:
            raise DatasetError(f"imagenet: no data_dir was given. Expected: {_LAYOUT}")
        folder = self.data_dir / part
        if not folder.is_dir():
            raise DatasetError(f"imagenet: there is no folder {folder}. Expected: {_LAYOUT}")
        return folder

    def _classes(self, folder: Path) -> list[str]:
        names = class_names(folder)
        other = folder.with_name("val" if folder.name == "train" else "train")
        # Labels are positions in the sorted list, so one class missing on one side would shift all that follow.
        if other.is_dir() and (different := set(names) ^ set(class_names(other))):
            raise DatasetError(
                f"imagenet: {folder} and {other} must hold the same classes; only one of them has "
                f"{listed(sorted(different))}"
            )
        if len(names) > self.num_classes:
            raise DatasetError(f"imagenet: {folder} holds {len(names)} classes, more than {self.num_classes}")
        return names


def labelled_files(folder: Path, classes: Sequence[str]) -> tuple[list[Path], list[int]]:
    """Every image below ``folder`` with the number of its class; DatasetError for a class without images."""
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = sorted(path for path in (folder / name).rglob("*") if _is_image(path))
        if not found:
            raise DatasetError(f"{folder / name} holds no image ({listed(sorted(_SUFFIXES))})")
        paths += found
        labels += [label] * len(found)
    _logger.info("%s: %d images of %d classes", folder, len(paths), len(classes))
    return paths, labels


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in _SUFFIXES and not path.name.startswith(".") and path.is_file()


def class_names(folder: Path) -> list[str]:
    """The classes of an image folder, numbered by place: its sub-folders' names, sorted; DatasetError for none."""
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise DatasetError(f"{folder} holds no class folders. Expected: {_LAYOUT}")
    return names
