"""Modules that run in floating point and whose output or weight is quantized: post-training quantization (layer 2)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from distiller_ng.errors import ArgumentError
from distiller_ng.graph.functional_calls import Unseen
from distiller_ng.ops.linear_quantization import LinearQuantMode
from distiller_ng.quantization.ptq_settings import (
    Clip,
    Mode,
    ModuleQuantMode,
    QuantSettings,
    linear_quantize_clamp_with_metadata,
    with_metadata,
)
from distiller_ng.quantization.q_utils import linear_dequantize, linear_quantize_clamp
from distiller_ng.quantization.quant_params import ClipMode
from distiller_ng.quantization.range_linear_output import OutputGrid, compute_dtype

__all__ = ["FPWrapper", "RangeLinearEmbeddingWrapper", "RangeLinearFakeQuantWrapper", "precision_of"]

_PRECISIONS = {16: torch.float16, 32: torch.float32, 64: torch.float64}


def precision_of(fpq_module: Any, *, argument: tuple[str | int, ...] = ("fpq_module",)) -> int | None:
    """16, 32 or 64, also given as text or ``"half"``, ``"float"``, ``"double"``; None for False and None."""
    names = {"half": 16, "float": 32, "double": 64, "fp16": 16, "fp32": 32, "fp64": 64, "16": 16, "32": 32, "64": 64}
    if fpq_module is None or fpq_module is False:
        return None
    value = names.get(str(fpq_module).lower())
    if value is None:
        raise ArgumentError(f"fpq_module must be 16, 32 or 64 (bits), got {fpq_module!r}", argument=argument)
    return value


class FPWrapper(Unseen):
    """A module that computes in 16, 32 or 64 bit floating point.

    ``convert_input`` converts tensors on the way in, ``return_fp32`` on the way out (nested lists, tuples and mappings
    are looked into, integers stay). ``FPWrapper(nn.Linear(2, 2), 16)`` has float16 weights and returns float32.
    """

    def __init__(
        self, module: nn.Module, precision: int | str = 16, convert_input: bool = True, return_fp32: bool = True
    ) -> None:
        super().__init__()
        bits = precision_of(precision, argument=("precision",))
        if bits is None:
            raise ArgumentError(f"precision must be 16, 32 or 64, got {precision!r}", argument=("precision",))
        self.precision = bits
        self.dtype = _PRECISIONS[bits]
        self.wrapped_module = module.to(self.dtype)
        self.convert_input, self.return_fp32 = convert_input, return_fp32

    def forward(self, *inputs: Any, **kwargs: Any) -> Any:
        """What the module returns."""
        if self.convert_input:
            inputs, kwargs = _converted(inputs, self.dtype), _converted(kwargs, self.dtype)
        result = self.wrapped_module(*inputs, **kwargs)
        return _converted(result, torch.float32) if self.return_fp32 else result


def _converted(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, Mapping):
        return {key: _converted(one, dtype) for key, one in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_converted(one, dtype) for one in value))
    if isinstance(value, list | tuple):
        return type(value)(_converted(one, dtype) for one in value)
    return value


class RangeLinearFakeQuantWrapper(OutputGrid):
    """A module that runs as it is; its output is quantized and dequantized, and marked with its grid.

    Several outputs (of a split) share one grid. ``fpq_module`` runs the module in 16, 32 or 64 bits; ``make_identity``
    leaves the module out and quantizes the input. Without ``activation_stats`` ranges are found in each batch. With 2
    bits, ``ASYMMETRIC_UNSIGNED`` and statistics 0 .. 3, an output of 1.2 becomes 1.0.
    Raises :class:`LifecycleError` (a ``RuntimeError``) in training mode.
    """

    def __init__(
        self,
        wrapped_module: nn.Module,
        num_bits_acts: int | None,
        quant_mode: Mode = LinearQuantMode.SYMMETRIC,
        clip_acts: Clip = ClipMode.NONE,
        activation_stats: Mapping[str, Any] | None = None,
        clip_n_stds: float | None = None,
        clip_half_range: bool = False,
        scale_approx_mult_bits: int | None = None,
        fpq_module: int | str | bool | None = None,
        make_identity: bool = False,
    ) -> None:
        mode = ModuleQuantMode.parse(quant_mode, argument=("quant_mode",)).activations
        settings = QuantSettings(num_bits_acts, mode, clip_acts, clip_n_stds, clip_half_range)  # type: ignore[arg-type]
        inside: nn.Module = nn.Identity() if make_identity else wrapped_module
        bits = precision_of(fpq_module)
        super().__init__(
            FPWrapper(inside, bits) if bits and not make_identity else inside,
            settings,
            activation_stats,
            scale_approx_mult_bits,
        )
        self.fpq_module = bits

    def forward(self, *inputs: Any, **kwargs: Any) -> Any:
        """The module's outputs, those in floating point on the grid."""
        self.check_eval()
        result = self.compute(*inputs, **kwargs)
        self.num_forwards += 1
        return self._quantized(result)

    def compute(self, *inputs: Any, **kwargs: Any) -> Any:
        """What the module computes, or the first input where the module was left out."""
        inside = self.wrapped_module
        return inputs[0] if isinstance(inside, nn.Identity) else inside(*inputs, **kwargs)

    def _quantized(self, result: Any) -> Any:
        if isinstance(result, tuple) and hasattr(result, "_fields"):
            return type(result)(*(self._quantized(one) for one in result))
        if isinstance(result, list | tuple):
            return type(result)(self._quantized(one) for one in result)
        settings = self.output_quant_settings
        if not isinstance(result, Tensor) or not result.is_floating_point() or not result.numel():
            return result
        if self.fuses_relu:
            result = result.clamp(min=0)
        if settings.num_bits is None:
            return result
        values = result.detach().as_subclass(Tensor).to(compute_dtype(result.dtype))
        grid = self.output_grid(values)
        integers = linear_quantize_clamp_with_metadata(values, grid)
        return with_metadata(linear_dequantize(integers, grid.scale, grid.zero_point).to(result.dtype), grid)


