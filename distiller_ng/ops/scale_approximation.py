"""A scale as an integer multiplication and a shift, for hardware without floating point (layer 1)."""

from __future__ import annotations

import torch
from torch import Tensor

from distiller_ng.errors import ArgumentError
from distiller_ng.ops.linear_quantization import check_bits

__all__ = ["multiplier_of", "multiply_and_shift", "shift_of"]


def multiply_and_shift(scale: Tensor, multiplier_bits: int, *, limit: bool = False) -> tuple[Tensor, Tensor]:
    """``scale ~ multiplier / 2**shift`` with an integer multiplier below ``2**multiplier_bits``: both in float64.

    ``shift = floor(log2((2**m - 1) / scale))``, ``multiplier = floor(scale * 2**shift)``; ``limit`` caps the shift at
    ``multiplier_bits``. For scale 0.1 and 8 bits: shift 11, multiplier 204, so 0.0996.

    Raises :class:`ArgumentError` unless every scale is positive and finite.
    """
    shift = shift_of(scale, multiplier_bits, limit=limit)
    return multiplier_of(scale, shift), shift


def shift_of(scale: Tensor, multiplier_bits: int, *, limit: bool = False) -> Tensor:
    """The largest shift whose multiplier still fits in ``multiplier_bits``, float64; see :func:`multiply_and_shift`."""
    bits = check_bits(multiplier_bits, argument="multiplier_bits")
    exact = scale.detach().double()
    if not bool((torch.isfinite(exact) & (exact > 0)).all()):
        raise ArgumentError(f"only positive, finite scales can be approximated, got {exact.flatten()[:4].tolist()}")
    shift = torch.floor(torch.log2((2**bits - 1) / exact))
    return shift.clamp(max=float(bits)) if limit else shift


def multiplier_of(scale: Tensor, shift: Tensor) -> Tensor:
    """``floor(scale * 2**shift)`` in float64: ``multiplier_of(torch.tensor(0.1), torch.tensor(11.0))`` -> 204."""
    return torch.floor(torch.ldexp(scale.detach().double(), shift.double()))
