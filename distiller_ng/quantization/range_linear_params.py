"""Convolutions and linear layers computed with integers, for post-training quantization (layer 2)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from distiller_ng.errors import ArgumentError
from distiller_ng.ops.linear_quantization import LinearQuantMode
from distiller_ng.quantization._weights import why_not_quantizable
from distiller_ng.quantization.ptq_settings import Clip, Mode, QuantSettings, TensorQuantMetadata
from distiller_ng.quantization.q_utils import linear_dequantize, linear_quantize_clamp
from distiller_ng.quantization.quant_params import ClipMode
from distiller_ng.quantization.range_linear_output import compute_dtype, described, range_of
from distiller_ng.quantization.range_linear_wrappers import RangeLinearQuantWrapper

__all__ = ["RangeLinearQuantParamLayerWrapper"]

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED, nn.Linear)


class RangeLinearQuantParamLayerWrapper(RangeLinearQuantWrapper):
    """A convolution (also transposed) or linear layer with quantized weight, input and output.

    ``y_q = round(s_y / (s_x * s_w) * ((x_q + z_x) * (w_q + z_w) + b_q) - z_y)`` with ``b_q = round(b * s_x * s_w)``,
    limited to ``num_bits_accum`` bits. Without statistics the bias is quantized to ``num_bits_params`` bits first.

    ``wrapped_module.weight`` becomes a new parameter that holds the integers ``w_q + z_w``; the original tensor, which
    other modules may share, is not written to. ``num_bits_acts=None`` quantizes weight and bias only (``weight`` then
    holds ``(w_q + z_w) / s_w``), ``num_bits_params=None`` computes with the weight as it is.
    ``save_fp_weights`` keeps the original as buffer ``float_weight``, so that changed scales start from it instead of
    from the quantized weight; ``also_clip_weights`` clips weights as activations are.

    Buffers besides the base's: ``w_scale``, ``w_zero_point`` (``[1]``, or one for each output channel) and, without
    statistics, ``b_scale``, ``b_zero_point``, ``base_b_q``. Raises :class:`ArgumentError` for other modules.

    Weight 0.5 and input 2 (8 bits, symmetric, ranges 0.5 and 2): ``w_q = 127``, ``x_q = 127``, scales 255 and 63.75.
    """

    wraps: ClassVar[tuple[str, ...]] = tuple(kind.__name__ for kind in _LAYERS)
    w_scale: Tensor
    w_zero_point: Tensor
    base_b_q: Tensor
    b_scale: Tensor
    b_zero_point: Tensor

    def __init__(
        self,
        wrapped_module: nn.Module,
        num_bits_acts: int | None,
        num_bits_params: int | None,
        num_bits_accum: int = 32,
        mode: Mode = LinearQuantMode.SYMMETRIC,
        clip_acts: Clip = ClipMode.NONE,
        per_channel_wts: bool = False,
        activation_stats: Mapping[str, Any] | None = None,
        clip_n_stds: float | None = None,
        clip_half_range: bool = False,
        scale_approx_mult_bits: int | None = None,
        input_overrides: Mapping[Any, Any] | None = None,
        inputs_quant_auto_fallback: bool = False,
        save_fp_weights: bool = False,
        also_clip_weights: bool = False,
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
            inputs_quant_auto_fallback,
            quantize_inputs=quantize_inputs,
        )
        clip = clip_acts if also_clip_weights else ClipMode.NONE
        self.wts_quant_settings = QuantSettings(
            num_bits_params,
            self.mode.weights,
            clip,  # type: ignore[arg-type]
            clip_n_stds,
            per_channel=bool(per_channel_wts),
        )
        self.channel_dim = 1 if isinstance(wrapped_module, _TRANSPOSED) else 0
        self.save_fp_weights = save_fp_weights
        self.has_bias = wrapped_module.bias is not None
        if num_bits_params is not None:
            self._quantize_weight(wrapped_module)
        if self.has_bias:
            self._quantize_bias(wrapped_module.bias.detach())  # type: ignore[operator]

    @classmethod
    def _check_module(cls, module: nn.Module) -> None:
        if not isinstance(module, _LAYERS) or why_not_quantizable(module):
            why = why_not_quantizable(module) if isinstance(module, nn.Module) else ""
            raise ArgumentError(
                f"{cls.__name__} wraps convolutions and linear layers, got {type(module).__name__} {why}".rstrip(),
                argument=("wrapped_module",),
            )

    # -- parameters ------------------------------------------------------------------------------------------

    def _quantize_weight(self, layer: nn.Module) -> None:
        original: Tensor = layer.weight.detach()  # type: ignore[operator]
        weight = original.to(compute_dtype(original.dtype))
        scale, zero_point = self.wts_quant_settings.of_tensor(
            weight, self.scale_approx_mult_bits if self.quantizes_activations else None, self.channel_dim
        )
        self.register_buffer("w_scale", scale)
        self.register_buffer("w_zero_point", zero_point)
        self._weight_grid = (scale.clone(), zero_point.clone())
        if self.save_fp_weights:
            self.register_buffer("float_weight", weight.clone())
        self._weight_dtype = original.dtype
        layer.weight = nn.Parameter(self._on_grid(weight), requires_grad=False)

    @property
    def quantizes_activations(self) -> bool:
        """Whether the layer computes with integers; else its weights alone are quantized."""
        return self.output_quant_settings.num_bits is not None

    @property
    def weight(self) -> Tensor:
        """The values that the integers stand for: what a model that reads its layer's weight computes with."""
        held: Tensor = self.wrapped_module.weight  # type: ignore[assignment]
        if "w_scale" not in self._buffers or not self.quantizes_activations:
            return held
        return (held / self.w_scale).to(self._weight_dtype)

    def _on_grid(self, weight: Tensor) -> Tensor:
        """``w_q + z_w``, or the values those stand for when activations stay in floating point."""
        low, high = self.wts_quant_settings.q_range
        integers = linear_quantize_clamp(weight, self.w_scale, self.w_zero_point, low, high)
        if self.quantizes_activations:
            return integers + self.w_zero_point
        return linear_dequantize(integers, self.w_scale, self.w_zero_point).to(self._weight_dtype)

    def _readjust(self) -> None:
        """Put the weight on the grid that ``w_scale`` and ``w_zero_point`` describe now."""
        self.force_readjust.fill_(False)
        if "w_scale" not in self._buffers:
            return
        current: Tensor = self.wrapped_module.weight.detach()  # type: ignore[operator]
        scale = self._weight_grid[0].to(current.device)
        kept = self._buffers.get("float_weight")
        original = kept if kept is not None else (current / scale if self.quantizes_activations else current)
        self._weight_grid = (self.w_scale.clone(), self.w_zero_point.clone())
        self.wrapped_module.weight.data = self._on_grid(original.to(compute_dtype(original.dtype)))

    def _quantize_bias(self, bias: Tensor) -> None:
        weights, values = self.wts_quant_settings, bias.to(compute_dtype(bias.dtype))
        if weights.num_bits is None:
            return
        bits = weights.bits if self.quantizes_activations else self.num_bits_accum
        settings = QuantSettings(bits, weights.quant_mode)
        if not self.quantizes_activations:
            scale, zero_point = settings.of_tensor(values)
            on_grid = linear_quantize_clamp(values, scale, zero_point, *settings.q_range)
            quantized = linear_dequantize(on_grid, scale, zero_point).to(bias.dtype)
            self.wrapped_module.bias = nn.Parameter(quantized, requires_grad=False)
        elif not self.preset_act_stats:
            scale, zero_point = settings.of_tensor(values)
            self.register_buffer("b_scale", scale)
            self.register_buffer("b_zero_point", zero_point)
            self.register_buffer("base_b_q", linear_quantize_clamp(values, scale, zero_point, *settings.q_range))

    def _bias_on(self, accum_scale: Tensor) -> Tensor:
        """The bias as integers of the accumulator: ``[C]``."""
        low, high = self.accum_min_q_val, self.accum_max_q_val
        if "base_b_q" in self._buffers:
            rescale = self._approximated(accum_scale / self.b_scale)
            return linear_quantize_clamp(self.base_b_q + self.b_zero_point, rescale, 0, low, high)
        bias: Tensor = self.wrapped_module.bias.detach()  # type: ignore[operator]
        return linear_quantize_clamp(bias.to(accum_scale.dtype), accum_scale, 0, low, high)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        if "w_scale" in self._buffers:
            self._weight_grid = (self.w_scale.clone(), self.w_zero_point.clone())

    # -- forward ------------------------------------------------------------------------------------------

    def forward(self, *inputs: Any, **settings: Any) -> Tensor:
        """The layer's output for one input; see the class."""
        self.check_eval()
        if bool(self.force_readjust):
            self._readjust()
        return super().forward(*inputs, **settings)

    def quantized_forward(
        self, inputs_q: list[Tensor], grids: list[TensorQuantMetadata], **settings: Any
    ) -> tuple[Tensor, Tensor]:
        """``(x_q + z_x) * (w_q + z_w) + b_q``, and ``s_x * s_w`` shaped to divide it."""
        (x_q,), (grid,) = inputs_q, grids
        values = x_q + grid.zero_point
        weight: Tensor = self.wrapped_module.weight.detach()  # type: ignore[operator]
        w_scale = self._channel_scales(weight) if "w_scale" in self._buffers else torch.ones_like(grid.scale)
        accum_scale = self._approximated((grid.scale * w_scale).reshape(-1))
        dtype = torch.promote_types(values.dtype, weight.dtype)
        parameters = {"weight": weight.to(dtype)}
        if self.has_bias:
            channels = self.wrapped_module.bias.numel()  # type: ignore[operator]
            parameters["bias"] = self._bias_on(accum_scale.expand(channels)).to(dtype)
        accum: Tensor = functional_call(self.wrapped_module, parameters, (values.to(dtype),), settings)
        if accum_scale.numel() > 1:
            dims: int = self.wrapped_module.weight.dim()  # type: ignore[operator]
            after = 0 if isinstance(self.wrapped_module, nn.Linear) else dims - 2
            accum_scale = accum_scale.reshape(-1, *[1] * after)
        return accum, accum_scale

    def _channel_scales(self, weight: Tensor) -> Tensor:
        """``[1]``, or one scale for each output channel ``[C]``."""
        scale = self.w_scale.reshape(-1)
        groups = self.wrapped_module.groups if isinstance(self.wrapped_module, _TRANSPOSED) else 1
        return scale if scale.numel() == 1 else scale.repeat(groups)

    # -- searching ------------------------------------------------------------------------------------------

    def named_linear_quant_params(self, filter: bool = False) -> Iterator[tuple[str, Tensor]]:
        """Also ``w_scale`` and ``w_zero_point``."""
        yield from super().named_linear_quant_params(filter)
        if "w_scale" in self._buffers:
            yield "w_scale", self.w_scale
            if not (filter and self.wts_quant_settings.quant_mode.is_symmetric):
                yield "w_zero_point", self.w_zero_point

    def named_clipping(self, filter: bool = False) -> Iterator[tuple[str, Tensor]]:
        """Also ``weight_clipping``, where there is one range for the whole weight."""
        yield from super().named_clipping(filter)
        if "w_scale" in self._buffers and self.w_scale.numel() == 1:
            yield "weight_clipping", range_of(self.wts_quant_settings, self.w_scale, self.w_zero_point)

    def _clipped(self, name: str) -> tuple[str, QuantSettings]:
        return ("w", self.wts_quant_settings) if name == "weight_clipping" else super()._clipped(name)

    def extra_repr(self) -> str:
        """Settings, for the printed model."""
        text = f"{super().extra_repr()}, {described('params', self.wts_quant_settings)}"
        return f"{text}, num_bits_accum={self.num_bits_accum}, per_channel_wts={self.wts_quant_settings.per_channel}"
