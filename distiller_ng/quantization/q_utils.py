"""Quantization primitives under Distiller's names and conventions (layer 2).

Distiller's scale is the reciprocal of a step and its zero point is subtracted: ``q = round(scale * x - zero_point)``,
``x ~ (q + zero_point) / scale``. (``ops/linear_quantization.py`` has the same maths with step sizes, which is what the
rest of the library and the exporters use.) Rounding is half to even; only ``inplace=True`` changes an input.

A scale may have any shape that broadcasts with the tensor, so quantization is per tensor, or per channel on any axis.
"""

from __future__ import annotations

from numbers import Number
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from distiller_ng.errors import ArgumentError
from distiller_ng.ops.linear_quantization import LinearQuantMode, check_bits, check_range, quantized_range, range_bins
from distiller_ng.ops.scale_approximation import multiplier_of, shift_of
from distiller_ng.quantization.aciq import AciqAsymmetricClipper, AciqClipper, AciqSymmetricClipper
from distiller_ng.quantization.ste import LinearQuantizeSTE
from distiller_ng.quantization.tensor_range import (
    get_tensor_avg_max_abs,
    get_tensor_avg_min_max,
    get_tensor_max_abs,
    get_tensor_mean_n_stds_max_abs,
    get_tensor_mean_n_stds_min_max,
    get_tensor_min_max,
)

__all__ = [
    "FP_BKP_PREFIX",
    "AciqAsymmetricClipper",
    "AciqClipper",
    "AciqSymmetricClipper",
    "LinearQuantMode",
    "LinearQuantizeSTE",
    "QBits",
    "approx_scale_as_mult_and_shift",
    "asymmetric_linear_quantization_params",
    "clamp",
    "get_quantized_range",
    "get_scale_approximation_mult",
    "get_scale_approximation_params",
    "get_scale_approximation_shift_bits",
    "get_tensor_avg_max_abs",
    "get_tensor_avg_min_max",
    "get_tensor_max_abs",
    "get_tensor_mean_n_stds_max_abs",
    "get_tensor_mean_n_stds_min_max",
    "get_tensor_min_max",
    "is_linear_quant_mode_asymmetric",
    "is_linear_quant_mode_symmetric",
    "linear_dequantize",
    "linear_quantize",
    "linear_quantize_clamp",
    "symmetric_linear_quantization_params",
]

FP_BKP_PREFIX = "float_"
Value: TypeAlias = float | Tensor  # scalar in, scalar out; tensor in, tensor out


class QBits(NamedTuple):
    """Bits of a module's activations, weights and bias; None leaves that tensor in floating point."""

    acts: int | None
    wts: int | None
    bias: int | None


def is_linear_quant_mode_symmetric(quant_mode: LinearQuantMode) -> bool:
    """Whether the zero point is 0 in ``quant_mode``."""
    return quant_mode in (LinearQuantMode.SYMMETRIC, LinearQuantMode.SYMMETRIC_RESTRICTED)


def is_linear_quant_mode_asymmetric(quant_mode: LinearQuantMode) -> bool:
    """The opposite of :func:`is_linear_quant_mode_symmetric`."""
    return not is_linear_quant_mode_symmetric(quant_mode)


