"""A teacher's logits computed once and read back by sample id, instead of running the teacher in every epoch (layer 2).

    train_set = WithSampleIds(train_set)
    cached = cache_teacher(teacher, DataLoader(train_set, batch_size=256), "teacher_logits.bin")
    policy = KnowledgeDistillationPolicy(student, cached, temperature=4.0)
    for images, labels in cached.batches(DataLoader(train_set, batch_size=128, shuffle=True)):
        ...  # the usual step; wherever the teacher would run, its stored logits are read

The student must see what the teacher saw: a data set that is augmented at random gives one view of each image to the
teacher and others to the student, which costs accuracy (Beyer et al., Knowledge distillation: A good teacher is patient
and consistent, https://arxiv.org/abs/2106.05237).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from distiller_ng.errors import ArgumentError, CalibrationError, LifecycleError
from distiller_ng.knowledge_distillation._cache_checks import (
    check_samples,
    describe_samples,
    teacher_fingerprint,
)
from distiller_ng.knowledge_distillation._cache_file import CacheFile, CacheWriter, Origin
from distiller_ng.knowledge_distillation._teacher_pass import as_half, check_unique, order_of, outputs_of
from distiller_ng.knowledge_distillation.sample_ids import WithSampleIds, checked_ids, find_wrapper, split_sample_ids
from distiller_ng.names import unwrap

__all__ = ["CachedBatches", "CachedTeacher", "WithSampleIds", "cache_teacher", "teacher_fingerprint"]

logger = logging.getLogger(__name__)


def cache_teacher(
    teacher: nn.Module,
    loader: Iterable[Any],
    path: str | os.PathLike[str],
    *,
    inputs: Callable[[Any], Any] | None = None,
    output: str | int | None = None,
) -> CachedTeacher:
    """Run ``teacher`` once over ``loader`` in eval mode and write its logits to ``path`` as float16; the open cache.

    The logits of a sample are found again by its id: the last part of each batch when the loader's data set is a
    :class:`WithSampleIds` (any order will do), else its position, which takes a loader in a fixed order. Batches are
    moved to the teacher's device; its modes are given back. An existing file is replaced in one step at the end.
    Fashion-MNIST, 60,000 images of 10 classes, takes 60,000 * (10 * 2 + 8) bytes = 1.7 MB.

    Args:
        teacher: any module; wrap the call in ``torch.autocast`` to run it in lower precision.
        loader: every batch of the training set once, without random augmentation.
        path: the file to write.
        inputs: from a batch (without ids) to what the teacher takes: a tensor, a tuple or list (``teacher(*inputs)``)
            or a mapping (``teacher(**inputs)``). Default: the first part of a tuple, a mapping without its labels, or
            the batch itself.
        output: key or position of the logits among several outputs. Default: the output itself, ``logits`` of a
            mapping or object, or the first of a tuple.

    Raises :class:`ArgumentError` for a shuffled loader without ids, repeated ids and batches that do not fit together,
    and :class:`CalibrationError`, naming the sample, for logits that are no numbers or too large for float16
    (over 65,504). A failed call leaves no file behind.
    """
    _check_module(teacher)
    if not isinstance(loader, Iterable):
        raise ArgumentError(f"loader yields batches, got a {type(loader).__name__}", argument=("loader",))
    target = Path(path)
    if target.is_dir():
        raise ArgumentError(f"{target} is a folder: give the name of a file to write", argument=("path",))
    has_ids = order_of(loader)
    modes = [(module, module.training) for module in teacher.modules()]
    seen: list[Tensor] = []
    try:
        teacher.eval()
        with CacheWriter(target) as writer, torch.no_grad():
            for logits, ids in outputs_of(teacher, loader, has_ids, inputs, output):
                seen.append(ids)
                writer.append(as_half(logits, ids, writer.shape))
            if not seen:
                raise ArgumentError("the loader yields no batch: nothing to store", argument=("loader",))
            every = torch.cat(seen)
            check_unique(every)
            samples, digests, is_random = describe_samples(getattr(loader, "dataset", None), every)
            if is_random:
                logger.warning(
                    "The data set gives another picture of a sample each time (random augmentation): the logits are "
                    "those of one view, the student will be shown others"
                )
            name = type(unwrap(teacher)).__name__
            origin = Origin(teacher_fingerprint(teacher), name, samples, digests, is_random)
            writer.finish(every.numpy(), origin)
    finally:
        for module, mode in modes:
            module.training = mode
    return CachedTeacher(target)


class CachedTeacher(nn.Module):
    """The logits :func:`cache_teacher` wrote, as a teacher: called like a module, it reads instead of computing.

    Which samples to read it is told by :meth:`batches`, or by ``select(ids)`` before each step. ``teacher`` and
    ``dataset``, where given, must be those the file was made from: same weights, same samples. It has no parameters,
    keeps nothing in memory but the ids, and may be copied, pickled and shared by processes.

    >>> cached = CachedTeacher("teacher_logits.bin")     # doctest: +SKIP
    >>> cached.logits([7])                               # doctest: +SKIP
    tensor([[ 9.8750, -1.2500,  0.5312]])

    Raises ``FileNotFoundError``, and :class:`CalibrationError` for a damaged file, another teacher or other data.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, teacher: nn.Module | None = None, dataset: Any | None = None
    ) -> None:
        super().__init__()
        self._cache = CacheFile(path)
        self._selected: Tensor | None = None
        self.check(teacher=teacher, dataset=dataset)

    @property
    def path(self) -> Path:
        """The file."""
        return self._cache.path

    @property
    def fingerprint(self) -> str:
        """Of the teacher, as :func:`teacher_fingerprint` gives it."""
        return self._cache.origin.fingerprint

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the logits: ``(samples, classes)``, or more dimensions where the teacher gives more."""
        return tuple(self._cache.logits.shape)

    def __len__(self) -> int:
        return len(self._cache.ids)

    def check(self, *, teacher: nn.Module | None = None, dataset: Any | None = None) -> None:
        """Compare with the teacher's weights and with the data: their number, and the inputs of a few samples.

        Raises :class:`CalibrationError` for another teacher or other data.
        """
        origin = self._cache.origin
        if teacher is not None:
            _check_module(teacher)
        if teacher is not None and teacher_fingerprint(teacher) != origin.fingerprint:
            raise CalibrationError(
                f"{self.path} holds the logits of another teacher: of a {origin.teacher} with fingerprint "
                f"{origin.fingerprint[:12]}, but this {type(unwrap(teacher)).__name__} has "
                f"{teacher_fingerprint(teacher)[:12]}. Write it again with cache_teacher"
            )
        if dataset is not None:
            check_samples(dataset, origin, str(self.path))

    def select(self, ids: Any) -> None:
        """Say which samples the next batch holds: whole numbers ``[B]``, all different, in the batch's order.

        Raises :class:`ArgumentError` for anything else and :class:`CalibrationError` for a sample without logits.
        """
        self._selected = self.logits(ids)

    def logits(self, ids: Any, *, device: torch.device | str | None = None) -> Tensor:
        """The logits of these samples, float32 ``[B, ...]``; :class:`CalibrationError` for one the file lacks."""
        rows = self._cache.rows(checked_ids(ids).numpy())
        return torch.from_numpy(rows.astype(np.float32)).to(device)

    def forward(self, *inputs: Any, **named_inputs: Any) -> Tensor:
        """The logits of the selected samples, on the inputs' device; the inputs themselves are not looked at.

        Raises :class:`LifecycleError` when no samples are selected, or not as many as the inputs hold.
        """
        if self._selected is None:
            raise LifecycleError(
                f"{self.path}: which samples? Loop over cached.batches(loader), or call cached.select(ids) before each "
                "forward pass"
            )
        tensor = inputs[0] if inputs and isinstance(inputs[0], Tensor) else _first_tensor((inputs, named_inputs))
        if tensor is None:
            return self._selected
        if tensor.dim() and len(tensor) != len(self._selected):
            raise LifecycleError(
                f"{self.path}: {len(self._selected)} samples are selected, but the batch holds {len(tensor)}: call "
                "cached.select(ids) with the ids of this batch"
            )
        return self._selected.to(tensor.device)

    def batches(self, loader: Iterable[Any], *, check: bool = True) -> CachedBatches:
        """``loader`` without the sample ids: each is selected here just before its batch is yielded.

        ``loader`` is a loader over a :class:`WithSampleIds`, or anything that yields its batches, such as
        ``scheduler.minibatches(loader)``. The result can be iterated in every epoch and has the loader's length and
        attributes. With ``check`` the data set is compared with the cache first, see :meth:`check`; switch it off to
        train on randomly augmented images.

        Raises :class:`ArgumentError` for a loader without ids and :class:`CalibrationError` for other data.
        """
        if not isinstance(loader, Iterable):
            raise ArgumentError(f"loader yields batches, got a {type(loader).__name__}", argument=("loader",))
        dataset = getattr(loader, "dataset", None)
        if dataset is not None:
            if find_wrapper(dataset) is None:
                raise ArgumentError(
                    "the loader yields no sample ids: DataLoader(WithSampleIds(dataset), ...)", argument=("loader",)
                )
            if check:
                self.check(dataset=dataset)
        return CachedBatches(self, loader)

    def __getstate__(self) -> dict[str, Any]:
        # A memory map would be copied as its whole content.
        return {**self.__dict__, "_cache": self.path, "_selected": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({**state, "_cache": CacheFile(state["_cache"])})  # type: ignore[no-untyped-call]

    def extra_repr(self) -> str:
        """What ``print`` shows: the file, its shape and the teacher."""
        return f"{str(self.path)!r}, {list(self.shape)} logits of {self._cache.origin.teacher}"

    def _unselect(self) -> None:
        self._selected = None


class CachedBatches:
    """A loader whose batches have lost their sample ids to a :class:`CachedTeacher`; see :meth:`CachedTeacher.batches`.

    Attributes are the loader's. After the last batch, and after a loop that was left early, nothing is selected.
    """

    def __init__(self, cached: CachedTeacher, loader: Iterable[Any]) -> None:
        self._cached = cached
        self._loader = loader

    def __iter__(self) -> Iterator[Any]:
        try:
            for batch in self._loader:
                rest, ids = split_sample_ids(batch)
                self._cached.select(ids)
                yield rest
        finally:
            self._cached._unselect()

    def __len__(self) -> int:
        return len(self._loader)  # type: ignore[arg-type]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._loader, name)


def _check_module(teacher: Any) -> None:
    if not isinstance(teacher, nn.Module):
        raise ArgumentError(f"teacher is a torch.nn.Module, got a {type(teacher).__name__}", argument=("teacher",))


def _first_tensor(value: Any) -> Tensor | None:
    if isinstance(value, Tensor):
        return value
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return next((found for part in parts if (found := _first_tensor(part)) is not None), None)
