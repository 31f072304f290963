"""Linear (affine) quantization with step sizes: integer ranges, scales, zero points, rounding (layer 1).

The convention is ONNX's and PyTorch's: ``q = clamp(round(x / scale) + zero_point, qmin, qmax)`` and
``x ~ (q - zero_point) * scale``; ``scale`` is the width of one step. (``quantization/q_utils.py`` keeps Distiller's
reciprocal scale.) Rounding is half to even. Nothing here changes its inputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from numbers import Integral

import torch
from torch import Tensor

from distiller_ng.errors import ArgumentError, did_you_mean

__all__ = [
    "MAX_BITS",
    "LinearQuantMode",
    "QuantizationParameters",
    "along_axis",
    "axis_min_max",
    "check_axis",
    "check_bits",
    "check_range",
    "dequantize",
    "quantize",
    "quantized_range",
    "range_bins",
    "scale_and_zero_point",
    "storage_dtype",
]

MAX_BITS = 32  # wide enough for accumulators; tensors are quantized to 16 bits at most


class LinearQuantMode(Enum):
    """Where the integers of a linear quantization lie.

    ===================== =============================== ==================
    mode                  integers, 8 bits                zero point
    ===================== =============================== ==================
    SYMMETRIC             -128 .. 127                     0
    SYMMETRIC_RESTRICTED  -127 .. 127                     0
    ASYMMETRIC_UNSIGNED   0 .. 255                        where 0.0 falls
    ASYMMETRIC_SIGNED     -128 .. 127                     where 0.0 falls
    ===================== =============================== ==================
    """

    SYMMETRIC = 1
    SYMMETRIC_RESTRICTED = 2
    ASYMMETRIC_UNSIGNED = 3
    ASYMMETRIC_SIGNED = 4

    @property
    def is_symmetric(self) -> bool:
        """Whether the zero point is 0."""
        return self in (LinearQuantMode.SYMMETRIC, LinearQuantMode.SYMMETRIC_RESTRICTED)

    @property
    def is_signed(self) -> bool:
        """Whether the integers have a sign."""
        return self is not LinearQuantMode.ASYMMETRIC_UNSIGNED

    @classmethod
    def parse(cls, value: str | LinearQuantMode, *, argument: tuple[str | int, ...] = ("mode",)) -> LinearQuantMode:
        """The mode itself or its name in any case: ``LinearQuantMode.parse("symmetric")``.

        Raises :class:`ArgumentError` for another name.
        """
        if isinstance(value, cls):
            return value
        if isinstance(value, str) and value.upper() in cls.__members__:
            return cls[value.upper()]
        hint = did_you_mean(str(value), cls.__members__)
        raise ArgumentError(f"unknown quantization mode {value!r}. {hint}", argument=argument)


@dataclass(frozen=True, slots=True)
class QuantizationParameters:
    """Everything needed to quantize a tensor: step size, zero point, integer range and the axis of the channels.

    ``scale`` and ``zero_point`` are scalars (``axis=None``) or have one value for each channel along ``axis``. The
    zero point's dtype is the integer type of the stored values (int8, uint8; int16, uint16 above 8 bits).

    >>> weight = torch.tensor([[1.0, -2.0], [4.0, 0.5]])
    >>> params = QuantizationParameters.of_tensor(weight, 8, LinearQuantMode.SYMMETRIC_RESTRICTED, axis=0)
    >>> quantize(weight, params).tolist()
    [[64, -127], [127, 16]]
    """

    scale: Tensor
    zero_point: Tensor
    qmin: int
    qmax: int
    axis: int | None = None

    @classmethod
    def of_range(
        cls, low: float | Tensor, high: float | Tensor, num_bits: int, mode: LinearQuantMode, *, axis: int | None = None
    ) -> QuantizationParameters:
        """Parameters for values in ``low .. high`` (tensors ``[C]`` with ``axis``).

        Raises :class:`ArgumentError` when ``low > high`` or a bound is not finite, and for wrong bits.
        """
        lowest, highest = check_range(low, high)
        scale, zero_point = scale_and_zero_point(lowest, highest, num_bits, mode)
        qmin, qmax = quantized_range(num_bits, mode)
        return cls(scale, zero_point.to(storage_dtype(num_bits, mode)), qmin, qmax, axis)

    @classmethod
    def of_tensor(
        cls, values: Tensor, num_bits: int, mode: LinearQuantMode, *, axis: int | None = None
    ) -> QuantizationParameters:
        """Parameters for the whole range of ``values``: of the tensor, or of each slice along ``axis``."""
        axis = check_axis(axis, values.dim())
        low, high = axis_min_max(values, axis)
        return cls.of_range(low, high, num_bits, mode, axis=axis)


def check_bits(num_bits: object, *, low: int = 1, high: int = MAX_BITS, argument: str = "num_bits") -> int:
    """``num_bits`` as an int in ``low .. high``; raises :class:`ArgumentError` otherwise."""
    if isinstance(num_bits, bool) or not isinstance(num_bits, Integral) or not low <= int(num_bits) <= high:
        message = f"{argument} must be a whole number of bits from {low} to {high}, got {num_bits!r}"
        raise ArgumentError(message, argument=(argument,))
    return int(num_bits)


def check_axis(axis: int | None, dims: int) -> int | None:
    """``axis`` counted from the front; raises :class:`ArgumentError` when a tensor of ``dims`` has no such axis."""
    if axis is None:
        return None
    if not -dims <= axis < dims:
        raise ArgumentError(f"axis {axis} does not exist in a tensor of {dims} dimensions", argument=("axis",))
    return axis % dims


def check_range(low: float | Tensor, high: float | Tensor) -> tuple[Tensor, Tensor]:
    """Both bounds as floating point tensors on one device, detached.

    Raises :class:`ArgumentError` when a bound is NaN or infinite, or when ``low > high`` anywhere.
    """
    lowest, highest = _as_float(low), _as_float(high)
    if lowest.device != highest.device:
        if isinstance(low, Tensor) and low.dim():
            highest = highest.to(lowest.device)
        else:
            lowest = lowest.to(highest.device)
    if not bool(torch.isfinite(lowest).all() & torch.isfinite(highest).all()):
        raise ArgumentError(
            "a range to quantize must be finite, but it has NaN or infinity: look for NaN in the weights or in the "
            f"activations seen in calibration (low {_shown(lowest)}, high {_shown(highest)})"
        )
    if bool((lowest > highest).any()):
        raise ArgumentError(
            f"the lower end of a range must not exceed the upper end: got {_shown(lowest)} .. {_shown(highest)}"
        )
    return lowest, highest


def quantized_range(num_bits: int, mode: LinearQuantMode) -> tuple[int, int]:
    """Smallest and largest integer: ``quantized_range(4, LinearQuantMode.SYMMETRIC)`` -> ``(-8, 7)``."""
    bits = check_bits(num_bits)
    if not mode.is_signed:
        return 0, 2**bits - 1
    highest = 2 ** (bits - 1) - 1
    return (-highest if mode is LinearQuantMode.SYMMETRIC_RESTRICTED else -highest - 1), highest


def range_bins(num_bits: int, mode: LinearQuantMode) -> float:
    """Steps that cover the range: from ``low`` to ``high``, or from 0 to the saturation value when symmetric.

    8 bits: 255 asymmetric, 127.5 symmetric, 127 restricted. Raises :class:`ArgumentError` for one bit restricted,
    which could represent nothing but 0.
    """
    bits = check_bits(num_bits)
    if not mode.is_symmetric:
        return float(2**bits - 1)
    if mode is LinearQuantMode.SYMMETRIC:
        return float(2**bits - 1) / 2
    if bits == 1:
        raise ArgumentError(
            "1 bit leaves only the value 0 in a restricted symmetric range: use 2 bits or more, or a binary method",
            argument=("num_bits",),
        )
    return float(2 ** (bits - 1) - 1)


def storage_dtype(num_bits: int, mode: LinearQuantMode) -> torch.dtype:
    """Integer type that holds the values: int8 or uint8 up to 8 bits, then int16 or uint16, then int32 or int64."""
    bits = check_bits(num_bits)
    if bits <= 8:
        return torch.int8 if mode.is_signed else torch.uint8
    if bits <= 16:
        return torch.int16 if mode.is_signed else torch.uint16
    return torch.int32 if mode.is_signed else torch.int64


def scale_and_zero_point(low: Tensor, high: Tensor, num_bits: int, mode: LinearQuantMode) -> tuple[Tensor, Tensor]:
    """Step size and integral zero point (int32) for the range ``low .. high``, elementwise and without branches.

    The range is widened to contain 0, so that zeros (padding, pruned weights) stay exact; symmetric modes use
    ``max(|low|, |high|)``. A range of zero width gives scale 1. No checks on the values, so it may be compiled and
    called in every training step (:func:`check_range` checks).

    >>> scale_and_zero_point(torch.tensor(-2.0), torch.tensor(10.0), 8, LinearQuantMode.ASYMMETRIC_UNSIGNED)
    (tensor(0.0471), tensor(42, dtype=torch.int32))
    """
    bins = range_bins(num_bits, mode)
    if mode.is_symmetric:
        scale = _step(torch.maximum(low.abs(), high.abs()), bins)
        return scale, torch.zeros_like(scale, dtype=torch.int32)
    lowest, highest = low.clamp(max=0), high.clamp(min=0)
    width = highest - lowest
    scale = _step(width, bins)
    # bins / width instead of 1 / scale: ties then fall as they do in Distiller's formula.
    from_low = torch.where(scale == 1, lowest, lowest * (bins / width))
    qmin, qmax = quantized_range(num_bits, mode)
    # By way of int64: float32 cannot hold the ends of more than 24 bits.
    zero_point = (qmin - torch.round(from_low)).to(torch.int64).clamp(qmin, qmax)
    return scale, zero_point.to(torch.int32 if qmax < 2**31 else torch.int64)


def along_axis(values: Tensor, dims: int, axis: int | None) -> Tensor:
    """``values`` of shape ``[C]`` viewed to broadcast along ``axis`` of a tensor with ``dims`` dimensions.

    >>> along_axis(torch.ones(3), 4, 1).shape
    torch.Size([1, 3, 1, 1])
    """
    if axis is None or values.dim() != 1:
        return values
    shape = [1] * dims
    shape[axis] = -1
    return values.reshape(shape)


def axis_min_max(values: Tensor, axis: int | None = None) -> tuple[Tensor, Tensor]:
    """Smallest and largest value of the tensor, or of every slice along ``axis``: ``[C]``. No autograd history.

    Raises :class:`ArgumentError` for an empty tensor.
    """
    data = values.detach()
    if data.numel() == 0:
        raise ArgumentError(f"an empty tensor (shape {tuple(data.shape)}) has no range to quantize")
    if axis is None:
        low, high = torch.aminmax(data)
        return low, high
    axis = check_axis(axis, data.dim())
    others = [dim for dim in range(data.dim()) if dim != axis]
    return (data.amin(dim=others), data.amax(dim=others)) if others else (data.clone(), data.clone())


def quantize(values: Tensor, params: QuantizationParameters) -> Tensor:
    """The integers of ``values``, in the dtype of the zero point."""
    scale = along_axis(params.scale, values.dim(), params.axis)
    zero_point = along_axis(params.zero_point.to(scale.dtype), values.dim(), params.axis)
    steps = torch.round(values.to(scale.dtype) / scale) + zero_point
    return steps.clamp(params.qmin, params.qmax).to(params.zero_point.dtype)


def dequantize(integers: Tensor, params: QuantizationParameters) -> Tensor:
    """The values that ``integers`` stand for, in the dtype of the scale."""
    scale = along_axis(params.scale, integers.dim(), params.axis)
    zero_point = along_axis(params.zero_point.to(scale.dtype), integers.dim(), params.axis)
    return (integers.to(scale.dtype) - zero_point) * scale


def _step(width: Tensor, bins: float) -> Tensor:
    """``width / bins``; 1 where the width is so small that the reciprocal would not be finite."""
    step = width / bins
    if bins % 1:
        # Full symmetric range: -width is 127.5 steps from 0 and becomes -128, but a step rounded up would make it -127.
        step = torch.where(width / step < bins, torch.nextafter(step, torch.zeros_like(step)), step)
    return torch.where(step > torch.finfo(step.dtype).tiny, step, torch.ones_like(step))


def _as_float(value: float | Tensor) -> Tensor:
    """A detached tensor in at least float32: 8 bits of mantissa cannot hold a step size."""
    tensor = torch.as_tensor(value).detach()
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


def _shown(values: Tensor) -> str:
    """A few values for a message."""
    flat = values.detach().flatten()
    text = ", ".join(f"{value:g}" for value in flat[:4].tolist())
    return text + (", ..." if flat.numel() > 4 else "")
