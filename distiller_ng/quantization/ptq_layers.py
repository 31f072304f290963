"""The quantized layers of a prepared model, seen as floating point layers: for corrections of weights (layer 2)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from distiller_ng.errors import ArgumentError, LifecycleError, TargetError, did_you_mean
from distiller_ng.names import canonical_name, unwrap
from distiller_ng.quantization.ptq_settings import linear_quantize_clamp_with_metadata
from distiller_ng.quantization.q_utils import linear_dequantize
from distiller_ng.quantization.range_linear_params import RangeLinearQuantParamLayerWrapper

__all__ = [
    "channel_axis_of_output",
    "dequantized_weight",
    "floating_point_output",
    "quantized_input",
    "quantized_layers",
    "set_bias_",
]


def quantized_layers(
    model: nn.Module, names: Iterable[str] | None = None
) -> dict[str, RangeLinearQuantParamLayerWrapper]:
    """``{name: wrapper}`` of the convolutions and linear layers with quantized weights, in model order.

    ``names`` keeps only these. Raises :class:`LifecycleError` for a model that has none, :class:`TargetError` for a
    name that is none of them.
    """
    found = {
        canonical_name(name): module
        for name, module in unwrap(model).named_modules()
        if isinstance(module, RangeLinearQuantParamLayerWrapper) and "w_scale" in module._buffers
    }
    if not found:
        raise LifecycleError(
            "the model has no layer with quantized weights: prepare it first, with "
            "PostTrainLinearQuantizer(...).prepare_model(...) or distiller_ng.quantize(...)"
        )
    if names is None:
        return found
    wanted = [canonical_name(name) for name in ([names] if isinstance(names, str) else names)]
    for name in wanted:
        if name not in found:
            message = f"{name!r} is no layer with quantized weights. {did_you_mean(name, found)}"
            raise TargetError(message, argument=("layers",))
    return {name: wrapper for name, wrapper in found.items() if name in wanted}


def dequantized_weight(wrapper: RangeLinearQuantParamLayerWrapper) -> Tensor:
    """The values its integers stand for, of the weight's shape."""
    if bool(wrapper.force_readjust):
        wrapper._readjust()
    weight: Tensor = wrapper.wrapped_module.weight.detach()  # type: ignore[operator]
    if not wrapper.quantizes_activations:
        return weight
    return weight / wrapper.w_scale.to(weight.device)  # [1], or shaped to broadcast along the channels


def quantized_input(wrapper: RangeLinearQuantParamLayerWrapper, x: Tensor) -> Tensor:
    """What the layer really multiplies: ``x`` on the grid of its input, as floating point values."""
    grid = wrapper._grid_of(0, x) if wrapper.quantizes_activations else None
    plain = x.detach().as_subclass(Tensor)
    if grid is None:
        return plain
    return linear_dequantize(linear_quantize_clamp_with_metadata(plain, grid), grid.scale, grid.zero_point)


def floating_point_output(
    wrapper: RangeLinearQuantParamLayerWrapper, x: Tensor, weight: Tensor | None = None
) -> Tensor:
    """The layer's output before it is quantized and before any activation, for an input that is quantized already.

    ``weight`` None takes :func:`dequantized_weight`.
    """
    layer = wrapper.wrapped_module
    parameters: dict[str, Any] = {"weight": dequantized_weight(wrapper) if weight is None else weight}
    if layer.bias is not None:
        parameters["bias"] = layer.bias.detach()  # type: ignore[operator]
    dtype = parameters["weight"].dtype
    result: Tensor = functional_call(layer, {key: value.to(dtype) for key, value in parameters.items()}, (x.to(dtype),))
    return result


@torch.no_grad()
def set_bias_(wrapper: RangeLinearQuantParamLayerWrapper, bias: Tensor) -> None:
    """Give the layer a bias, ``[C]``; a layer without one gets a new parameter.

    Raises :class:`LifecycleError` for layers that quantized their bias without calibration statistics.
    """
    if "base_b_q" in wrapper._buffers:
        raise LifecycleError("biases can be corrected in models that were quantized with calibration statistics only")
    layer = wrapper.wrapped_module
    channels = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
    if bias.shape != (channels,):
        raise ArgumentError(f"the layer has {channels} output channels, the bias has shape {tuple(bias.shape)}")
    known = layer.bias
    if isinstance(known, Tensor):
        known.copy_(bias)
        return
    weight: Tensor = layer.weight  # type: ignore[assignment]
    layer.bias = nn.Parameter(bias.to(weight).clone(), requires_grad=False)
    wrapper.has_bias = True


def channel_axis_of_output(wrapper: RangeLinearQuantParamLayerWrapper, output: Tensor) -> int:
    """Which dimension of its output the channels are: the last of a linear layer, else the one before the pixels."""
    if isinstance(wrapper.wrapped_module, nn.Linear):
        return output.dim() - 1
    weight: Tensor = wrapper.wrapped_module.weight  # type: ignore[assignment]
    return output.dim() - weight.dim() + 1
