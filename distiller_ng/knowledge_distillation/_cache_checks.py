"""Whether a cache of logits belongs to a teacher and to a data set."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from distiller_ng.core.resume import capture_rng, restore_rng
from distiller_ng.errors import CalibrationError
from distiller_ng.knowledge_distillation._cache_file import Origin
from distiller_ng.knowledge_distillation.sample_ids import NO_INPUTS, find_wrapper
from distiller_ng.names import canonical_name, unwrap

__all__ = ["check_samples", "describe_samples", "teacher_fingerprint"]

_LOOKED_AT = 16


def teacher_fingerprint(teacher: nn.Module) -> str:
    """SHA-256 (hexadecimal) over names, types, shapes and values of everything in a module.

    The same for a module inside DataParallel or ``torch.compile``, on any device and in any mode; another one as soon
    as one weight, buffer or layer type differs.
    """
    bare, digest = unwrap(teacher), hashlib.sha256()
    for name, module in bare.named_modules():
        if unwrap(module) is module:
            digest.update(f"{canonical_name(name)}:{type(module).__name__};".encode())
    for name, value in sorted((canonical_name(name), value) for name, value in bare.state_dict().items()):
        digest.update(name.encode())
        _add(digest, value)
    return digest.hexdigest()


def describe_samples(dataset: Any, ids: Tensor) -> tuple[int | None, dict[str, str], bool]:
    """Length of the data set whose numbers ``ids`` are, digests of the inputs of a few, and whether they are random."""
    numbered = _numbered_set(dataset)
    if numbered is None:
        return None, {}, False
    spread = torch.linspace(0, len(ids) - 1, min(_LOOKED_AT, len(ids))).round().long()
    chosen = ids.sort().values[spread].tolist()
    first, second = _digests(numbered, chosen)
    is_random = first != second
    return len(numbered), {} if is_random else {str(key): value for key, value in first.items()}, is_random


def check_samples(dataset: Any, origin: Origin, source: str) -> None:
    """Raise :class:`CalibrationError` unless ``dataset`` is the one ``source`` was made from."""
    numbered = _numbered_set(dataset)
    if numbered is None or origin.samples is None:
        return
    again = "Write it again with cache_teacher"
    if len(numbered) != origin.samples:
        raise CalibrationError(
            f"{source} was made from a data set of {origin.samples} samples, this one has {len(numbered)}. {again}"
        )
    numbers = [int(key) for key in origin.digests]
    found, again_found = _digests(numbered, numbers)
    different = [number for number in numbers if found[number] != origin.digests[str(number)]]
    if not different:
        return
    if again_found != found:
        raise CalibrationError(
            f"{source} was made from fixed samples, but this data set changes them at random (augmentation): the "
            "teacher's logits are not those of what the student sees. Switch augmentation off, or pass check=False"
        )
    raise CalibrationError(
        f"{source} was made from other data, or other preprocessing: sample {different[0]} differs "
        f"({len(different)} of the {len(numbers)} looked at). {again}"
    )


def _numbered_set(dataset: Any) -> Any | None:
    """The data set whose positions the ids are; None for one that cannot be indexed."""
    if isinstance(dataset, DataLoader):
        dataset = dataset.dataset
    wrapper = find_wrapper(dataset)
    inner = dataset if wrapper is None else wrapper
    is_indexed = hasattr(inner, "__getitem__") and hasattr(inner, "__len__")
    return inner if is_indexed and not isinstance(inner, IterableDataset) else None


def _digests(dataset: Any, numbers: list[int]) -> tuple[dict[int, str], dict[int, str]]:
    """Of the inputs of these samples, read twice: random data give two results. No random generator is moved."""
    state = capture_rng()
    try:
        first = {number: _digest_of(dataset[number]) for number in numbers}
        return first, {number: _digest_of(dataset[number]) for number in numbers}
    finally:
        restore_rng(state)


def _digest_of(sample: Any) -> str:
    """Of what the teacher sees of a sample: its first part, or a mapping without labels."""
    if isinstance(sample, Mapping):
        seen: Any = {key: value for key, value in sample.items() if key not in NO_INPUTS}
    else:
        seen = sample[0] if isinstance(sample, list | tuple) and sample else sample
    digest = hashlib.sha256()
    _add(digest, seen)
    return digest.hexdigest()[:16]


def _add(digest: hashlib._Hash, value: Any) -> None:
    if isinstance(value, Mapping):
        for key in sorted(value, key=str):
            digest.update(str(key).encode())
            _add(digest, value[key])
    elif isinstance(value, list | tuple):
        for part in value:
            _add(digest, part)
    elif value is None or isinstance(value, str | bytes | int | float):
        digest.update(repr(value).encode())
    else:
        _add_array(digest, value)


def _add_array(digest: hashlib._Hash, value: Any) -> None:
    """Tensors, arrays and pictures (which numpy reads); anything else does not count."""
    if isinstance(value, Tensor):
        dense = value.detach().to_dense() if value.layout is not torch.strided else value.detach()
        plain = dense.dequantize() if dense.is_quantized else dense
        digest.update(f"{plain.dtype}{list(plain.shape)}".encode())
        # As bytes: numpy has no bfloat16.
        digest.update(plain.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return
    array = np.asarray(value)
    if array.dtype != object:
        digest.update(f"{array.dtype}{list(array.shape)}".encode())
        digest.update(np.ascontiguousarray(array).data)
