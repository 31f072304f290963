"""Loaders of the image-classification data sets, with Distiller's splits and subset sizes (layer 5)."""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from distiller_ng.apputils.datasets.base import DATASETS, ImageSet, PathLike, open_dataset
from distiller_ng.errors import ArgumentError, DatasetError

__all__ = [
    "DatasetSummary",
    "SubsetSampler",
    "classification_dataset_str_from_arch",
    "classification_get_input_shape",
    "classification_num_classes",
    "dataset_summary",
    "load_data",
]

_logger = logging.getLogger(__name__)
_SPLIT_SEED = 0
Loader: TypeAlias = "DataLoader[Any]"


def classification_dataset_str_from_arch(arch: str) -> str:
    """The data set an architecture's name speaks of: ``"resnet20_cifar"`` -> ``"cifar10"``, ``"resnet18"`` -> imagenet.

    Distiller's rule (``cifar`` -> cifar10, ``mnist`` -> mnist, else imagenet), and any registered data set by its own
    name: ``"simplenet_fashion_mnist"`` -> ``"fashion-mnist"``, ``"simplenet_digits"`` -> ``"digits"``.
    """
    spelled = arch.lower().replace("_", "-")
    for name in sorted(DATASETS.names(), key=len, reverse=True):  # fashion-mnist before mnist
        if name.lower().replace("_", "-") in spelled:
            return name
    return "cifar10" if "cifar" in spelled else "imagenet"


def classification_num_classes(dataset: str) -> int:
    """How many classes a data set has, without opening it: ``"cifar10"`` -> 10, ``"imagenet"`` -> 1000.

    Raises :class:`DatasetError` for an unknown name.
    """
    return open_dataset(dataset).num_classes


def classification_get_input_shape(dataset: str) -> tuple[int, int, int, int]:
    """Shape ``(1, C, H, W)`` of one image of a data set: ``"mnist"`` -> ``(1, 1, 28, 28)``.

    Raises :class:`DatasetError` for an unknown name.
    """
    return (1, *open_dataset(dataset).image_shape)


class SubsetSampler(Sampler[int]):
    """Visit a fraction of given indices each epoch, in random order or (``sequential``) in ascending order.

    ``effective_size`` is a fraction in (0, 1]; ``floor(n * effective_size)``, but at least one, indices are visited.
    They are chosen anew every epoch, or once for all with ``fixed_subset``: then ``indices`` holds just those, the same
    in every process, so that a resumed run goes on with its own subset. Order and choice draw from torch's global
    generator; a sequential pass over everything draws nothing. Example: 10 indices and 0.25 visit 2 of them.
    """

    def __init__(
        self,
        indices: Sequence[int],
        effective_size: float = 1.0,
        *,
        fixed_subset: bool = False,
        sequential: bool = False,
    ) -> None:
        _check_fraction("effective_size", effective_size)
        self.indices = torch.as_tensor(indices, dtype=torch.int64).sort().values
        if not len(self.indices):
            raise ArgumentError("indices are empty: there is nothing to sample", argument=("indices",))
        # 0.29 * 100 is 28.999...: without the tiny amount one sample would be lost to rounding.
        self.length = max(1, math.floor(len(self.indices) * effective_size + 1e-9))
        self.sequential = sequential
        if fixed_subset and self.length < len(self.indices):
            generator = torch.Generator().manual_seed(_SPLIT_SEED)
            chosen = torch.randperm(len(self.indices), generator=generator)[: self.length]
            self.indices = self.indices[chosen].sort().values

    def __iter__(self) -> Iterator[int]:
        if self.sequential and self.length == len(self.indices):
            return iter(self.indices.tolist())
        chosen = self.indices[torch.randperm(len(self.indices))[: self.length]]
        return iter((chosen.sort().values if self.sequential else chosen).tolist())

    def __len__(self) -> int:
        return self.length


def load_data(
    dataset: str | None,
    arch: str,
    data_dir: PathLike | None,
    batch_size: int,
    workers: int,
    validation_split: float = 0.1,
    deterministic: bool = False,
    effective_train_size: float = 1.0,
    effective_valid_size: float = 1.0,
    effective_test_size: float = 1.0,
    fixed_subset: bool = False,
    sequential: bool = False,
    test_only: bool = False,
) -> tuple[Loader | None, Loader | None, Loader, tuple[int, ...]]:
    """Loaders for training, validation and test, and the shape ``(1, C, H, W)`` of one image (Distiller's signature).

    Args:
        dataset: a name of ``DATASETS``, with options where it has them (``synthetic:1x28x28``); None takes it from
            ``arch``.
        arch: the network's name; used only when ``dataset`` is None.
        data_dir: where the files are; data sets that need none ignore it.
        batch_size: images a batch; the last batch of an epoch may be smaller.
        workers: loading processes; 0 loads in this one.
        validation_split: fraction of the training set, in [0, 1), put aside for validation. The choice is the same in
            every process, so that a resumed run never trains on images it validated with. Validation images are not
            augmented. When nothing is put aside the test loader serves for validation.
        deterministic: also seed Python's and numpy's generators in the workers (torch's always is); call
            ``set_deterministic(seed)`` first to choose the seed.
        effective_train_size, effective_valid_size, effective_test_size: fraction in (0, 1] of each set used an epoch.
        fixed_subset: keep one subset for the whole run, instead of a new one each epoch.
        sequential: visit images in the order of the files instead of at random.
        test_only: build the test loader alone; the first two results are None.

    Raises :class:`ArgumentError` for a value out of range and :class:`DatasetError` for a missing or damaged data set.
    Example: MNIST with ``validation_split=0.1`` gives loaders over 54,000, 6,000 and 10,000 images.
    """
    sizes = (effective_train_size, effective_valid_size, effective_test_size)
    _check_arguments(batch_size, workers, validation_split, sizes)
    source = open_dataset(dataset or classification_dataset_str_from_arch(arch), data_dir)
    build = _LoaderBuilder(batch_size, workers, deterministic, fixed_subset, sequential)

    test_set = source.test_set()
    test_loader = build(test_set, range(len(test_set)), effective_test_size)
    input_shape = (1, *test_set[0][0].shape)
    if test_only:
        return None, None, test_loader, input_shape

    train_set, plain_set = source.train_set(), source.train_set(augment=False)
    if (shape := (1, *plain_set[0][0].shape)) != input_shape:
        raise DatasetError(f"training images have shape {shape}, test images {input_shape}: not of the same data set")
    train, valid = _split(len(train_set), validation_split)
    train_loader = build(train_set, train, effective_train_size)
    if not len(valid):
        _logger.info("no image is put aside for validation: the test set is used")
        return train_loader, test_loader, test_loader, input_shape
    return train_loader, build(plain_set, valid, effective_valid_size), test_loader, input_shape


