"""Functions that quantize a weight or bias in every forward pass of training (layer 2).

Each returns a new tensor of the same shape and dtype with autograd history to the parameter; the parameter itself stays
as it is. ``param_meta`` is the number of bits, or anything with ``num_bits`` (what a quantizer passes to its
``param_quantization_fn``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from distiller_ng.errors import ArgumentError
from distiller_ng.ops.fake_quantize import fake_quantize_with
from distiller_ng.ops.linear_quantization import (
    LinearQuantMode,
    QuantizationParameters,
    axis_min_max,
    check_axis,
    check_bits,
    quantized_range,
    scale_and_zero_point,
    storage_dtype,
)
from distiller_ng.quantization.learned_step import lsq_initial_step, lsq_quantize
from distiller_ng.quantization.ste import mean_sign_ste, round_ste, sign_ste

__all__ = [
    "dorefa_quantize_param",
    "dorefa_weight_parameters",
    "linear_quantize_param",
    "linear_weight_parameters",
    "lsq_initial_step",
    "lsq_quantize_param",
    "uniform_grid",
    "wrpn_quantize_param",
    "wrpn_weight_parameters",
    "xnor_initial_scale",
    "xnor_quantize_param",
    "xnor_weight_parameters",
]


def dorefa_quantize_param(param_fp: Tensor, param_meta: Any) -> Tensor:
    """DoReFa weights: ``2 * round_b(tanh(w) / (2 * max|tanh(w)|) + 1/2) - 1``; one bit: ``sign(w) * mean|w|``.

    ``round_b`` rounds to multiples of ``1 / (2**b - 1)``; there is no level 0. Straight-through for the rounding and,
    with one bit, for everything. Zero counts as positive.

    Source: S. Zhou et al., "DoReFa-Net", https://arxiv.org/abs/1606.06160, sections 2.3 and 2.4. For
    ``w = [-1, 0.2, 1]`` and 2 bits: ``[-1, 0.333, 1]``; 1 bit: ``[-0.733, 0.733, 0.733]``.
    """
    bits = _bits(param_meta)
    if bits == 1:
        return mean_sign_ste(param_fp)
    squashed = torch.tanh(param_fp)
    # All-zero weights (a layer pruned away) have no largest one to divide by.
    largest = squashed.abs().max().clamp(min=torch.finfo(squashed.dtype).tiny)
    levels = 2**bits - 1
    rounded: Tensor = round_ste((squashed / (2 * largest) + 0.5) * levels) / levels
    return 2 * rounded - 1


def dorefa_weight_parameters(param_fp: Tensor, param_meta: Any) -> QuantizationParameters:
    """The symmetric grid that :func:`dorefa_quantize_param` lands on exactly, for exporters.

    The levels ``(2 * k - n) / n`` with ``n = 2**b - 1`` are odd multiples of ``1 / n``: integers ``-n .. n``, which
    need one bit more than DoReFa spends (int8 holds up to 7 bits; 8 bits are stored in int16). One bit: ``-1, 1`` times
    the mean magnitude. For 2 bits the integers are -3, -1, 1 and 3, the scale is 1/3.
    """
    bits = _bits(param_meta)
    levels = 2**bits - 1
    step = param_fp.detach().abs().mean() if bits == 1 else torch.ones((), device=param_fp.device) / levels
    dtype = storage_dtype(bits + 1, LinearQuantMode.SYMMETRIC)
    return QuantizationParameters(step.float(), torch.zeros_like(step, dtype=dtype), -levels, levels)


def wrpn_quantize_param(param_fp: Tensor, param_meta: Any) -> Tensor:
    """WRPN weights: clipped to ``-1 .. 1``, then symmetric linear quantization of that range.

    The gradient passes where ``|w| <= 1``. Source: A. Mishra et al., "WRPN: Wide Reduced-Precision Networks",
    https://arxiv.org/abs/1709.01134. For 3 bits (steps of ``1 / 3.5``) ``[-0.4, 0.2, 2]`` becomes
    ``[-0.286, 0.286, 0.857]``.

    Raises :class:`ArgumentError` for one bit, which leaves only 0.
    """
    return fake_quantize_with(param_fp.clamp(-1, 1), wrpn_weight_parameters(param_fp, param_meta))


def wrpn_weight_parameters(param_fp: Tensor, param_meta: Any) -> QuantizationParameters:
    """The grid of :func:`wrpn_quantize_param`, the same for all weights of so many bits."""
    bits = _bits(param_meta)
    if bits == 1:
        raise ArgumentError("WRPN needs 2 bits or more for weights: use DoReFa for one bit", argument=("bits_weights",))
    bound = torch.ones((), device=param_fp.device)
    return _grid(-bound, bound, bits, LinearQuantMode.SYMMETRIC, None)


def linear_quantize_param(
    param_fp: Tensor, param_meta: Any, mode: LinearQuantMode, *, axis: int | None = None
) -> Tensor:
    """Linear quantization over the range the parameter has now, per tensor or per channel along ``axis``.

    The gradient passes everywhere. Source: B. Jacob et al., https://arxiv.org/abs/1712.05877. For ``[-1, 0.3, 0.99]``
    and 2 bits, symmetric (steps of ``2/3``): ``[-1.333, 0, 0.667]``.
    """
    return fake_quantize_with(param_fp, linear_weight_parameters(param_fp, param_meta, mode, axis=axis))


def linear_weight_parameters(
    param_fp: Tensor, param_meta: Any, mode: LinearQuantMode, *, axis: int | None = None
) -> QuantizationParameters:
    """The grid of :func:`linear_quantize_param`: scale (the step), zero point and integer range.

    Raises :class:`ArgumentError` for one bit in a symmetric mode, which leaves only 0.
    """
    bits = _bits(param_meta)
    if bits == 1 and mode.is_symmetric:
        message = f"1 bit in mode {mode.name} leaves only the value 0: use 2 bits or more, DoReFa or XNOR-Net++"
        raise ArgumentError(message, argument=("bits_weights",))
    low, high = axis_min_max(param_fp, axis)
    wide = torch.float64 if param_fp.dtype == torch.float64 else torch.float32
    return _grid(low.to(wide), high.to(wide), bits, mode, check_axis(axis, param_fp.dim()))


def lsq_quantize_param(
    param_fp: Tensor, param_meta: Any, step: Tensor, *, axis: int | None = None, training: bool = True
) -> Tensor:
    """LSQ weights: signed, with a learned ``step`` (``[1]``, or ``[C]`` along ``axis``); starts at
    :func:`lsq_initial_step`.

    Source: S. K. Esser et al., "Learned Step Size Quantization", https://arxiv.org/abs/1902.08153. Pass
    ``training=False`` in evaluation, where one operator does it all. For ``[0.3, 9]``, a step of 0.25 and 3 bits:
    ``[0.25, 0.75]``.
    """
    return lsq_quantize(param_fp, step, _bits(param_meta), axis=axis, training=training)


def xnor_quantize_param(param_fp: Tensor, param_meta: Any = 1) -> Tensor:
    """XNOR-Net++ weights: ``sign(w)``, 0 counting as positive; the gradient passes where ``|w| <= 1``.

    The scale is learned on the layer's output (``XnorScale``). Source: A. Bulat, G. Tzimiropoulos, "XNOR-Net++",
    https://arxiv.org/abs/1909.13863. ``[-0.2, 0, 3]`` becomes ``[-1, 1, 1]``.

    Raises :class:`ArgumentError` for more than one bit.
    """
    if _bits(param_meta) != 1:
        message = f"XNOR-Net++ weights have 1 bit, got {_bits(param_meta)}: use LSQ or DoReFa for more"
        raise ArgumentError(message, argument=("bits_weights",))
    return sign_ste(param_fp, 1.0)


def xnor_weight_parameters(param_fp: Tensor) -> QuantizationParameters:
    """The grid of :func:`xnor_quantize_param`: the integers are the signs, the scale is 1."""
    one = torch.ones((), device=param_fp.device)
    return QuantizationParameters(one, torch.zeros_like(one, dtype=torch.int8), -1, 1)


def xnor_initial_scale(weight: Tensor, *, axis: int = 0) -> Tensor:
    """The mean magnitude of each filter, ``[C_o]``: XNOR-Net's scale, where XNOR-Net++ starts to learn."""
    return weight.detach().movedim(axis, 0).flatten(1).abs().mean(dim=1)