class RangeLinearEmbeddingWrapper(OutputGrid):
    """An embedding with a quantized table; its output carries the table's grid.

    The table's range is that of the weight, or of the output in ``stats``. ``wrapped_module.weight`` becomes a new
    parameter with the dequantized values. ``save_fp_weights`` keeps the original as buffer ``float_weight``. A table
    ``-4 .. 4`` with 8 bits, symmetric, has scale 31.875; 1.01 becomes 1.0039. Raises :class:`ArgumentError` for other
    modules.
    """

    w_scale: Tensor
    w_zero_point: Tensor

    def __init__(
        self,
        wrapped_module: nn.Module,
        num_bits: int,
        mode: Mode = LinearQuantMode.SYMMETRIC,
        stats: Mapping[str, Any] | None = None,
        save_fp_weights: bool = False,
    ) -> None:
        if not isinstance(wrapped_module, nn.Embedding):
            raise ArgumentError(
                f"{type(self).__name__} wraps nn.Embedding, got {type(wrapped_module).__name__}",
                argument=("wrapped_module",),
            )
        settings = QuantSettings(num_bits, ModuleQuantMode.parse(mode).weights)
        super().__init__(wrapped_module, settings, None, None)
        weight = wrapped_module.weight.detach().to(compute_dtype(wrapped_module.weight.dtype))
        scale, zero_point = settings.of_stats(stats["output"]) if stats else settings.of_tensor(weight)
        self.wts_quant_settings = settings
        self.register_buffer("w_scale", scale.to(weight))
        self.register_buffer("w_zero_point", zero_point.to(weight))
        if save_fp_weights:
            self.register_buffer("float_weight", weight.clone())
        self._put_on_grid(weight, wrapped_module.weight.dtype)

    def _put_on_grid(self, weight: Tensor, dtype: torch.dtype) -> None:
        integers = linear_quantize_clamp(weight, self.w_scale, self.w_zero_point, *self.wts_quant_settings.q_range)
        values = linear_dequantize(integers, self.w_scale, self.w_zero_point).to(dtype)
        self.wrapped_module.weight = nn.Parameter(values, requires_grad=False)

    def readjust(self) -> None:
        """Put the table on the grid that ``w_scale`` and ``w_zero_point`` describe now."""
        self.force_readjust.fill_(False)
        table: Tensor = self.wrapped_module.weight.detach()  # type: ignore[operator]
        kept = self._buffers.get("float_weight")
        self._put_on_grid(table.to(self.w_scale.dtype) if kept is None else kept, table.dtype)

    def forward(self, *inputs: Tensor) -> Tensor:
        """The rows of the quantized table, marked with its grid."""
        self.check_eval()
        if bool(self.force_readjust):
            self.readjust()
        self.num_forwards += 1
        grid = self.wts_quant_settings.metadata(self.w_scale, self.w_zero_point)
        return with_metadata(self.wrapped_module(*inputs), grid)

    def named_linear_quant_params(self, filter: bool = False) -> Iterator[tuple[str, Tensor]]:
        """``w_scale`` and ``w_zero_point``."""
        yield "w_scale", self.w_scale
        if not (filter and self.wts_quant_settings.quant_mode.is_symmetric):
            yield "w_zero_point", self.w_zero_point
