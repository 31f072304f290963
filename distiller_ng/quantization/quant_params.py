"""Scale and zero point of a tensor or of calibration statistics, with clipping, in Distiller's convention (layer 2)."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any, TypeAlias

from torch import Tensor

from distiller_ng.errors import ArgumentError, CalibrationError
from distiller_ng.ops.clipping import Clipping, clipping_named
from distiller_ng.ops.linear_quantization import LinearQuantMode, along_axis, check_axis
from distiller_ng.quantization.q_utils import (
    approx_scale_as_mult_and_shift,
    asymmetric_linear_quantization_params,
    symmetric_linear_quantization_params,
)

__all__ = ["ClipMode", "clipping_of", "get_quant_params_from_stats_dict", "get_quant_params_from_tensor"]


class ClipMode(Enum):
    """Distiller's names of clippings. Every name in the registry ``CLIPPINGS`` may be given as text instead."""

    NONE = 0
    AVG = 1
    N_STD = 2
    GAUSS = 3
    LAPLACE = 4
    MSE = 5
    KL = 6


Clip: TypeAlias = ClipMode | str | Clipping


def clipping_of(clip: Clip, num_stds: float | None = None, half_range: bool = False) -> Clipping:
    """The clipping that ``clip`` means; ``num_stds`` belongs to ``N_STD``, ``half_range`` to ``GAUSS`` and ``LAPLACE``.

    Raises :class:`ArgumentError` for an unknown name and for ``N_STD`` without ``num_stds``; warns where ``half_range``
    has no effect.
    """
    if isinstance(clip, Clipping):
        return clip
    return clipping_named(clip.name if isinstance(clip, ClipMode) else clip, n_stds=num_stds, half_range=half_range)


def get_quant_params_from_tensor(
    tensor: Tensor,
    num_bits: int,
    mode: LinearQuantMode | str,
    clip: Clip = ClipMode.NONE,
    per_channel: bool = False,
    num_stds: float | None = None,
    half_range: bool = False,
    scale_approx_mult_bits: int | None = None,
    *,
    channel_dim: int = 0,
) -> tuple[Tensor, Tensor]:
    """Scale and zero point for ``q = round(scale * x - zero_point)`` over the range of ``tensor``.

    Both have shape ``[1]``, or with ``per_channel`` ``[1, ..., C, ..., 1]`` to broadcast along ``channel_dim``.
    ``scale_approx_mult_bits`` replaces the scale by an integer of that many bits over a power of two.

    For ``[[-2, 10], [0, 1]]``, 8 bits, ``ASYMMETRIC_UNSIGNED``: ``21.25`` and ``-42``; per channel ``[[21.25], [255]]``
    and ``[[-42], [0]]``.

    Raises :class:`ArgumentError` for an empty tensor, NaN, ``per_channel`` with fewer than two dimensions or with a
    clipping that has none (``AVG``), and as :func:`clipping_of`.
    """
    wanted = LinearQuantMode.parse(mode)
    clipping = clipping_of(clip, num_stds, half_range)
    axis = None
    if per_channel:
        if tensor.dim() < 2:
            message = f"per channel quantization needs a weight of 2 dimensions or more, got {tuple(tensor.shape)}"
            raise ArgumentError(message, argument=("per_channel",))
        axis = check_axis(channel_dim, tensor.dim())
    low, high = clipping.of_tensor(tensor, num_bits, wanted, axis=axis)
    scale, zero_point = _params(low, high, num_bits, wanted, scale_approx_mult_bits)
    return along_axis(scale, tensor.dim(), axis), along_axis(zero_point, tensor.dim(), axis)


def get_quant_params_from_stats_dict(
    stats: Mapping[str, Any],
    num_bits: int,
    mode: LinearQuantMode | str,
    clip: Clip = ClipMode.NONE,
    num_stds: float | None = None,
    half_range: bool = False,
    scale_approx_mult_bits: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Scale and zero point, both ``[1]``, from the statistics of one tensor (``min``, ``max``, ``avg_min``, ...).

    ``{"min": -2, "max": 10, "avg_min": -1, "avg_max": 4}`` with 8 bits, ``SYMMETRIC`` and ``AVG`` gives 31.875 and 0.

    Raises :class:`CalibrationError` for a missing statistic or one that is not finite, and as :func:`clipping_of`.
    """
    wanted = LinearQuantMode.parse(mode)
    low, high = clipping_of(clip, num_stds, half_range).of_stats(stats, num_bits, wanted)
    if not bool(low.isfinite() & high.isfinite()):
        raise CalibrationError(
            f"calibration statistics give the range {float(low):g} .. {float(high):g}: the model computed NaN or "
            "infinity during calibration. Check its inputs and weights, then collect the statistics again"
        )
    if bool(low > high):
        raise CalibrationError(
            f"calibration statistics have a minimum above the maximum: {float(low):g}, {float(high):g}"
        )
    return _params(low, high, num_bits, wanted, scale_approx_mult_bits)


def _params(
    low: Tensor, high: Tensor, num_bits: int, mode: LinearQuantMode, mult_bits: int | None
) -> tuple[Tensor, Tensor]:
    if mode.is_symmetric:
        restricted = mode is LinearQuantMode.SYMMETRIC_RESTRICTED
        scale, zero_point = symmetric_linear_quantization_params(num_bits, high, restricted)
    else:
        scale, zero_point = asymmetric_linear_quantization_params(num_bits, low, high, signed=mode.is_signed)
    if mult_bits is not None:
        scale = approx_scale_as_mult_and_shift(scale, mult_bits)
    return scale, zero_point
