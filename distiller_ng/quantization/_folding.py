"""Folding a batch norm into a layer: which pairs, how the weight is scaled, how the layer runs (layer 2)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parameter import is_lazy

from distiller_ng.errors import ArgumentError, LifecycleError

__all__ = ["check_foldable", "correction", "is_frozen_norm", "run_layer", "scaled_weight"]

_PAIRS: tuple[tuple[tuple[type[nn.Module], ...], type[nn.Module]], ...] = (
    ((nn.Linear, nn.Conv1d, nn.ConvTranspose1d), nn.BatchNorm1d),
    ((nn.Conv2d, nn.ConvTranspose2d), nn.BatchNorm2d),
    ((nn.Conv3d, nn.ConvTranspose3d), nn.BatchNorm3d),
)
_TRANSPOSED = {
    nn.ConvTranspose1d: (1, F.conv_transpose1d),
    nn.ConvTranspose2d: (2, F.conv_transpose2d),
    nn.ConvTranspose3d: (3, F.conv_transpose3d),
}


def check_foldable(param_module: object, bn: object) -> None:
    """Whether ``bn`` can be folded into ``param_module``.

    Raises :class:`TypeError` for a pair of other types, :class:`ArgumentError` for a batch norm without running
    statistics or with another number of channels, :class:`LifecycleError` for lazy modules without shapes.
    """
    names = f"cannot fold {type(bn).__name__} into {type(param_module).__name__}"
    if is_frozen_norm(bn):
        if not isinstance(param_module, nn.Conv2d):
            raise TypeError(f"{names}: FrozenBatchNorm2d must follow a Conv2d")
    else:
        norms = [norm for layers, norm in _PAIRS if isinstance(param_module, layers)]
        if not norms:
            raise TypeError(f"{names}: only convolutions and Linear layers followed by a batch norm can be folded")
        if not isinstance(bn, norms[0]):
            raise TypeError(f"{names}: {type(param_module).__name__} must be followed by {norms[0].__name__}")
    norm: Any = bn
    layer: Any = param_module
    for module in (layer, norm):
        if any(is_lazy(tensor) for tensor in (*module.parameters(), *module.buffers())):
            raise LifecycleError(
                f"{names}: {type(module).__name__} has no shape yet; run the model once before folding"
            )
    if norm.running_mean is None or norm.running_var is None or not getattr(norm, "track_running_stats", True):
        raise ArgumentError(f"{names}: it does not track running statistics (track_running_stats=False)")
    width = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
    if norm.running_mean.numel() != width:
        raise ArgumentError(f"{names}: the layer has {width} outputs, the batch norm {norm.running_mean.numel()}")


def is_frozen_norm(bn: object) -> bool:
    """Whether ``bn`` is torchvision's FrozenBatchNorm2d, which has buffers only and is recognised by its name."""
    return isinstance(bn, nn.Module) and any(cls.__name__ == "FrozenBatchNorm2d" for cls in type(bn).__mro__)


def run_layer(layer: nn.Module, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """What ``layer`` computes, with other parameters: stride, padding mode, groups and dilation are its own."""
    if isinstance(layer, nn.Linear):
        return F.linear(x, weight, bias)
    if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        output: Tensor = layer._conv_forward(x, weight, bias)
        return output
    for cls, (_, function) in _TRANSPOSED.items():
        if isinstance(layer, cls):
            conv: Any = layer
            padding = (conv.stride, conv.padding, conv.output_padding, conv.groups, conv.dilation)
            return function(x, weight, bias, *padding)
    raise TypeError(f"{type(layer).__name__} is no layer a batch norm can be folded into")


def scaled_weight(layer: nn.Module, weight: Tensor, factor: Tensor) -> Tensor:
    """``weight`` times one factor ``[C_o]`` for each output channel.

    Output channels are dimension 0; of transposed convolutions ``[C_i, C_o / groups, *kernel]`` they are dimension 1,
    group by group along dimension 0.
    """
    if isinstance(layer, tuple(_TRANSPOSED)):
        groups = int(layer.groups)  # type: ignore[arg-type]
        by_group = weight.reshape(groups, -1, *weight.shape[1:])
        spread = factor.reshape(groups, 1, -1, *[1] * (weight.dim() - 2))
        return (by_group * spread).reshape(weight.shape)
    return weight * factor.reshape(-1, *[1] * (weight.dim() - 1))


def correction(values: Tensor, output: Tensor) -> Tensor:
    """``[C]`` viewed to broadcast over ``output`` ``[N, C, ...]``."""
    return torch.reshape(values, (1, -1, *[1] * (output.dim() - 2)))
