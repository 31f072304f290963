"""Integers of few bits, and masks, in as few bytes as they need (layer 4)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from distiller_ng.errors import ArgumentError, CheckpointError
from distiller_ng.ops.linear_quantization import check_bits

__all__ = ["pack_bits", "packed_length", "unpack_bits"]

_CHUNK = 1 << 20  # values at a time, a multiple of 8: bits take a byte each while they are rearranged


def packed_length(count: int, bits: int) -> int:
    """Bytes for ``count`` values of ``bits`` bits: ``packed_length(5, 3)`` -> 2."""
    return -(-count * bits // 8)


def pack_bits(values: Tensor, bits: int) -> Tensor:
    """Whole numbers ``0 .. 2**bits - 1`` (any shape, row by row) as bytes, the lowest bit of the first value first.

    >>> pack_bits(torch.tensor([1, 2, 3]), 2)
    tensor([57], dtype=torch.uint8)

    57 is 0b111001: 3, 2, 1 read from the left. Raises :class:`ArgumentError` for values that do not fit.
    """
    width = check_bits(bits, high=8)
    flat = values.detach().cpu().reshape(-1)
    if flat.numel() and (int(flat.min()) < 0 or int(flat.max()) >= 1 << width):
        raise ArgumentError(f"values {int(flat.min())} .. {int(flat.max())} do not fit {width} bits without a sign")
    whole = flat.to(torch.uint8).numpy()
    parts = [_packed(whole[start : start + _CHUNK], width) for start in range(0, len(whole), _CHUNK)]
    return torch.from_numpy(np.concatenate(parts) if parts else np.empty(0, np.uint8))


def unpack_bits(packed: Tensor, bits: int, count: int) -> Tensor:
    """The ``count`` values that :func:`pack_bits` packed, as uint8 ``[count]``.

    Raises :class:`CheckpointError` when there are more or fewer bytes than ``count`` values take.
    """
    width = check_bits(bits, high=8)
    if packed.dtype != torch.uint8 or packed.dim() != 1 or packed.numel() != packed_length(count, width):
        raise CheckpointError(
            f"{count} values of {width} bits take {packed_length(count, width)} bytes, the file has "
            f"{packed.numel()} values of {packed.dtype}"
        )
    octets = packed.cpu().numpy()
    parts = []
    for start in range(0, count, _CHUNK):
        first, number = start * width // 8, min(_CHUNK, count - start)
        parts.append(_unpacked(octets[first : first + packed_length(number, width)], width, number))
    return torch.from_numpy(np.concatenate(parts) if parts else np.empty(0, np.uint8))


def _packed(values: np.ndarray, bits: int) -> np.ndarray:
    if bits == 8:
        return values
    each = np.unpackbits(values[:, None], axis=1, count=bits, bitorder="little")
    return np.packbits(each.reshape(-1), bitorder="little")


def _unpacked(octets: np.ndarray, bits: int, count: int) -> np.ndarray:
    if bits == 8:
        return octets.copy()
    each = np.unpackbits(octets, count=count * bits, bitorder="little").reshape(count, bits)
    return np.packbits(each, axis=1, bitorder="little").reshape(-1)