def symmetric_linear_quantization_params(
    num_bits: int, saturation_val: Value, restrict_qrange: bool = False
) -> tuple[Any, Any]:
    """Scale and zero point (always 0) for values in ``-saturation_val .. saturation_val``.

    ``scale = n / saturation_val`` with ``n = (2**bits - 1) / 2``, or ``2**(bits - 1) - 1`` with ``restrict_qrange``
    (-127 .. 127 instead of -128 .. 127). A saturation value of 0 gives scale 1. A number gives Python floats, a tensor
    gives tensors of its shape (one element for a scalar tensor).

    Source: R. Krishnamoorthi, "Quantizing deep convolutional networks for efficient inference", section 2.2,
    https://arxiv.org/abs/1806.08342.

    >>> symmetric_linear_quantization_params(8, 4.0)
    (31.875, 0.0)

    Raises :class:`ArgumentError` for a value that is negative or not finite, and for wrong bits.
    """
    is_scalar, saturation = _prepared(saturation_val)
    check_range(saturation, saturation)
    if bool((saturation < 0).any()):
        raise ArgumentError(f"a saturation value must be 0 or more, got {saturation_val}", argument=("saturation_val",))
    mode = LinearQuantMode.SYMMETRIC_RESTRICTED if restrict_qrange else LinearQuantMode.SYMMETRIC
    scale = _reciprocal_scale(range_bins(num_bits, mode), saturation)
    return _returned(is_scalar, scale, torch.zeros_like(scale))


def asymmetric_linear_quantization_params(
    num_bits: int,
    saturation_min: Value,
    saturation_max: Value,
    integral_zero_point: bool = True,
    signed: bool = False,
) -> tuple[Any, Any]:
    """Scale and zero point for values in ``saturation_min .. saturation_max``, widened to contain 0.

    ``scale = (2**bits - 1) / (max - min)``, ``zero_point = round(scale * min)`` (not rounded without
    ``integral_zero_point``), plus ``2**(bits - 1)`` when ``signed``. A range of zero width gives scale 1. Two numbers
    give Python floats; otherwise tensors of the broadcast shape.

    >>> asymmetric_linear_quantization_params(8, -2.0, 10.0)
    (21.25, -42.0)

    Raises :class:`ArgumentError` when the minimum exceeds the maximum or a bound is not finite, and for wrong bits.
    """
    bits = check_bits(num_bits)
    scalar_min, low = _prepared(saturation_min)
    scalar_max, high = _prepared(saturation_max)
    low = low.to(high) if scalar_min else low  # dtype and device of the tensor
    high = high.to(low) if scalar_max else high
    check_range(low, high)
    low, high = low.clamp(max=0), high.clamp(min=0)
    scale = _reciprocal_scale(float(2**bits - 1), high - low)
    zero_point = scale * low
    if integral_zero_point:
        zero_point = zero_point.round()
    if signed:
        zero_point = zero_point + 2 ** (bits - 1)
    return _returned(scalar_min and scalar_max, scale, zero_point)


def linear_quantize(input: Tensor, scale: Value, zero_point: Value, inplace: bool = False) -> Tensor:
    """``round(scale * input - zero_point)``: integers in the floating point dtype of the input.

    >>> linear_quantize(torch.tensor([0.5, -1.0]), 31.875, 0)
    tensor([ 16., -32.])
    """
    if inplace:
        return input.mul_(scale).sub_(zero_point).round_()
    return torch.round(scale * input - zero_point)


def linear_quantize_clamp(
    input: Tensor, scale: Value, zero_point: Value, clamp_min: Value, clamp_max: Value, inplace: bool = False
) -> Tensor:
    """:func:`linear_quantize`, then clamped to ``clamp_min .. clamp_max``."""
    return clamp(linear_quantize(input, scale, zero_point, inplace), clamp_min, clamp_max, inplace)


def linear_dequantize(input: Tensor, scale: Value, zero_point: Value, inplace: bool = False) -> Tensor:
    """``(input + zero_point) / scale``: the values that quantized integers stand for."""
    if inplace:
        return input.add_(zero_point).div_(scale)
    return (input + zero_point) / scale


def clamp(input: Tensor, min: Value, max: Value, inplace: bool = False) -> Tensor:
    """``input`` limited to ``min .. max``; the bounds may be numbers, tensors or one of each."""
    if not isinstance(min, Tensor) and not isinstance(max, Tensor):
        return input.clamp_(min, max) if inplace else input.clamp(min, max)
    lowest, highest = (torch.as_tensor(bound, dtype=input.dtype, device=input.device) for bound in (min, max))
    return input.clamp_(lowest, highest) if inplace else input.clamp(lowest, highest)


