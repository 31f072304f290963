"""What post-training wrappers share: quantizing inputs, computing with integers, quantizing the output (layer 2).

Distiller's convention: ``x_q = round(s_x * x - z_x)``, so ``x = (x_q + z_x) / s_x``. A wrapper computes its module on
``x_q + z_x``, which are integers, into an accumulator ``acc = s_acc * y``; then
``y_q = round(acc * s_y / s_acc - z_y)``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from distiller_ng.errors import ArgumentError, CalibrationError
from distiller_ng.ops.linear_quantization import LinearQuantMode, check_bits
from distiller_ng.quantization.ptq_settings import (
    Clip,
    Mode,
    ModuleQuantMode,
    NoStatsError,
    QuantSettings,
    TensorQuantMetadata,
    UnquantizedInputError,
    input_settings,
    linear_quantize_clamp_with_metadata,
    metadata_of,
    with_metadata,
)
from distiller_ng.quantization.q_utils import (
    approx_scale_as_mult_and_shift,
    clamp,
    get_quantized_range,
    linear_dequantize,
    linear_quantize_clamp,
)
from distiller_ng.quantization.quant_params import ClipMode
from distiller_ng.quantization.range_linear_output import OutputGrid, compute_dtype, is_called

__all__ = ["RangeLinearQuantWrapper"]


class RangeLinearQuantWrapper(OutputGrid):
    """Base of the wrappers that compute with integers; subclasses define :meth:`quantized_forward`.

    ``activation_stats``: ``{"inputs": {0: {"min": ..., ...}}, "output": {...}}``; without them ranges are found in each
    batch. An input that carries metadata (a wrapper made it) is quantized on its own grid. Another one is quantized by
    ``input_overrides[its number]``, else, with ``inputs_quant_auto_fallback``, by the settings of the output.
    ``quantize_inputs=False`` computes with inputs as they are.

    Raises :class:`ArgumentError` for settings that cannot be. ``forward`` raises :class:`LifecycleError` in training
    mode, :class:`UnquantizedInputError` (both are ``RuntimeError``) for an input without metadata and override, or
    with both.
    """

    needs_stats: ClassVar[bool] = False
    wraps: ClassVar[tuple[str, ...]] = ()
    #: False hands the accumulator on in floating point: who reads it quantizes it, if need be.
    quantizes_output: bool = True

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
        self._check_module(wrapped_module)
        if self.needs_stats and not activation_stats:
            raise NoStatsError(
                f"{type(self).__name__} needs activation statistics: its output range cannot be found while it runs. "
                "Collect them with collect_quant_stats(model, test_fn)"
            )
        modes = ModuleQuantMode.parse(mode)
        settings = QuantSettings(num_bits_acts, modes.activations, clip_acts, clip_n_stds, clip_half_range)  # type: ignore[arg-type]
        super().__init__(wrapped_module, settings, activation_stats, scale_approx_mult_bits)
        self.mode = modes
        self.num_bits_accum = check_bits(num_bits_accum, argument="num_bits_accum")
        self.accum_min_q_val, self.accum_max_q_val = get_quantized_range(num_bits_accum, signed=True)
        self.requires_quantized_inputs = num_bits_acts is not None
        self.inputs_quant_auto_fallback = inputs_quant_auto_fallback
        self.quantize_inputs = quantize_inputs
        self.input_overrides = input_settings(settings, input_overrides)
        self._input_stats = dict((activation_stats or {}).get("inputs") or {})
        self._known_grids: dict[tuple[int, QuantSettings, int | None], tuple[Tensor, Tensor]] = {}

    @classmethod
    def _check_module(cls, module: nn.Module) -> None:
        if cls.wraps and not is_called(module, *cls.wraps):
            raise ArgumentError(
                f"{cls.__name__} wraps modules of type {' or '.join(cls.wraps)}, got {type(module).__name__}",
                argument=("wrapped_module",),
            )

    def forward(self, *inputs: Any, **settings: Any) -> Tensor:
        """The module's output on the grid of its output, marked with metadata; the inputs' dtype.

        ``settings`` are passed to the module. Where an input is no floating point tensor, the module computes in
        floating point, and its output is put on the grid.
        """
        self.check_eval()
        if self.output_quant_settings.num_bits is None:
            return self.unquantized_forward(*inputs, **settings)
        dtype = next((value.dtype for value in inputs if _is_floating(value)), torch.float32)
        if all(_is_floating(value) for value in inputs):
            accum, accum_scale = self._accumulated(inputs, settings)
        else:
            accum = self.wrapped_module(*inputs, **settings).to(compute_dtype(dtype))
            accum_scale = torch.ones(1, device=accum.device)
        if self.fuses_relu:
            accum = accum.clamp(min=0)
        if not self.quantizes_output:
            self.num_forwards += 1
            return (accum / accum_scale).to(dtype)
        output = self.output_grid(accum / accum_scale)
        rescale = self._approximated(output.scale / accum_scale)
        out_q = linear_quantize_clamp(accum, rescale, output.zero_point, output.min_q_val, output.max_q_val)
        self.num_forwards += 1
        result = linear_dequantize(out_q, output.scale, output.zero_point).to(dtype)
        return with_metadata(result, output)

    def _accumulated(self, inputs: Sequence[Tensor], settings: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """The accumulator, as far as its bits hold it, and its scale."""
        grids = [self._grid_of(index, value) for index, value in enumerate(inputs)]
        integers = []
        for value, grid in zip(inputs, grids, strict=True):
            plain = value.detach().as_subclass(Tensor).to(compute_dtype(value.dtype))
            integers.append(plain if grid is None else linear_quantize_clamp_with_metadata(plain, grid))
        one = torch.ones(1, device=inputs[0].device)
        known = [TensorQuantMetadata(one, one - 1, 0, 0) if grid is None else grid for grid in grids]
        accum, accum_scale = self.quantized_forward(integers, known, **settings)
        return clamp(accum, self.accum_min_q_val, self.accum_max_q_val), accum_scale

    def unquantized_forward(self, *inputs: Any, **settings: Any) -> Tensor:
        """What is computed when activations are not quantized."""
        result: Tensor = self.wrapped_module(*inputs, **settings)
        return result

    def quantized_forward(
        self, inputs_q: list[Tensor], grids: list[TensorQuantMetadata], **settings: Any
    ) -> tuple[Tensor, Tensor]:  # pragma: no cover - the base wraps nothing
        """The accumulator and its scale (how many steps make 1.0), from integer inputs on their grids."""
        raise ArgumentError(f"{type(self).__name__} defines no quantized_forward: use one of its subclasses")

    def _approximated(self, scale: Tensor) -> Tensor:
        if self.scale_approx_mult_bits is None:
            return scale
        approximated: Tensor = approx_scale_as_mult_and_shift(scale, self.scale_approx_mult_bits)
        return approximated

    def _grid_of(self, index: int, value: Tensor) -> TensorQuantMetadata | None:
        """How one input is quantized; None: not at all."""
        carried, override = metadata_of(value), self.input_overrides.get(index)
        if carried is not None:
            if override is not None:
                raise UnquantizedInputError(
                    f"CONFLICT: input {index} of {type(self.wrapped_module).__name__} is quantized already, and "
                    "input_overrides says how to quantize it: drop the override"
                )
            return _moved(carried, value.device)
        if not self.quantize_inputs or not self.requires_quantized_inputs or not value.numel():
            return None
        if override is None and not self.inputs_quant_auto_fallback:
            raise UnquantizedInputError(
                f"input {index} of {type(self.wrapped_module).__name__} is not quantized: quantize the operation that "
                f"makes it, set input_overrides: {{{index}: {{from_output: true}}}}, or inputs_quant_auto_fallback"
            )
        if not self.preset_act_stats:
            settings = self._input_settings(index)
            if settings.num_bits is None:
                return None
            return settings.metadata(*settings.of_tensor(value, self.scale_approx_mult_bits))
        found = self.input_grid(index)
        if found is None:
            return None
        settings, scale, zero_point = found
        return _moved(settings.metadata(scale, zero_point), value.device)

    def input_grid(self, index: int) -> tuple[QuantSettings, Tensor, Tensor] | None:
        """How an input that nobody quantized is quantized by its statistics: settings, scale and zero point.

        None where it stays as it is. Raises :class:`CalibrationError` for an input the statistics do not have.
        """
        settings = self._input_settings(index)
        if settings.num_bits is None or not self.quantize_inputs or not self.requires_quantized_inputs:
            return None
        if index not in self._input_stats:
            raise CalibrationError(
                f"the statistics of {type(self.wrapped_module).__name__} have nothing about its input {index}, which "
                "needs to be quantized: collect them again"
            )
        key = (index, settings, self.scale_approx_mult_bits)
        if key not in self._known_grids:  # some clippings search for their range: not in every call
            self._known_grids[key] = settings.of_stats(self._input_stats[index], self.scale_approx_mult_bits)
        return settings, *self._known_grids[key]

    def _input_settings(self, index: int) -> QuantSettings:
        override = self.input_overrides.get(index)
        return self._fallback() if override is None else override

    def _fallback(self) -> QuantSettings:
        output = self.output_quant_settings
        return QuantSettings(output.num_bits, output.quant_mode, output.clip_mode, output.clip_n_stds)


def _is_floating(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _moved(grid: TensorQuantMetadata, device: torch.device) -> TensorQuantMetadata:
    scale, zero_point = (torch.as_tensor(value).to(device) for value in grid[:2])
    return TensorQuantMetadata(scale, zero_point, grid.min_q_val, grid.max_q_val)
