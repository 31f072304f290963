"""What each quantized module computes in the export form: see :mod:`distiller_ng.quantization.exporting` (layer 2)."""

from __future__ import annotations

from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from distiller_ng.ops.fake_quantize import fake_quantize
from distiller_ng.ops.linear_quantization import QuantizationParameters, storage_dtype
from distiller_ng.quantization._derived import Derived
from distiller_ng.quantization.ptq_settings import QuantSettings
from distiller_ng.quantization.range_linear_fake import RangeLinearEmbeddingWrapper, RangeLinearFakeQuantWrapper
from distiller_ng.quantization.range_linear_params import RangeLinearQuantParamLayerWrapper
from distiller_ng.quantization.range_linear_wrappers import RangeLinearQuantWrapper

__all__ = [
    "WIDEST",
    "CarriedGrids",
    "ExportForm",
    "ExportedEmbedding",
    "ExportedFakeQuantization",
    "ExportedParamLayer",
    "ExportedWrapper",
    "distiller_parameters",
]

#: Bits that an exported integer can have.
WIDEST = 16
_EXPORTED = (torch.int8, torch.uint8, torch.int16, torch.uint16)


class CarriedGrids:
    """Which tensors lie on a grid because a quantized module made them; what simulation keeps on the tensors."""

    def __init__(self) -> None:
        self._made: Any = WeakTensorKeyDictionary()

    def note(self, tensor: Tensor) -> Tensor:
        """``tensor``, from now on known to lie on a grid until it is written to."""
        self._made[tensor] = _version(tensor)
        return tensor

    def knows(self, tensor: Tensor) -> bool:
        """Whether ``tensor`` lies on a grid."""
        return tensor in self._made and self._made[tensor] == _version(tensor)