def get_quantized_range(num_bits: int, signed: bool = True, signed_restrict_qrange: bool = False) -> tuple[int, int]:
    """Smallest and largest quantized integer; ``signed_restrict_qrange`` drops the most negative one.

    >>> get_quantized_range(4), get_quantized_range(4, True, True), get_quantized_range(4, False)
    ((-8, 7), (-7, 7), (0, 15))
    """
    if not signed:
        return quantized_range(num_bits, LinearQuantMode.ASYMMETRIC_UNSIGNED)
    mode = LinearQuantMode.SYMMETRIC_RESTRICTED if signed_restrict_qrange else LinearQuantMode.SYMMETRIC
    return quantized_range(num_bits, mode)


def get_scale_approximation_shift_bits(fp32_scale: Value, mult_bits: int, limit: bool = False) -> Any:
    """``floor(log2((2**mult_bits - 1) / scale))``, at most ``mult_bits`` with ``limit``; a number for a number.

    Raises :class:`ArgumentError` unless every scale is positive and finite.
    """
    return _like(fp32_scale, shift_of(torch.as_tensor(fp32_scale), mult_bits, limit=limit))


def get_scale_approximation_mult(fp32_scale: Value, shift_bits: Value) -> Any:
    """``floor(scale * 2**shift_bits)``: the integer multiplier, as a floating point value."""
    return _like(fp32_scale, multiplier_of(torch.as_tensor(fp32_scale), torch.as_tensor(shift_bits)))


def get_scale_approximation_params(fp32_scale: Value, mult_bits: int, limit: bool = False) -> tuple[Any, Any]:
    """Multiplier and shift of :func:`approx_scale_as_mult_and_shift`: ``(0.1, 8)`` gives ``(204.0, 11.0)``."""
    shift_bits = get_scale_approximation_shift_bits(fp32_scale, mult_bits, limit=limit)
    return get_scale_approximation_mult(fp32_scale, shift_bits), shift_bits


def approx_scale_as_mult_and_shift(fp32_scale: Value, mult_bits: int, limit: bool = False) -> Any:
    """The nearest lower scale that is an integer of ``mult_bits`` bits over a power of two.

    >>> approx_scale_as_mult_and_shift(0.1, 8)
    0.099609375

    Raises :class:`ArgumentError` unless every scale is positive and finite.
    """
    multiplier, shift_bits = get_scale_approximation_params(fp32_scale, mult_bits, limit=limit)
    return multiplier / 2**shift_bits


def _prepared(value: Value) -> tuple[bool, Tensor]:
    """Whether ``value`` is a plain number, and a floating point copy of at least one dimension."""
    is_scalar = isinstance(value, Number) or (not isinstance(value, Tensor) and getattr(value, "ndim", None) == 0)
    try:
        tensor = torch.as_tensor(value, dtype=torch.float64 if is_scalar else None).detach()
    except (TypeError, ValueError, RuntimeError):
        raise ArgumentError(f"a range is given by numbers or tensors, got {value!r}") from None
    if not tensor.is_floating_point():
        tensor = tensor.to(torch.float32)
    return is_scalar, tensor.reshape(1) if tensor.dim() == 0 else tensor


def _reciprocal_scale(bins: float, width: Tensor) -> Tensor:
    """``bins / width``, and 1 where the width is 0 or too small for that."""
    scale = bins / width
    return torch.where(torch.isfinite(scale), scale, torch.ones_like(scale))


def _returned(is_scalar: bool, scale: Tensor, zero_point: Tensor) -> tuple[Any, Any]:
    return (scale.item(), zero_point.item()) if is_scalar else (scale, zero_point)


def _like(reference: Value, result: Tensor) -> Any:
    """``result`` as a float when ``reference`` is a number, else in the reference's floating point dtype."""
    if not isinstance(reference, Tensor):
        return float(result)
    return result.to(reference.dtype if reference.is_floating_point() else torch.float32)
