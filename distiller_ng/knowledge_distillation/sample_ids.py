"""Data sets whose samples carry their number, so that stored teacher logits can be found again (layer 2)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from distiller_ng.errors import ArgumentError

__all__ = ["NO_INPUTS", "SAMPLE_ID", "WithSampleIds", "checked_ids", "find_wrapper", "split_sample_ids"]

#: The key under which samples that are mappings carry their number.
SAMPLE_ID = "sample_id"
#: Keys of a mapping that are no inputs of a model.
NO_INPUTS = frozenset({"label", "labels", "target", "targets", SAMPLE_ID})


class WithSampleIds(Dataset[Any]):
    """``dataset`` with each sample's index added at its end, or under the key ``"sample_id"`` of a mapping.

    ``(image, label)`` becomes ``(image, label, 7)``, a bare ``image`` becomes ``(image, 7)`` and ``{"input_ids": ...}``
    becomes ``{"input_ids": ..., "sample_id": 7}``. Take subsets of the wrapped set (``Subset(WithSampleIds(data),
    chosen)``), so that ids stay those of the whole. Other attributes are those of ``dataset``. Raises
    :class:`ArgumentError` for a data set that cannot be indexed, and for a mapping that has such a key already.

    >>> WithSampleIds([("a", 0), ("b", 1)])[-1]
    ('b', 1, 1)
    """

    def __init__(self, dataset: Dataset[Any] | Sequence[Any]) -> None:
        if isinstance(dataset, IterableDataset) or not (
            hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")
        ):
            raise ArgumentError(
                f"{type(dataset).__name__} has no fixed order: sample ids need a data set with a length, read by index",
                argument=("dataset",),
            )
        self.dataset: Any = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        number, count = int(index), len(self.dataset)
        if not -count <= number < count:
            raise IndexError(f"sample {number} of a data set of {count}")
        return _numbered(self.dataset[number], number % count)

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """The samples of one batch, read together where ``dataset`` can do that."""
        if type(self.dataset) is TensorDataset:  # which reads one by one, at several times the cost
            columns = [tensor[torch.as_tensor(indices)].unbind() for tensor in self.dataset.tensors]
            return list(zip(*columns, (int(index) % len(self) for index in indices), strict=True))
        if not hasattr(self.dataset, "__getitems__"):
            return [self[index] for index in indices]
        samples, count = self.dataset.__getitems__(indices), len(self.dataset)
        return [_numbered(sample, int(index) % count) for sample, index in zip(samples, indices, strict=True)]

    def __getattr__(self, name: str) -> Any:
        if name == "dataset" or name.startswith("__"):  # not there yet while unpickling
            raise AttributeError(name)
        return getattr(self.dataset, name)


def _numbered(sample: Any, number: int) -> Any:
    if type(sample) is tuple:  # the usual one first: this runs for every sample
        return (*sample, number)
    if isinstance(sample, Mapping):
        if SAMPLE_ID in sample:
            raise ArgumentError(f"the samples have a key {SAMPLE_ID!r} already", argument=("dataset",))
        return {**sample, SAMPLE_ID: number}
    if isinstance(sample, list):
        return [*sample, number]
    return (*sample, number) if isinstance(sample, tuple) else (sample, number)


def split_sample_ids(batch: Any) -> tuple[Any, Tensor]:
    """A batch of a wrapped data set as the batch without ids, and its ids (int64 ``[B]``).

    ``[images, labels, ids]`` gives ``([images, labels], ids)``, ``[images, ids]`` gives ``(images, ids)``. Raises
    :class:`ArgumentError` when the last part is no list of different whole numbers: it is no batch with sample ids.

    >>> split_sample_ids({"x": 1, "sample_id": torch.tensor([4, 2])})
    ({'x': 1}, tensor([4, 2]))
    """
    if isinstance(batch, Mapping) and SAMPLE_ID in batch:
        return {key: value for key, value in batch.items() if key != SAMPLE_ID}, checked_ids(batch[SAMPLE_ID])
    if isinstance(batch, list | tuple) and len(batch) > 1:
        rest = list(batch[:-1])
        return rest[0] if len(rest) == 1 else rest, checked_ids(batch[-1])
    raise ArgumentError(
        f"a batch of type {type(batch).__name__} holds no sample ids: wrap the data set, "
        "DataLoader(WithSampleIds(dataset), ...)",
        argument=("batch",),
    )


def checked_ids(ids: Any) -> Tensor:
    """Ids as an int64 tensor ``[B]`` on the CPU; :class:`ArgumentError` unless they are different whole numbers."""
    if type(ids) is Tensor and ids.dtype is torch.int64 and ids.dim() == 1 and ids.device.type == "cpu":
        numbers = ids  # what every loader gives; the rest of this function runs cold in a training step
    else:
        numbers = _whole_numbers(ids)
    if len(set(numbers.tolist())) != len(numbers):
        raise ArgumentError(
            "the same sample id stands twice in one batch: these may be labels. Wrap the data set in WithSampleIds, "
            "which puts the ids last",
            argument=("ids",),
        )
    return numbers


def _whole_numbers(ids: Any) -> Tensor:
    try:
        numbers = torch.as_tensor(ids)
    except (TypeError, ValueError, RuntimeError):
        numbers = torch.empty(0)
    if numbers.dim() != 1 or numbers.is_floating_point() or numbers.is_complex() or numbers.dtype == torch.bool:
        raise ArgumentError(
            f"sample ids are whole numbers, one a sample of the batch; got {_described(ids)}. Wrap the data set in "
            "WithSampleIds, which puts them last",
            argument=("ids",),
        )
    return numbers.to("cpu", torch.int64)


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a {str(value.dtype).removeprefix('torch.')} tensor of shape {list(value.shape)}"
    return type(value).__name__


def find_wrapper(dataset: Any) -> WithSampleIds | None:
    """The :class:`WithSampleIds` inside subsets and other wrappers that keep theirs in ``.dataset``, or None."""
    for inner in _chain(dataset):
        if isinstance(inner, WithSampleIds):
            return inner
    return None


def _chain(dataset: Any) -> Iterator[Any]:
    seen: set[int] = set()
    while dataset is not None and id(dataset) not in seen:
        seen.add(id(dataset))
        yield dataset
        dataset = getattr(dataset, "dataset", None)