def _version(tensor: Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version


class ExportForm(Derived):
    """Base of what is put before a module's class; :meth:`begin` turns grids into buffers, ``forward`` uses them."""

    prefix: ClassVar[str] = "Exported"

    def begin(self, grids: CarriedGrids) -> None:
        """Prepare; called once, without gradients."""
        self.__dict__["export_carried"], self.__dict__["export_grids"] = grids, {}
        self.freeze()

    def freeze(self) -> None:
        """Turn what the module computes with into constants."""

    def keep_grid(self, name: str, params: QuantizationParameters | None) -> None:
        """Make ``params`` the buffers ``<name>_export_step`` and ``<name>_export_zero_point``; None makes none."""
        if params is None or params.zero_point.dtype not in _EXPORTED:
            return
        single = params.axis is None
        for ending, value in (("step", params.scale), ("zero_point", params.zero_point)):
            flat = value.detach().clone().reshape(() if single else (-1,))
            self.register_buffer(f"{name}_export_{ending}", flat, persistent=False)
        self.__dict__["export_grids"][name] = (params.axis, params.qmin, params.qmax)

    def on_grid(self, tensor: Tensor, name: str) -> Tensor:
        """``tensor`` quantized on the grid ``name``; as it is where there is none."""
        found = self.__dict__["export_grids"].get(name)
        if found is None or not tensor.is_floating_point():
            return tensor
        axis, qmin, qmax = found
        step, zero_point = self._buffers[f"{name}_export_step"], self._buffers[f"{name}_export_zero_point"]
        return fake_quantize(tensor, cast(Tensor, step), cast(Tensor, zero_point), axis, qmin=qmin, qmax=qmax)

    def has_grid(self, name: str) -> bool:
        """Whether there is a grid called ``name``."""
        return name in self.__dict__["export_grids"]

    def made(self, tensor: Tensor, name: str) -> Tensor:
        """An output: on its grid, and noted as such."""
        grids: CarriedGrids = self.__dict__["export_carried"]
        return grids.note(self.on_grid(tensor, name)) if self.has_grid(name) else tensor


def distiller_parameters(
    settings: QuantSettings, scale: Tensor, zero_point: Tensor, axis: int | None = None
) -> QuantizationParameters | None:
    """Distiller's ``q = round(s * x - z)`` as step and zero point; None for bits no exported integer has.

    The step is ``1 / s`` and the zero point ``-z``, rounded: scale 21.25 and zero point -42 are 0.0471 and 42.
    """
    if settings.bits > WIDEST:
        return None
    dtype = storage_dtype(settings.bits, settings.quant_mode)
    low, high = settings.q_range
    kept = axis if scale.numel() > 1 else None
    offset = (-zero_point).round().clamp(low, high).to(dtype).expand_as(scale)
    return QuantizationParameters(scale.double().reciprocal().to(scale.dtype), offset, low, high, kept)


class ExportedWrapper(ExportForm):
    """A wrapper that simulates integers: inputs that nobody quantized, the module, ReLU, the output."""

    def freeze(self) -> None:
        """The grids of output and inputs, as they are known from statistics."""
        wrapper = cast(RangeLinearQuantWrapper, self)
        settings = wrapper.output_quant_settings
        if not wrapper.preset_act_stats:
            return
        if wrapper.quantizes_output:
            self.keep_grid("output", distiller_parameters(settings, wrapper.output_scale, wrapper.output_zero_point))
        for index in wrapper._input_stats:
            grid = wrapper.input_grid(index)
            if grid is not None:
                self.keep_grid(f"input{index}", distiller_parameters(*grid))

    def forward(self, *inputs: Any, **kwargs: Any) -> Any:
        """The module's output."""
        carried: CarriedGrids = self.__dict__["export_carried"]
        quantizes = all(isinstance(value, Tensor) and value.is_floating_point() for value in inputs)
        values = []
        for index, value in enumerate(inputs):
            is_free = quantizes and not carried.knows(value)
            values.append(self.on_grid(value, f"input{index}") if is_free else value)
        result = self.export_compute(*values, **kwargs)
        if self.fuses_relu:
            result = torch.relu(result)
        return self.made(result, "output")

    def export_compute(self, *inputs: Any, **kwargs: Any) -> Tensor:
        """What the wrapped module computes."""
        result: Tensor = self.wrapped_module(*inputs, **kwargs)  # type: ignore[operator]
        return result


class ExportedParamLayer(ExportedWrapper):
    """A convolution or linear layer: its weight is a floating point tensor again."""

    def freeze(self) -> None:
        """Also the weight's grid."""
        super().freeze()
        wrapper = cast(RangeLinearQuantParamLayerWrapper, self)
        if "w_scale" not in wrapper._buffers:
            return
        if bool(wrapper.force_readjust):
            wrapper._readjust()
        layer = wrapper.wrapped_module
        weight: Tensor = layer.weight.detach()  # type: ignore[operator]
        if wrapper.quantizes_activations:
            weight = (weight / wrapper.w_scale).to(wrapper._weight_dtype)
        layer._parameters["weight"] = nn.Parameter(weight.clone(), requires_grad=False)
        axis = wrapper.channel_dim
        self.keep_grid(
            "weight",
            distiller_parameters(wrapper.wts_quant_settings, wrapper.w_scale, wrapper.w_zero_point, axis),
        )

    def export_compute(self, *inputs: Any, **kwargs: Any) -> Tensor:
        """The layer with its quantized weight."""
        return _with_weight(self, *inputs, **kwargs)


class ExportedEmbedding(ExportForm):
    """An embedding: the table on its grid, and its rows, which are on it too."""

    def freeze(self) -> None:
        """The table's grid."""
        wrapper = cast(RangeLinearEmbeddingWrapper, self)
        if bool(wrapper.force_readjust):
            wrapper.readjust()
        grid = distiller_parameters(wrapper.wts_quant_settings, wrapper.w_scale, wrapper.w_zero_point)
        self.keep_grid("weight", grid)
        self.keep_grid("output", grid)

    def forward(self, *inputs: Any, **kwargs: Any) -> Tensor:
        """The rows."""
        return self.made(_with_weight(self, *inputs, **kwargs), "output")


def _with_weight(wrapper: ExportForm, *inputs: Any, **kwargs: Any) -> Tensor:
    """What the wrapped layer makes of ``inputs`` with its weight on the grid."""
    layer = cast(nn.Module, wrapper.wrapped_module)
    if not wrapper.has_grid("weight"):
        result: Tensor = layer(*inputs, **kwargs)
        return result
    layer.__dict__["weight"] = wrapper.on_grid(cast(Tensor, layer._parameters["weight"]), "weight")
    try:
        result = layer(*inputs, **kwargs)
    finally:
        layer.__dict__.pop("weight", None)
    return result


class ExportedFakeQuantization(ExportForm):
    """A module in floating point with a quantized output."""

    def freeze(self) -> None:
        """The output's grid."""
        wrapper = cast(RangeLinearFakeQuantWrapper, self)
        if wrapper.preset_act_stats:
            settings = wrapper.output_quant_settings
            self.keep_grid("output", distiller_parameters(settings, wrapper.output_scale, wrapper.output_zero_point))

    def forward(self, *inputs: Any, **kwargs: Any) -> Any:
        """The module's outputs."""
        return self._quantized(cast(RangeLinearFakeQuantWrapper, self).compute(*inputs, **kwargs))

    def _quantized(self, result: Any) -> Any:
        if isinstance(result, tuple) and hasattr(result, "_fields"):
            return type(result)(*(self._quantized(one) for one in result))
        if isinstance(result, list | tuple):
            return type(result)(self._quantized(one) for one in result)
        if not isinstance(result, Tensor) or not result.is_floating_point():
            return result
        return self.made(torch.relu(result) if self.fuses_relu else result, "output")
