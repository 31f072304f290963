"""Joining, adding and multiplying quantized tensors, for post-training quantization (layer 2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from distiller_ng.quantization.ptq_settings import TensorQuantMetadata
from distiller_ng.quantization.q_utils import linear_quantize_clamp
from distiller_ng.quantization.range_linear_wrappers import RangeLinearQuantWrapper

__all__ = [
    "RangeLinearQuantConcatWrapper",
    "RangeLinearQuantEltwiseAddWrapper",
    "RangeLinearQuantEltwiseMultWrapper",
    "RangeLinearQuantMatmulWrapper",
]


_ACCUMULATOR_BITS = 32


class _Combining(RangeLinearQuantWrapper):
    """Wrappers of operations on several tensors; they need statistics of the output.

    Arguments: ``wrapped_module, num_bits_acts, mode, clip_acts, activation_stats, clip_n_stds, clip_half_range,
    scale_approx_mult_bits, input_overrides, inputs_quant_auto_fallback``, in Distiller's order.
    """

    needs_stats: ClassVar[bool] = True

    def __init__(self, wrapped_module: nn.Module, num_bits_acts: int | None, *settings: Any, **named: Any) -> None:
        """As the base, without ``num_bits_accum``: accumulators have 32 bits, so ``mode`` comes third."""
        super().__init__(wrapped_module, num_bits_acts, _ACCUMULATOR_BITS, *settings, **named)

    def _rescaled(self, inputs_q: list[Tensor], grids: list[TensorQuantMetadata]) -> list[Tensor]:
        """Integers in steps of the output, without its zero point."""
        found = []
        for x_q, grid in zip(inputs_q, grids, strict=True):
            rescale = self.output_scale / grid.scale
            low, high = self.accum_min_q_val, self.accum_max_q_val
            found.append(linear_quantize_clamp(x_q + grid.zero_point, rescale, 0, low, high))
        return found


class RangeLinearQuantConcatWrapper(_Combining):
    """``Concat`` of inputs that are first put on the output's grid.

    A value of 3 on a grid with scale 10 (``x_q = 30``) becomes ``round(30 * 2 / 10) = 6`` where the output's scale is
    2. Raises :class:`ArgumentError` for other modules, :class:`NoStatsError` (a ``NotImplementedError``) without
    statistics.
    """

    wraps: ClassVar[tuple[str, ...]] = ("Concat",)

    def quantized_forward(
        self, inputs_q: list[Tensor], grids: list[TensorQuantMetadata], **settings: Any
    ) -> tuple[Tensor, Tensor]:
        """The joined integers, in steps of the output."""
        accum: Tensor = self.wrapped_module(*self._rescaled(inputs_q, grids), **settings)
        return accum, self.output_scale


class RangeLinearQuantEltwiseAddWrapper(_Combining):
    """``EltwiseAdd`` of inputs that are first put on the output's scale.

    ``y_q = sum(round(s_y / s_i * (x_i + z_i))) - z_y``. Inputs 3 and 4 with scale 10,
    output scale 2: ``6 + 8 = 14``, which is 7. Raises as the other combining wrappers.
    """

    wraps: ClassVar[tuple[str, ...]] = ("EltwiseAdd",)

    def quantized_forward(
        self, inputs_q: list[Tensor], grids: list[TensorQuantMetadata], **settings: Any
    ) -> tuple[Tensor, Tensor]:
        """The sum, in steps of the output."""
        accum: Tensor = self.wrapped_module(*self._rescaled(inputs_q, grids), **settings)
        return accum, self.output_scale


class RangeLinearQuantEltwiseMultWrapper(_Combining):
    """``EltwiseMult``: ``y_q = round(s_y / (s_1 * s_2) * (x_1 + z_1) * (x_2 + z_2) - z_y)``.

    Inputs 3 and 4 with scale 10: the accumulator is 1200 with scale 100. Raises as the other combining wrappers.
    """

    wraps: ClassVar[tuple[str, ...]] = ("EltwiseMult",)

    def quantized_forward(
        self, inputs_q: list[Tensor], grids: list[TensorQuantMetadata], **settings: Any
    ) -> tuple[Tensor, Tensor]:
        """The product of the integers, and that of the scales."""
        return _product(self.wrapped_module, inputs_q, grids, settings)


class RangeLinearQuantMatmulWrapper(RangeLinearQuantWrapper):
    """``Matmul`` and ``BatchMatmul``; with statistics or without.

    ``[[3]]`` times ``[[4]]`` with scale 10 each: the accumulator is 1200 with scale 100.
    """

    wraps: ClassVar[tuple[str, ...]] = ("Matmul", "BatchMatmul")

    def quantized_forward(
        self, inputs_q: list[Tensor], grids: list[TensorQuantMetadata], **settings: Any
    ) -> tuple[Tensor, Tensor]:
        """The product of the integers, and that of the scales."""
        return _product(self.wrapped_module, inputs_q, grids, settings)


def _product(
    module: nn.Module, inputs_q: list[Tensor], grids: list[TensorQuantMetadata], settings: Mapping[str, Any]
) -> tuple[Tensor, Tensor]:
    scale = torch.ones_like(grids[0].scale)
    for grid in grids:
        scale = scale * grid.scale
    accum: Tensor = module(*(x_q + grid.zero_point for x_q, grid in zip(inputs_q, grids, strict=True)), **settings)
    return accum, scale
