"""Fashion-MNIST: 70,000 photos of clothes, 28 x 28, grey (layer 5)."""

from __future__ import annotations

from pathlib import Path

from distiller_ng.apputils.datasets._idx import IdxSource
from distiller_ng.apputils.datasets.base import DATASETS, PathLike
from distiller_ng.apputils.datasets.transforms import Normalize, RandomCrop, RandomHorizontalFlip

__all__ = ["FashionMnist"]


@DATASETS.register("fashion-mnist")
class FashionMnist(IdxSource):
    """Fashion-MNIST (Xiao, Rasul, Vollgraf, https://arxiv.org/abs/1708.07747).

    60,000 training and 10,000 test images ``[1, 28, 28]``, normalised as ``(x / 255 - 0.2860) / 0.3530``: pixel 0
    becomes -0.8102, pixel 255 becomes 2.0227. Training images are shifted by up to 2 pixels and mirrored at random
    unless ``augment`` is False.
    """

    name = "fashion-mnist"
    num_classes = 10
    image_shape = (1, 28, 28)
    normalize = Normalize((0.2860,), (0.3530,))
    subfolders = ("fashion-mnist", "FashionMNIST/raw")
    system_dirs = (Path("/usr/share/datasets/fashion-mnist"),)  # where Debian's package puts it
    how_to_get = (
        "On Debian and Ubuntu: 'apt-get install dataset-fashion-mnist'. Elsewhere put the four files "
        "{train,t10k}-{images-idx3,labels-idx1}-ubyte, gzipped or not, into one folder and pass it as data_dir"
    )

    def __init__(self, data_dir: PathLike | None = None, *, augment: bool = True) -> None:
        super().__init__(data_dir)
        if augment:
            self.augmentations = (RandomCrop(2), RandomHorizontalFlip())
