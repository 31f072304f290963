"""MNIST: 70,000 handwritten digits, 28 x 28, grey (layer 5)."""

from __future__ import annotations

from distiller_ng.apputils.datasets._idx import IdxSource
from distiller_ng.apputils.datasets.base import DATASETS
from distiller_ng.apputils.datasets.transforms import Normalize

__all__ = ["Mnist"]


@DATASETS.register("mnist")
class Mnist(IdxSource):
    """The MNIST database of handwritten digits (LeCun, Bottou, Bengio, Haffner, 1998).

    60,000 training and 10,000 test images ``[1, 28, 28]``, normalised as ``(x / 255 - 0.1307) / 0.3081``: pixel 0
    becomes -0.4242, pixel 255 becomes 2.8215. No augmentation.
    """

    name = "mnist"
    num_classes = 10
    image_shape = (1, 28, 28)
    normalize = Normalize((0.1307,), (0.3081,))
    subfolders = ("mnist", "MNIST/raw")
    how_to_get = (
        "Put the database's four files {train,t10k}-{images-idx3,labels-idx1}-ubyte, gzipped or not, "
        "into one folder and pass that folder as data_dir"
    )
