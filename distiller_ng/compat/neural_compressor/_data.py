"""Data loaders and optimizers as a Neural Compressor configuration describes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, DistributedSampler

from distiller_ng.apputils.datasets._photos import RandomResizedCrop, ResizeCenterCrop
from distiller_ng.apputils.datasets.base import ImageSet, InMemorySource, TensorImages, open_dataset
from distiller_ng.apputils.datasets.imagenet import FolderImages, class_names, labelled_files
from distiller_ng.apputils.datasets.transforms import Compose, Normalize, RandomHorizontalFlip
from distiller_ng.compat.neural_compressor._settings import DATASETS, LoaderSettings, OptimizerSettings
from distiller_ng.errors import DatasetError, LifecycleError

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["build_loader", "build_optimizer"]

Loader: TypeAlias = "DataLoader[Any]"


def build_loader(settings: LoaderSettings) -> Loader:
    """The loader of a ``dataloader`` section.

    Raises :class:`DatasetError` for missing or damaged data and :class:`LifecycleError` for ``distributed: true``
    outside a process group.
    """
    images = _images(settings)
    sampler: DistributedSampler[Any] | None = None
    if settings.distributed:
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            raise LifecycleError(
                "dataloader.distributed is true, but this is no process of a group: start with torchrun and call "
                "torch.distributed.init_process_group() first, or write distributed: false"
            )
        sampler = DistributedSampler(images, shuffle=settings.shuffle)
    return DataLoader(
        images,
        batch_size=settings.batch_size,
        shuffle=settings.shuffle if sampler is None else None,
        sampler=sampler,
        drop_last=settings.drop_last,
    )


def build_optimizer(settings: OptimizerSettings, model: nn.Module) -> Optimizer:
    """The optimizer of an ``optimizer`` section, over all parameters of ``model``."""
    kind: type[Optimizer] = getattr(torch.optim, settings.name)
    return kind(model.parameters(), **settings.arguments)


def _images(settings: LoaderSettings) -> ImageSet:
    steps, arguments = dict(settings.transform), settings.dataset_arguments
    finish = _finish(steps)
    shape = _shape(steps)
    root = arguments["root"]
    name = DATASETS[settings.dataset]
    if name is None:
        folder = Path(root).expanduser()
        if not folder.is_dir():
            raise DatasetError(f"ImageFolder: there is no folder {folder}. Expected: root/CLASS/*.JPEG")
        paths, labels = labelled_files(folder, class_names(folder))
        return FolderImages(paths, labels, shape=_whole_image if shape is None else shape, transform=finish)
    source = open_dataset(name, root or None)
    if not isinstance(source, InMemorySource):
        raise DatasetError(f"{settings.dataset}: not held in memory")
    images, labels_ = source.read("train" if arguments["train"] else "test")
    if shape is None:
        return TensorImages(images, labels_, transform=finish)
    return _ReshapedImages(images, labels_, shape=shape, transform=finish)


def _shape(steps: Mapping[str, Mapping[str, Any]]) -> Callable[[Image], Tensor] | None:
    """What brings a picture of any size to a uint8 tensor of one size; None: it stays as it is."""
    if "RandomResizedCrop" in steps:
        return RandomResizedCrop(steps["RandomResizedCrop"]["size"])
    if "Resize" in steps:
        return ResizeCenterCrop(steps["Resize"]["size"], steps["CenterCrop"]["size"])
    return None


def _finish(steps: Mapping[str, Mapping[str, Any]]) -> Callable[[Tensor], Tensor]:
    """From a uint8 batch to floats: mirroring, division by 255, normalising."""
    scale = steps.get("Normalize", {"mean": (0.0,), "std": (1.0,)})
    normalize = Normalize(tuple(scale["mean"]), tuple(scale["std"]))
    return Compose((RandomHorizontalFlip(), normalize)) if "RandomHorizontalFlip" in steps else normalize


def _whole_image(image: Image) -> Tensor:
    return torch.from_numpy(np.array(image, dtype=np.uint8)).permute(2, 0, 1).contiguous()


class _ReshapedImages(ImageSet):
    """Images held as uint8 ``[N, C, H, W]`` that go through a transform of pictures one by one."""

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        *,
        shape: Callable[[Image], Tensor],
        transform: Callable[[Tensor], Tensor],
    ) -> None:
        self.images, self.labels = images, labels
        self.shape, self.transform = shape, transform

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        from PIL import Image

        image = self.images[index]
        # Pictures have three channels; a grey one carries the same three times and gives the first back.
        picture = Image.fromarray(image.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy())
        shaped = self.shape(picture)[: len(image)]
        return self.transform(shaped.unsqueeze(0))[0], int(self.labels[index])
