"""Masks as bits in files: a float mask of zeros and ones takes 1/32 of its size (layer 3)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distiller_ng.errors import CheckpointError

__all__ = ["pack_masks", "unpack_masks"]

_MARK = "__mask_bits__"
_DTYPES = {str(dtype): dtype for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16)}


def pack_masks(value: Any) -> Any:
    """A copy of nested dicts, lists and tuples in which every binary float tensor is packed to bits.

    Other values are kept as they are. A tensor that stands in several places is packed once, and a file stores it once.
    Example: ``tensor([1., 0., 1.])`` -> ``{"__mask_bits__": tensor([160], uint8), "shape": [3], "dtype":
    "torch.float32"}`` (1010 0000 in binary).
    """
    return _walk(value, _pack, {})


def unpack_masks(value: Any) -> Any:
    """The inverse of :func:`pack_masks`; raises :class:`CheckpointError` for bits that do not fit their shape."""
    return _walk(value, _unpack, {})


def _walk(value: Any, leaf: Any, done: dict[int, Any]) -> Any:
    if isinstance(value, Tensor) or (isinstance(value, Mapping) and _MARK in value):
        # Keyed by identity: ``value`` is alive as long as the structure being walked is.
        if id(value) not in done:
            done[id(value)] = leaf(value)
        return done[id(value)]
    if isinstance(value, Mapping):
        return {key: _walk(item, leaf, done) for key, item in value.items()}
    if isinstance(value, list | tuple) and type(value) in (list, tuple):
        return type(value)(_walk(item, leaf, done) for item in value)
    return value


def _pack(value: Any) -> Any:
    if not isinstance(value, Tensor) or str(value.dtype) not in _DTYPES or not _is_binary(value):
        return value
    bits = np.packbits(value.detach().cpu().to(torch.bool).flatten().numpy())
    return {_MARK: torch.from_numpy(bits), "shape": list(value.shape), "dtype": str(value.dtype)}


def _unpack(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value
    try:
        bits, shape, dtype = value[_MARK], [int(n) for n in value["shape"]], _DTYPES[value["dtype"]]
        flat = np.unpackbits(bits.numpy(), count=int(np.prod(shape, dtype=np.int64)))
        return torch.from_numpy(flat).to(dtype).reshape(shape)
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise CheckpointError(f"a packed mask is damaged: {error}") from error


def _is_binary(tensor: Tensor) -> bool:
    if tensor.layout is not torch.strided or tensor.dim() == 0:
        return False
    # -0.0 equals 0 but is another value: packing must lose nothing.
    return bool((((tensor == 0) & ~torch.signbit(tensor)) | (tensor == 1)).all())
