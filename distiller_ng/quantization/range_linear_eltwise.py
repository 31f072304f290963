"""Joining, adding and multiplying quantized tensors, for post-training quantization (layer 2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from distiller_ng.ops.linear_quantization import LinearQuantMode
from distiller_ng.quantization.ptq_settings import Clip, Mode, TensorQuantMetadata
from distiller_ng.quantization.q_utils import linear_quantize_clamp
from distiller_ng.quantization.quant_params import ClipMode
from distiller_ng.quantization.range_linear_wrappers import RangeLinearQuantWrapper

__all__ = [
    "RangeLinearQuantConcatWrapper",
    "RangeLinearQuantEltwiseAddWrapper",
    "RangeLinearQuantEltwiseMultWrapper",
    "RangeLinearQuantMatmulWrapper",
]


class _Combining(RangeLinearQuantWrapper):
    """Wrappers of operations on several tensors; they need statistics of the output."""

    needs_stats: ClassVar[bool] = True

    def __init__(
        self,
        wrapped_module: nn.Module,
        num_bits_acts: int | None,
        mode: Mode = LinearQuantMode.SYMMETRIC,
        clip_acts: Clip = ClipMode.NONE,
        activation_stats: Mapping[str, Any] | None = None,
        clip_n_stds: float | None = None,
        clip_half_range: bool = False,
        scale_approx_mult_bits: int | None = None,
        input_overrides: Mapping[Any, Any] | None = None,
        inputs_quant_auto_fallback: bool = False,
        *,
        quantize_inputs: bool = True,
    ) -> None:
        super().__init__(
            wrapped_module,
            num_bits_acts,
            32,
            mode,
            clip_acts,
            activation_stats,
            clip_n_stds,
            clip_half_range,
            scale_approx_mult_bits,
            input_overrides,
            True,
            inputs_quant_auto_fallback,
            quantize_inputs=quantize_inputs,
        )

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

    def __init__(
        self,
        wrapped_module: nn.Module,
        num_bits_acts: int | None,
        num_bits_accum: int = 32,
        mode: Mode = LinearQuantMode.SYMMETRIC,
        clip_acts: Clip = ClipMode.NONE,
        activation_stats: Mapping[str, Any] | None = None,
        clip_n_stds: float | None = None,
        clip_half_range: bool = False,
        scale_approx_mult_bits: int | None = None,
        input_overrides: Mapping[Any, Any] | None = None,
        inputs_quant_auto_fallback: bool = False,
        *,
        quantize_inputs: bool = True,
    ) -> None:
        super().__init__(
            wrapped_module,
            num_bits_acts,
            num_bits_accum,
            mode,
            clip_acts,
            activation_stats,
            clip_n_stds,
            clip_half_range,
            scale_approx_mult_bits,
            input_overrides,
            True,
            inputs_quant_auto_fallback,
            quantize_inputs=quantize_inputs,
        )

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
