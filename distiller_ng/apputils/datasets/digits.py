"""scikit-learn's bundled handwritten digits: real images that need no download; the default data set (layer 5)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from distiller_ng.apputils.datasets.base import DATASETS, InMemorySource, Split
from distiller_ng.apputils.datasets.transforms import Normalize
from distiller_ng.errors import DatasetError

__all__ = ["Digits"]

_TEST_SIZE = 360
_SPLIT_SEED = 0


def _stratified_test_indices(labels: np.ndarray, size: int) -> np.ndarray:
    """``size`` sorted indices holding every class in proportion: largest remainders get the places left over.

    Example: labels 0 0 0 0 1 1 and ``size=3`` give two indices of class 0 and one of class 1.
    """
    classes, counts = np.unique(labels, return_counts=True)
    share = counts * size / len(labels)
    quota = np.floor(share).astype(int)
    for position in np.argsort(quota - share, kind="stable")[: size - quota.sum()]:
        quota[position] += 1
    random = np.random.RandomState(_SPLIT_SEED)  # numpy promises this stream never changes, unlike default_rng
    chosen = [random.permutation(np.flatnonzero(labels == c))[:n] for c, n in zip(classes, quota, strict=True)]
    return np.sort(np.concatenate(chosen))


@DATASETS.register("digits")
class Digits(InMemorySource):
    """Optical recognition of handwritten digits, 1,797 images ``[1, 8, 8]`` with 17 grey levels (0..16).

    Source: E. Alpaydin and C. Kaynak, UCI repository, bundled with scikit-learn. 1,437 images train and 360 test, every
    class in proportion, the same split on every machine. Normalised as ``(x / 16 - 0.3058) / 0.3766`` (mean and
    deviation of the training part): level 0 becomes -0.8120, level 16 becomes 1.8433. ``data_dir`` is not used.
    """

    num_classes = 10
    image_shape = (1, 8, 8)
    normalize = Normalize((0.3058,), (0.3766,), scale=16.0)

    def read(self, split: Split) -> tuple[Tensor, Tensor]:
        """uint8 images ``[N, 1, 8, 8]`` and labels; raises :class:`DatasetError` without scikit-learn."""
        try:
            from sklearn.datasets import load_digits
        except ImportError as error:
            raise DatasetError(
                f"the digits come with scikit-learn, which is not installed ({error}). Run 'pip install scikit-learn'"
            ) from error
        bunch = load_digits()
        chosen = np.zeros(len(bunch.target), dtype=bool)
        chosen[_stratified_test_indices(bunch.target, _TEST_SIZE)] = True
        if split == "train":
            chosen = ~chosen
        images = torch.from_numpy(bunch.images[chosen].astype(np.uint8))
        return images.unsqueeze(1), torch.from_numpy(bunch.target[chosen].astype(np.int64))
