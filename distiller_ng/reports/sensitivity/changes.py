"""What a sensitivity analysis does to one parameter (layer 4)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from distiller_ng.errors import ArgumentError, did_you_mean
from distiller_ng.ops.linear_quantization import (
    LinearQuantMode,
    QuantizationParameters,
    axis_min_max,
    check_bits,
    dequantize,
    quantize,
    quantized_range,
    scale_and_zero_point,
)
from distiller_ng.ops.masks import create_mask_level_criterion, lowest_structures

__all__ = ["GROUPS", "changed", "check_group", "check_level", "is_measurable"]


def _elements(weight: Tensor, sparsity: float) -> Tensor:
    return weight * create_mask_level_criterion(weight, sparsity)


def _filters(weight: Tensor, sparsity: float) -> Tensor:
    return _structures(weight, sparsity, 0)


def _channels(weight: Tensor, sparsity: float) -> Tensor:
    return _structures(weight, sparsity, 1)


def _structures(weight: Tensor, sparsity: float, axis: int) -> Tensor:
    """Without the structures along ``axis`` whose mean magnitude is lowest."""
    others = [dim for dim in range(weight.dim()) if dim != axis]
    keep = lowest_structures(weight.abs().mean(dim=others), sparsity)
    if keep is None:
        return weight.clone()
    return weight * keep.reshape([-1 if dim == axis else 1 for dim in range(weight.dim())])


def _rounded(weight: Tensor, bits: float) -> Tensor:
    """Rounded to ``bits`` bits, symmetric, one scale for each output channel."""
    mode, wide = LinearQuantMode.SYMMETRIC_RESTRICTED, weight.float()
    low, high = axis_min_max(wide, 0)
    scale, zero_point = scale_and_zero_point(low, high, int(bits), mode)
    params = QuantizationParameters(scale, zero_point, *quantized_range(int(bits), mode), axis=0)
    return dequantize(quantize(wide, params), params).to(weight.dtype)


_CHANGES: dict[str, Callable[[Tensor, float], Tensor]] = {
    "element": _elements,
    "filter": _filters,
    "channel": _channels,
    "bits": _rounded,
}
#: What is taken from a parameter: single weights, rows (filters), columns (channels), or precision.
GROUPS = tuple(_CHANGES)


def check_group(group: object) -> str:
    """``group`` if it is one of :data:`GROUPS`. Raises :class:`ArgumentError` (a ``ValueError``) otherwise."""
    if not isinstance(group, str) or group not in _CHANGES:
        raise ArgumentError(f"unknown group {group!r}. {did_you_mean(str(group), GROUPS)}", argument=("group",))
    return group


def check_level(level: object, group: str) -> float:
    """A sparsity in ``0 .. 1``, or a whole number of bits from 2 on. Raises :class:`ArgumentError` otherwise."""
    if isinstance(level, bool) or not isinstance(level, int | float):
        raise ArgumentError(f"a level must be a number, got {level!r}", argument=("sparsities",))
    if group == "bits":
        return float(check_bits(level, low=2, argument="bits"))
    if not 0 <= level <= 1:
        raise ArgumentError(f"a sparsity lies between 0 and 1, got {level!r}", argument=("sparsities",))
    return float(level)


def is_measurable(parameter: Tensor) -> bool:
    """Whether a parameter has filters and channels: two dimensions or more."""
    return parameter.dim() >= 2 and parameter.is_floating_point() and parameter.numel() > 0


@contextmanager
def changed(parameter: Tensor, group: str, level: float) -> Iterator[None]:
    """``parameter`` with the change, in place; its own values are back afterwards, whatever happens."""
    original = parameter.detach().clone()
    try:
        with torch.no_grad():
            parameter.copy_(_CHANGES[group](original, level))
        yield
    finally:
        with torch.no_grad():
            parameter.copy_(original)
