"""Integers to floating point, as one operator that stays whole in traced graphs (layer 4)."""

from __future__ import annotations

import torch
from torch import Tensor

from distiller_ng.ops.linear_quantization import along_axis

__all__ = ["DEQUANTIZE", "FAKE_QUANTIZE"]

_SCHEMA = "(Tensor integers, Tensor scale, Tensor zero_point, int? axis) -> Tensor"


@torch.library.custom_op("distiller_ng::dequantize", mutates_args=(), schema=_SCHEMA)
def _dequantize(integers: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None) -> Tensor:
    # In float64, so that biases of 32 bits are not rounded twice.
    step, zero = (along_axis(value.double(), integers.dim(), axis) for value in (scale, zero_point))
    if axis is None:
        step, zero = step.reshape(()), zero.reshape(())
    return ((integers.double() - zero) * step).to(scale.dtype)


@_dequantize.register_fake
def _(integers: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None) -> Tensor:
    return torch.empty_like(integers, dtype=scale.dtype)


#: ``(integers - zero_point) * scale``; one scale and zero point, or one for each channel along ``axis``.
DEQUANTIZE = torch.ops.distiller_ng.dequantize.default
#: Rounding to a grid, see ``ops/fake_quantize.py``.
FAKE_QUANTIZE = torch.ops.distiller_ng.fake_quantize.default
