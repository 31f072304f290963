"""Synthetic images of any shape, for trying a model or a schedule without data (layer 5)."""

from __future__ import annotations

import re

import torch
from torch import Tensor
from torch.nn import functional

from distiller_ng.apputils.datasets.base import DATASETS, InMemorySource, PathLike, Split
from distiller_ng.apputils.datasets.transforms import Normalize
from distiller_ng.errors import ArgumentError, DatasetError

__all__ = ["Synthetic"]

_OPTIONS = re.compile(r"(\d+)x(\d+)x(\d+)(?::(\d+))?")
_GRID = 4
_CONTRAST = 40.0
_CHUNK = 128


@DATASETS.register("synthetic")
class Synthetic(InMemorySource):
    """Noisy copies of one smooth random pattern a class: a small network learns them, random guessing does not.

    ``pixel = clamp(128 + 40 * pattern[class] + noise * n, 0, 255)``, pattern a random 4 x 4 grid enlarged to the
    image, ``n`` standard normal. The same ``seed`` gives the same images; train and test share patterns, not noise.
    Classes take turns, so they are balanced. ``image_shape`` is ``(C, H, W)``, ``noise`` counts grey levels of 255.

    On a command line: ``synthetic`` (3 x 32 x 32, 10 classes), ``synthetic:1x28x28``, ``synthetic:3x224x224:1000``.
    ``data_dir`` is not used. Raises :class:`ArgumentError` for sizes below 1.
    """

    normalize = Normalize((0.5,), (0.25,))

    def __init__(
        self,
        data_dir: PathLike | None = None,
        *,
        image_shape: tuple[int, int, int] = (3, 32, 32),
        num_classes: int = 10,
        train_size: int = 2000,
        test_size: int = 400,
        noise: float = 40.0,
        seed: int = 0,
    ) -> None:
        super().__init__(data_dir)
        if len(image_shape) != 3 or min(image_shape) < 1:
            raise ArgumentError(f"image_shape must be (C, H, W), each 1 or more, not {image_shape}")
        for key, value in (("num_classes", num_classes), ("train_size", train_size), ("test_size", test_size)):
            if value < 1:
                raise ArgumentError(f"{key} must be 1 or more, not {value}", argument=(key,))
        if noise < 0:
            raise ArgumentError(f"noise must be 0 or more, not {noise}", argument=("noise",))
        self.image_shape = image_shape
        self.num_classes = num_classes
        self.noise = noise
        self.seed = seed
        self._sizes: dict[Split, int] = {"train": train_size, "test": test_size}

    @classmethod
    def from_options(cls, options: str, data_dir: PathLike | None) -> Synthetic:
        """``"1x28x28:5"`` -> one channel of 28 x 28 pixels and 5 classes; raises :class:`DatasetError` otherwise."""
        if not options:
            return cls(data_dir)
        found = _OPTIONS.fullmatch(options)
        numbers = [int(text) for text in found.groups(default="10")] if found else [0]
        if min(numbers) < 1:
            raise DatasetError(
                f"synthetic:{options} is not understood. Write synthetic:CxHxW or synthetic:CxHxW:CLASSES, "
                "each 1 or more, for example synthetic:1x28x28 or synthetic:3x224x224:1000"
            )
        channels, height, width, classes = numbers
        return cls(data_dir, image_shape=(channels, height, width), num_classes=classes)

    def read(self, split: Split) -> tuple[Tensor, Tensor]:
        """uint8 images ``[N, C, H, W]`` and labels ``0, 1, ..., K-1, 0, 1, ...``."""
        channels, height, width = self.image_shape
        generator = torch.Generator().manual_seed(self.seed)
        grid = torch.randn(self.num_classes, channels, _GRID, _GRID, generator=generator)
        patterns = functional.interpolate(grid, size=(height, width), mode="bilinear", align_corners=True)
        if split == "test":
            generator.manual_seed(self.seed + 1)
        labels = torch.arange(self._sizes[split]) % self.num_classes
        images = torch.empty(len(labels), *self.image_shape, dtype=torch.uint8)
        for start in range(0, len(labels), _CHUNK):  # in pieces: the floats of a large set need four times its memory
            clean = patterns[labels[start : start + _CHUNK]].mul_(_CONTRAST).add_(128.0)
            noisy = clean.add_(torch.randn(clean.shape, generator=generator), alpha=self.noise)
            images[start : start + _CHUNK] = noisy.round_().clamp_(0, 255).to(torch.uint8)
        return images, labels
