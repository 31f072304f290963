"""Image transforms over whole batches of tensors (layer 5; torch only).

Every transform maps a batch ``[N, C, H, W]`` to a batch. Randomness comes from torch's global generator alone: whoever
restores that generator (in the main process, or by restarting the loader's workers from it) replays the same images.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from distiller_ng.errors import ArgumentError

__all__ = ["Compose", "Normalize", "RandomCrop", "RandomHorizontalFlip"]


@dataclass(frozen=True, slots=True)
class Compose:
    """Apply ``steps`` one after the other: ``Compose((RandomCrop(4), Normalize((0.5,), (0.5,))))``."""

    steps: tuple[Callable[[Tensor], Tensor], ...]

    def __call__(self, images: Tensor) -> Tensor:
        """``[N, C, H, W]`` -> what the last step returns."""
        for step in self.steps:
            images = step(images)
        return images


@dataclass(frozen=True, slots=True)
class Normalize:
    """Integer pixels to floats with about zero mean and unit deviation: ``(x / scale - mean) / std``.

    ``mean`` and ``std`` hold one value, or one a channel, in units of ``scale`` (the largest pixel value). Example:
    ``Normalize((0.5,), (0.5,))`` maps the pixels 0, 51, 255 to -1.0, -0.6, 1.0. Raises :class:`ArgumentError` for a
    deviation or scale that is not positive, or a different number of means and deviations.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    scale: float = 255.0

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or not self.mean:
            raise ArgumentError(
                f"mean has {len(self.mean)} values and std {len(self.std)}; give one of each, or one a channel",
                argument=("std",),
            )
        if min(self.std) <= 0:
            raise ArgumentError(f"std must be positive, not {min(self.std)}", argument=("std",))
        if self.scale <= 0:
            raise ArgumentError(f"scale must be positive, not {self.scale}", argument=("scale",))

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 ``[N, C, H, W]`` -> float32 of the same shape."""
        mean = torch.tensor(self.mean).view(-1, 1, 1)
        std = torch.tensor(self.std).view(-1, 1, 1)
        # Always a new tensor, so the data set's own storage is never written to by the in-place steps.
        return images.to(torch.float32, copy=True).div_(self.scale).sub_(mean).div_(std)


@dataclass(frozen=True, slots=True)
class RandomCrop:
    """Shift each image by up to ``padding`` pixels either way; what enters from outside is 0 (black).

    Equal to padding by ``padding`` and cropping ``H x W`` at a random place, the usual augmentation of CIFAR-10 (He et
    al., Deep Residual Learning for Image Recognition, https://arxiv.org/abs/1512.03385, section 4.2). Example: with
    ``padding=1`` each of the nine shifts of an image is equally likely.
    """

    padding: int

    def __post_init__(self) -> None:
        if self.padding < 0:
            raise ArgumentError(f"padding counts pixels: 0 or more, not {self.padding}", argument=("padding",))

    def __call__(self, images: Tensor) -> Tensor:
        """``[N, C, H, W]`` -> the same shape and dtype; two random integers an image."""
        count, _, height, width = images.shape
        padding = self.padding
        padded = functional.pad(images, (padding, padding, padding, padding))
        top, left = torch.randint(2 * padding + 1, (2, count)).unbind()
        windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # [N, C, 2p+1, 2p+1, H, W], a view
        return windows[torch.arange(count), :, top, left]


@dataclass(frozen=True, slots=True)
class RandomHorizontalFlip:
    """Mirror each image left to right with the given ``probability``: at 1.0 the row ``1 2 3`` becomes ``3 2 1``."""

    probability: float = 0.5

    def __post_init__(self) -> None:
        if not 0.0 <= self.probability <= 1.0:
            raise ArgumentError(f"probability must lie in 0..1, not {self.probability}", argument=("probability",))

    def __call__(self, images: Tensor) -> Tensor:
        """``[N, C, H, W]`` -> the same shape and dtype; one random number an image."""
        flipped = torch.rand(images.shape[0]) < self.probability
        return torch.where(flipped.view(-1, 1, 1, 1), images.flip(-1), images)
