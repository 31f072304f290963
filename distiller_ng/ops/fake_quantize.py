"""Quantize and dequantize in one operator that stays whole in exported graphs (layer 1).

``torch.ops.distiller_ng.fake_quantize`` is a custom operator: ``torch.export`` and ``torch.compile`` keep it as one
node, which exporters turn into ONNX's QuantizeLinear and DequantizeLinear. It computes what they compute, in float32:
``y = (clamp(round(x / scale) + zero_point, qmin, qmax) - zero_point) * scale``, halves rounded to even.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from distiller_ng.errors import ArgumentError
from distiller_ng.ops.linear_quantization import QuantizationParameters, along_axis, check_axis

__all__ = ["fake_quantize", "fake_quantize_with"]

_SCHEMA = "(Tensor x, Tensor scale, Tensor zero_point, int? axis, int qmin, int qmax) -> Tensor"


def fake_quantize(
    x: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None = None, *, qmin: int, qmax: int
) -> Tensor:
    """``x`` rounded to the grid of ``scale`` and ``zero_point``, in its own dtype and memory layout.

    ``scale`` (the step, float32) and ``zero_point`` (an integer tensor; its dtype is the type of the quantized values)
    hold one value, or one for each channel along ``axis``. Backward is a straight-through estimator: the gradient
    passes where ``x`` is within the range, half a step beyond its last levels included, and is 0 elsewhere. Scale and
    zero point get none.

    >>> grid = torch.tensor(0.5), torch.tensor(0, dtype=torch.int8)
    >>> fake_quantize(torch.tensor([0.3, -7.0, 99.0]), *grid, qmin=-8, qmax=7)
    tensor([ 0.5000, -4.0000,  3.5000])

    Raises :class:`ArgumentError` for a zero point that is not integral, a range its dtype cannot hold, and shapes that
    do not fit.
    """
    axis = check_axis(axis, x.dim())
    _check(x, scale, zero_point, axis, qmin, qmax)
    result: Tensor = _fake_quantize(x, scale, zero_point, axis, qmin, qmax)
    return result


def fake_quantize_with(x: Tensor, params: QuantizationParameters) -> Tensor:
    """:func:`fake_quantize` with everything from ``params``."""
    return fake_quantize(x, params.scale, params.zero_point, params.axis, qmin=params.qmin, qmax=params.qmax)


@torch.library.custom_op("distiller_ng::fake_quantize", mutates_args=(), schema=_SCHEMA)
def _fake_quantize(x: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None, qmin: int, qmax: int) -> Tensor:
    wide = _computing_dtype(x)
    step, zero = _grid(x, scale, zero_point, axis, wide)
    # Written into memory laid out like x: the fake kernel below promises that layout to the compiler.
    out = torch.empty_like(x, dtype=wide)
    torch.div(x, step, out=out)
    if axis is None and zero_point.device.type == "cpu":  # one pass less; on a GPU it would wait for the value
        offset = int(zero_point)
        out.round_().clamp_(qmin - offset, qmax - offset).mul_(step)
    else:
        out.round_().add_(zero).clamp_(qmin, qmax).sub_(zero).mul_(step)
    return out if wide == x.dtype else out.to(x.dtype)


@_fake_quantize.register_fake
def _(x: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None, qmin: int, qmax: int) -> Tensor:
    return torch.empty_like(x)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, scale, zero_point, axis, qmin, qmax = inputs
    ctx.save_for_backward(x, scale, zero_point)
    ctx.axis, ctx.qmin, ctx.qmax = axis, qmin, qmax


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, scale, zero_point = ctx.saved_tensors
    step, zero = _grid(x, scale, zero_point, ctx.axis, _computing_dtype(x))
    place = x / step + zero
    # A little more than half a step: the ends of the range that scale and zero point were made from land exactly there
    # and must not lose their gradient to float32 rounding.
    margin = 0.5 + 2e-7 * (ctx.qmax - ctx.qmin)
    inside = (place >= ctx.qmin - margin) & (place <= ctx.qmax + margin)
    return grad * inside, None, None, None, None, None


_fake_quantize.register_autograd(_backward, setup_context=_setup_context)


def _computing_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _grid(x: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Scale and zero point, broadcast along the axis."""
    step, zero = (along_axis(tensor.to(dtype), x.dim(), axis) for tensor in (scale, zero_point))
    return (step, zero) if axis is not None else (step.reshape(()), zero.reshape(()))


def _check(x: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None, qmin: int, qmax: int) -> None:
    if not x.is_floating_point():
        raise ArgumentError(f"only floating point tensors can be quantized, got {x.dtype}", argument=("x",))
    if zero_point.dtype.is_floating_point or zero_point.dtype in (torch.bool, torch.complex64, torch.complex128):
        message = (
            f"the zero point's dtype is that of the quantized values, such as int8 or uint8; got {zero_point.dtype}"
        )
        raise ArgumentError(message, argument=("zero_point",))
    limits = torch.iinfo(zero_point.dtype)
    if not limits.min <= qmin < qmax <= limits.max:
        message = f"a range {qmin} .. {qmax} does not fit {zero_point.dtype} ({limits.min} .. {limits.max})"
        raise ArgumentError(message, argument=("qmin",))
    wanted = 1 if axis is None else x.shape[axis]
    for name, tensor in (("scale", scale), ("zero_point", zero_point)):
        if tensor.numel() != wanted or tensor.dim() > 1:
            where = "one value without an axis" if axis is None else f"{wanted} values along axis {axis}"
            raise ArgumentError(f"{name} must have {where}, got shape {tuple(tensor.shape)}", argument=(name,))