def uniform_grid(function: Any) -> Callable[[Tensor, Any], QuantizationParameters] | None:
    """What gives the grid a ``param_quantization_fn`` lands on, from parameter and bits; None where there is none.

    A function of one's own says so with an attribute ``grid``: ``function.grid(parameter, param_meta)``.
    """
    known = {id(made): grid for made, grid in _GRIDS}
    found: Callable[[Tensor, Any], QuantizationParameters] | None = getattr(function, "grid", known.get(id(function)))
    return found


_GRIDS: tuple[tuple[Any, Callable[[Tensor, Any], QuantizationParameters]], ...] = (
    (dorefa_quantize_param, dorefa_weight_parameters),
    (wrpn_quantize_param, wrpn_weight_parameters),
    (xnor_quantize_param, lambda parameter, meta: xnor_weight_parameters(parameter)),
)


def _grid(low: Tensor, high: Tensor, bits: int, mode: LinearQuantMode, axis: int | None) -> QuantizationParameters:
    scale, zero_point = scale_and_zero_point(low, high, bits, mode)
    return QuantizationParameters(scale, zero_point.to(storage_dtype(bits, mode)), *quantized_range(bits, mode), axis)


def _bits(param_meta: Any) -> int:
    return check_bits(getattr(param_meta, "num_bits", param_meta))