def _split(count: int, fraction: float) -> tuple[Tensor, Tensor]:
    """Training and validation indices; :class:`ArgumentError` when nothing is left to train on."""
    shuffled = torch.randperm(count, generator=torch.Generator().manual_seed(_SPLIT_SEED))
    valid = math.floor(count * fraction + 1e-9)
    if valid >= count:
        raise ArgumentError(
            f"validation_split {fraction} leaves none of {count} images", argument=("validation_split",)
        )
    return shuffled[valid:], shuffled[:valid]


@dataclass(frozen=True, slots=True)
class _LoaderBuilder:
    batch_size: int
    workers: int
    deterministic: bool
    fixed_subset: bool
    sequential: bool

    def __call__(self, images: ImageSet, indices: Sequence[int] | Tensor, effective_size: float) -> Loader:
        chosen = indices.tolist() if isinstance(indices, Tensor) else indices
        sampler = SubsetSampler(chosen, effective_size, fixed_subset=self.fixed_subset, sequential=self.sequential)
        # Workers start anew each epoch: persistent ones keep their generators, and a resumed run could not follow.
        return DataLoader(
            images,
            batch_size=self.batch_size,
            sampler=sampler,
            num_workers=self.workers,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=_seed_worker if self.deterministic else None,
        )


def _seed_worker(worker_id: int) -> None:
    """Give Python and numpy the seed torch already has in this worker (base seed of the epoch + worker)."""
    seed = torch.initial_seed() % 2**32
    random.seed(seed)
    np.random.seed(seed)


def _check_fraction(name: str, value: float) -> None:
    if not 0.0 < value <= 1.0:
        raise ArgumentError(f"{name} must be a fraction in (0, 1], not {value}; 1.0 uses everything", argument=(name,))


def _check_arguments(batch_size: int, workers: int, validation_split: float, sizes: Sequence[float]) -> None:
    if batch_size < 1:
        raise ArgumentError(f"batch_size must be 1 or more, not {batch_size}", argument=("batch_size",))
    if workers < 0:
        raise ArgumentError(f"workers must be 0 (load in this process) or more, not {workers}", argument=("workers",))
    if not 0.0 <= validation_split < 1.0:
        raise ArgumentError(
            f"validation_split must be a fraction in [0, 1), not {validation_split}; 0.1 puts a tenth aside",
            argument=("validation_split",),
        )
    for name, size in zip(("train", "valid", "test"), sizes, strict=True):
        _check_fraction(f"effective_{name}_size", size)


@dataclass(frozen=True, slots=True)
class DatasetSummary:
    """How many images of each class one epoch of a loader holds; ``counts`` maps class to number, classes ascending."""

    counts: dict[int, int]

    @property
    def total(self) -> int:
        """Images of all classes together."""
        return sum(self.counts.values())

    def __str__(self) -> str:
        width = max([len(f"{n:,}") for n in self.counts.values()], default=1)
        lines = [f"Class {label:>4}: {count:>{width},}" for label, count in self.counts.items()]
        return "\n".join([*lines, f"Dataset contains {self.total:,} items of {len(self.counts)} classes"])


def dataset_summary(data_loader: DataLoader[Any]) -> DatasetSummary:
    """Count the images of each class a loader visits in an epoch, log the table and return it.

    No image is decoded where the data set keeps its ``labels``; torch's generator is left as it was, so looking does
    not change what follows. Example: a loader over labels 0, 1, 1 gives ``counts == {0: 1, 1: 2}``.
    """
    labels = getattr(data_loader.dataset, "labels", None)
    with torch.random.fork_rng(devices=[]):
        if isinstance(data_loader.dataset, Dataset) and isinstance(labels, Tensor) and data_loader.batch_size:
            seen = labels[torch.tensor(list(data_loader.sampler), dtype=torch.int64)]
        else:
            seen = torch.cat([torch.as_tensor(batch[1]).flatten() for batch in data_loader])
    summary = DatasetSummary({label: count for label, count in enumerate(seen.bincount().tolist()) if count})
    _logger.info("Class membership:\n%s", summary)
    return summary
