"""Photos of any size to tensors of one size, as the ImageNet papers do it (Pillow, imported where it is used).

Randomness comes from torch's global generator alone, like that of :mod:`distiller_ng.apputils.datasets.transforms`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from distiller_ng.errors import ArgumentError

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["RandomResizedCrop", "ResizeCenterCrop"]

_ATTEMPTS = 10


def _to_tensor(image: Image) -> Tensor:
    return torch.from_numpy(np.array(image, dtype=np.uint8)).permute(2, 0, 1).contiguous()


def _resized(image: Image, size: tuple[int, int], box: tuple[int, int, int, int] | None = None) -> Image:
    from PIL.Image import Resampling

    return (image.crop(box) if box is not None else image).resize(size, Resampling.BILINEAR)


def _uniform(low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand(()))


@dataclass(frozen=True, slots=True)
class ResizeCenterCrop:
    """Scale the shorter side to ``resize`` pixels, then take the ``crop`` x ``crop`` square in the middle.

    Example: with 256 and 224 a photo of 512 x 1024 becomes 256 x 512, of which columns 144..367 and rows 16..239 stay.
    Raises :class:`ArgumentError` when ``crop`` is below 1 or above ``resize``.
    """

    resize: int = 256
    crop: int = 224

    def __post_init__(self) -> None:
        if not 1 <= self.crop <= self.resize:
            raise ArgumentError(f"crop must lie in 1..resize ({self.resize}), not {self.crop}", argument=("crop",))

    def __call__(self, image: Image) -> Tensor:
        """An RGB image -> uint8 ``[3, crop, crop]``."""
        width, height = image.size
        shorter = min(width, height)
        scaled = _resized(image, (self.resize * width // shorter, self.resize * height // shorter))
        left, top = round((scaled.width - self.crop) / 2), round((scaled.height - self.crop) / 2)
        return _to_tensor(scaled.crop((left, top, left + self.crop, top + self.crop)))


@dataclass(frozen=True, slots=True)
class RandomResizedCrop:
    """A random part of the image, 8 to 100 % of its area and 3:4 to 4:3 in shape, scaled to ``size`` x ``size``.

    Source: Szegedy et al., Going Deeper with Convolutions, https://arxiv.org/abs/1409.4842, section 6. Where ten draws
    do not fit into the image, the largest part of an allowed shape around its centre is taken: of a 400 x 100 image
    the middle 133 x 100.
    """

    size: int = 224
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    def __call__(self, image: Image) -> Tensor:
        """An RGB image -> uint8 ``[3, size, size]``."""
        return _to_tensor(_resized(image, (self.size, self.size), self._box(*image.size)))

    def _box(self, width: int, height: int) -> tuple[int, int, int, int]:
        for _ in range(_ATTEMPTS):
            area = width * height * _uniform(*self.scale)
            aspect = math.exp(_uniform(math.log(self.ratio[0]), math.log(self.ratio[1])))
            w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < w <= width and 0 < h <= height:
                left = int(torch.randint(width - w + 1, ()))
                top = int(torch.randint(height - h + 1, ()))
                return left, top, left + w, top + h
        w = max(1, min(width, round(height * self.ratio[1])))
        h = max(1, min(height, round(width / self.ratio[0])))
        left, top = (width - w) // 2, (height - h) // 2
        return left, top, left + w, top + h
