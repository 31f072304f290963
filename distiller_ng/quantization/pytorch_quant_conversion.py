"""Distiller's quantization parameters and tensors in PyTorch's terms (layer 2).

PyTorch's scale is the reciprocal of Distiller's and its zero point the negative; its 8-bit types may also have the
other sign than the mode, which moves integers and zero point by ``2**(bits - 1)``.
"""

from __future__ import annotations

from numbers import Real

import torch
from torch import Tensor

from distiller_ng.errors import ArgumentError
from distiller_ng.ops.linear_quantization import LinearQuantMode, check_axis, check_bits

__all__ = ["distiller_qparams_to_pytorch", "distiller_quantized_tensor_to_pytorch", "need_reduce_range"]

_INTEGERS = {torch.qint8: torch.int8, torch.quint8: torch.uint8}


def need_reduce_range(distiller_quant_mode: LinearQuantMode, torch_dtype: torch.dtype) -> bool:
    """Whether the x86 (fbgemm) kernels need 7 bits for this combination: all but symmetric values in quint8.

    They add pairs of products in 16 bits, which 8-bit unsigned times signed values can overflow.
    """
    mode = LinearQuantMode.parse(distiller_quant_mode)
    backend = torch.backends.quantized.engine in ("fbgemm", "x86")
    return backend and not (mode.is_symmetric and torch_dtype == torch.quint8)


def distiller_qparams_to_pytorch(
    scale: float | Tensor,
    zp: float | Tensor,
    num_bits: int,
    distiller_mode: LinearQuantMode,
    dest_dtype: torch.dtype,
    reduce_range: bool = False,
) -> tuple[Tensor, Tensor]:
    """Scale (float32) and zero point (int64) for ``torch.quantize_per_tensor`` and ``_per_channel``, on the CPU.

    One value becomes a scalar, ``[C, 1, ...]`` becomes ``[C]``. ``dest_dtype`` is ``torch.qint8`` or ``torch.quint8``.
    ``reduce_range`` gives the parameters of 7 bits (see :func:`need_reduce_range`); it has no effect for symmetric
    values in quint8.

    ``scale=21.25, zp=-42`` (8 bits, asymmetric unsigned, the range -2 .. 10) becomes ``(0.0471, 42)`` in quint8 and
    ``(0.0471, -86)`` in qint8.

    Raises :class:`ArgumentError` for another dtype, bits that do not fit, ``reduce_range`` with other than 8 bits, and
    a scale that is not positive.
    """
    mode = _checked(num_bits, distiller_mode, dest_dtype)
    bits = num_bits
    exact_scale, exact_zero = (_on_cpu(value) for value in (scale, zp))
    if not bool((torch.isfinite(exact_scale) & (exact_scale > 0)).all()):
        raise ArgumentError("a scale must be positive and finite", argument=("scale",))
    if reduce_range and not (mode.is_symmetric and dest_dtype == torch.quint8):
        if bits != 8:
            message = f"reduce_range makes 8 bits 7, it does not apply to {bits} bits"
            raise ArgumentError(message, argument=("reduce_range",))
        exact_scale, exact_zero = _seven_bits(exact_scale, exact_zero, mode)
        bits = 7
    return (1.0 / exact_scale).float(), _zero_point(exact_zero, bits, mode, dest_dtype)


def distiller_quantized_tensor_to_pytorch(
    tensor: Tensor,
    scale: float | Tensor,
    zp: float | Tensor,
    num_bits: int,
    distiller_mode: LinearQuantMode,
    dest_dtype: torch.dtype,
    per_channel: bool = False,
    channel_dim: int = 0,
) -> Tensor:
    """A tensor of Distiller's integers as one of PyTorch's quantized tensors, with the same dequantized values.

    ``tensor`` holds integers in floating point, as ``linear_quantize_clamp`` makes them. With ``per_channel`` scale and
    zero point have one value for each slice along ``channel_dim``.

    The integers ``[0, 255]`` with ``scale=21.25, zp=-42`` in quint8 dequantize to ``[-1.976, 10.024]``.

    Raises :class:`ArgumentError` for values that are no integers or do not fit ``dest_dtype``, and as
    :func:`distiller_qparams_to_pytorch` does.
    """
    mode = _checked(num_bits, distiller_mode, dest_dtype)
    torch_scale, torch_zero = distiller_qparams_to_pytorch(scale, zp, num_bits, mode, dest_dtype)
    values = tensor.detach().cpu().double()
    if not bool((values == values.round()).all()):
        raise ArgumentError("the tensor has values that are no integers, so it is not quantized", argument=("tensor",))
    axis = check_axis(channel_dim, values.dim()) if per_channel else None
    count = 1 if axis is None else values.shape[axis]
    if torch_scale.numel() != count or torch_zero.numel() != count:
        message = f"scale and zero point must have {count} value(s), got {torch_scale.numel()} and {torch_zero.numel()}"
        raise ArgumentError(message, argument=("scale",))
    integers = values + _sign_shift(num_bits, mode, dest_dtype)
    limits = torch.iinfo(_INTEGERS[dest_dtype])
    if values.numel() and not bool((integers >= limits.min).all() & (integers <= limits.max).all()):
        raise ArgumentError(f"the tensor's integers do not fit {dest_dtype}: are bits and mode right?")
    stored = integers.to(_INTEGERS[dest_dtype])
    quantized: Tensor
    if axis is not None:
        per_slice = torch_scale.reshape(-1).double(), torch_zero.reshape(-1)
        quantized = torch._make_per_channel_quantized_tensor(stored, *per_slice, axis)
    else:
        quantized = torch._make_per_tensor_quantized_tensor(stored, float(torch_scale), int(torch_zero))
    return quantized


def _checked(num_bits: int, distiller_mode: LinearQuantMode, dest_dtype: torch.dtype) -> LinearQuantMode:
    check_bits(num_bits, high=8)
    if dest_dtype not in _INTEGERS:
        message = f"dest_dtype must be torch.qint8 or torch.quint8, got {dest_dtype}"
        raise ArgumentError(message, argument=("dest_dtype",))
    return LinearQuantMode.parse(distiller_mode, argument=("distiller_mode",))


def _on_cpu(value: float | Tensor) -> Tensor:
    """In float64, without dimensions of one."""
    if not isinstance(value, Real | Tensor):
        raise ArgumentError(f"scale and zero point are numbers or tensors, got {value!r}")
    return torch.as_tensor(value).detach().cpu().double().squeeze()


def _seven_bits(scale: Tensor, zp: Tensor, mode: LinearQuantMode) -> tuple[Tensor, Tensor]:
    """The same range in 127 steps (63 each side when symmetric) instead of 255 (127)."""
    if mode.is_symmetric:
        return scale * (63.0 / 127.0), zp
    ratio = 127.0 / 255.0
    offset = 128 if mode is LinearQuantMode.ASYMMETRIC_SIGNED else 0
    return scale * ratio, torch.round((zp - offset) * ratio + offset / 2)


def _zero_point(zp: Tensor, bits: int, mode: LinearQuantMode, dest_dtype: torch.dtype) -> Tensor:
    """Distiller's is subtracted when quantizing, PyTorch's added; then the shift of the sign."""
    return (_sign_shift(bits, mode, dest_dtype) - zp.round()).long()


def _sign_shift(bits: int, mode: LinearQuantMode, dest_dtype: torch.dtype) -> int:
    """What to add to integers of the mode's sign to get integers of the dtype's sign."""
    return int(2 ** (bits - 1)) * (int(mode.is_signed) - int(dest_dtype == torch.qint8))
