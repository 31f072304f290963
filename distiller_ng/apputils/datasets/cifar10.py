"""CIFAR-10: 60,000 colour photos of ten kinds of things, 32 x 32 (layer 5)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from distiller_ng.apputils.datasets._pickled_batch import load_pickled_batch
from distiller_ng.apputils.datasets.base import DATASETS, InMemorySource, Split
from distiller_ng.apputils.datasets.transforms import Normalize, RandomCrop, RandomHorizontalFlip
from distiller_ng.errors import DatasetError, listed

__all__ = ["Cifar10"]

_PIXELS = 3 * 32 * 32
_BATCHES: dict[Split, tuple[str, ...]] = {
    "train": tuple(f"data_batch_{n}" for n in range(1, 6)),
    "test": ("test_batch",),
}
_SUBFOLDERS = ("", "cifar-10-batches-py", "cifar-10-batches-bin", "cifar10", "cifar10/cifar-10-batches-py")
_ARCHIVES = ("cifar-10-python.tar.gz", "cifar-10-binary.tar.gz")
_HOW_TO_GET = (
    "Unpack the CIFAR-10 python or binary version (cifar-10-python.tar.gz or cifar-10-binary.tar.gz, "
    "https://www.cs.toronto.edu/~kriz/cifar.html) and pass the folder it was unpacked in as data_dir"
)


@DATASETS.register("cifar10")
class Cifar10(InMemorySource):
    """CIFAR-10 (A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009).

    50,000 training and 10,000 test images ``[3, 32, 32]`` from the python batches (``data_batch_1``..``5``,
    ``test_batch``; read without running pickled code) or the binary ones (the same names with ``.bin``). Normalised as
    ``(x / 255 - 0.5) / 0.5``, as Distiller does: pixels 0 and 255 become -1 and 1. Training images are shifted by up
    to 4 pixels and mirrored at random.
    """

    num_classes = 10
    image_shape = (3, 32, 32)
    normalize = Normalize((0.5,), (0.5,))
    augmentations = (RandomCrop(4), RandomHorizontalFlip())

    def read(self, split: Split) -> tuple[Tensor, Tensor]:
        """uint8 images ``[N, 3, 32, 32]`` and labels; :class:`DatasetError` says what is missing or damaged."""
        parts = [_binary(path) if path.suffix == ".bin" else _pickled(path) for path in self._find(_BATCHES[split])]
        images = np.concatenate([images for images, _ in parts])
        labels = np.concatenate([labels for _, labels in parts])
        return torch.from_numpy(images).view(-1, 3, 32, 32), torch.from_numpy(labels)

    def _find(self, names: tuple[str, ...]) -> list[Path]:
        folders = [self.data_dir / sub for sub in _SUBFOLDERS] if self.data_dir is not None else []
        for folder in folders:
            for suffix in ("", ".bin"):
                paths = [folder / f"{name}{suffix}" for name in names]
                absent = [path.name for path in paths if not path.is_file()]
                if not absent:
                    return paths
                if len(absent) < len(paths):
                    raise DatasetError(f"cifar10: {folder} lacks {listed(absent)}. {_HOW_TO_GET}")
        for archive in _ARCHIVES:
            if self.data_dir is not None and (packed := self.data_dir / archive).is_file():
                raise DatasetError(f"cifar10: {packed} is still packed: tar -xzf {packed} -C {self.data_dir}")
        where = listed(map(str, folders)) or "nowhere (no data_dir was given)"
        raise DatasetError(
            f"cifar10: {listed(names)} (or the same with .bin) not found. Looked in: {where}. {_HOW_TO_GET}"
        )


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read ({error})") from error


def _binary(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Records of one label byte and 3,072 pixel bytes (red, green, blue planes)."""
    content = np.frombuffer(_content(path), np.uint8)
    if content.size == 0 or content.size % (1 + _PIXELS):
        raise DatasetError(
            f"{path}: {content.size} bytes are no whole number of records of {1 + _PIXELS} bytes: "
            "truncated or not a CIFAR-10 binary batch"
        )
    records = content.reshape(-1, 1 + _PIXELS)
    return records[:, 1:].copy(), records[:, 0].astype(np.int64)


def _pickled(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The ``data`` (uint8 ``[N, 3072]``) and ``labels`` of a python batch."""
    batch = load_pickled_batch(_content(path), source=str(path))
    pixels, labels = batch.get("data"), batch.get("labels")
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.ndim != 2 or pixels.shape[1] != _PIXELS:
        found = f"{pixels.dtype} {list(pixels.shape)}" if isinstance(pixels, np.ndarray) else type(pixels).__name__
        raise DatasetError(f"{path}: 'data' must be bytes of shape [N, {_PIXELS}], found {found}")
    if isinstance(labels, np.ndarray):
        labels = labels.tolist()
    if not isinstance(labels, list) or not all(type(label) is int for label in labels):
        raise DatasetError(f"{path}: 'labels' must be a list of integers, found {type(labels).__name__}")
    if len(labels) != len(pixels):
        raise DatasetError(f"{path}: {len(pixels)} images but {len(labels)} labels: truncated or damaged")
    return pixels.copy(), np.array(labels, dtype=np.int64)
