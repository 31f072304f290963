"""Batch norms folded into the layer before them, for inference (layer 1).

In evaluation a batch norm is a scale and a shift of each channel, ``y * s + t`` with ``s = gamma / sqrt(var + eps)``
and ``t = beta - mean * s``. A convolution or linear layer before it can do both: ``weight * s``, ``bias * s + t``.
Jacob et al., Quantization and training of neural networks for efficient integer-arithmetic-only inference, 2018,
section 3.2, https://arxiv.org/abs/1712.05877.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from distiller_ng.graph.fusion import Chain, connections_of, find_chains, put_in_place_
from distiller_ng.graph.inputs import ExampleInputsLike
from distiller_ng.graph.summary_graph import AdjacentsEntry

__all__ = ["FoldedParameters", "fold_batch_norms", "foldable_pairs", "folded_parameters", "is_batch_norm"]

_logger = logging.getLogger(__name__)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_FOLDABLE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED)
_LAYER_OPERATIONS = ("Conv", "ConvTranspose", "Gemm")
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


@dataclass(frozen=True, slots=True)
class FoldedParameters:
    """What a layer's weight and bias become; of the layer's dtype and device, without gradients."""

    weight: Tensor
    bias: Tensor


def fold_batch_norms(
    model: nn.Module,
    dummy_input: ExampleInputsLike | None = None,
    adjacency_map: Mapping[str, AdjacentsEntry] | None = None,
) -> nn.Module:
    """Fold every batch norm that directly follows a convolution or linear layer into it, in place; returns ``model``.

    Layers: Linear and convolutions of one to three dimensions, transposed and grouped ones too. Batch norms: those of
    torch with running statistics, and FrozenBatchNorm2d of other libraries. The connections come from
    ``adjacency_map`` or from tracing the model on ``dummy_input``.

    The layer stays the same module and its weight the same parameter, with new values; a layer without a bias gets a
    new parameter for it, which an optimizer made before does not know. The batch norm becomes ``nn.Identity`` and its
    parameters are gone; ``layer.fused_modules`` lists its name. Evaluation outputs stay equal up to rounding.

    Left as they are: batch norms without running statistics, layers whose output goes elsewhere too, layers and batch
    norms called more than once, weights that are tied, parametrized or computed, modules whose hooks or own forward do
    more, and channels that do not match. Everything is computed before anything is changed, so an error leaves the
    model untouched. Hooks on a batch norm that only look are gone with it.

    Raises :class:`ArgumentError` when neither source of connections is given, :class:`GraphError` when the model cannot
    be traced. Example: weight 2, no bias, gamma 3, beta 1, mean 4, var 1 (eps 0) fold to weight 6, bias -11.
    """
    pairs = foldable_pairs(model, dummy_input, adjacency_map)
    folded = [(pair, folded_parameters(*pair.modules)) for pair in pairs]
    for pair, parameters in folded:
        layer, _ = pair.modules
        _set_parameters_(layer, parameters)
        put_in_place_(model, pair, layer)
    return model


def foldable_pairs(
    model: nn.Module,
    dummy_input: ExampleInputsLike | None = None,
    adjacency_map: Mapping[str, AdjacentsEntry] | None = None,
) -> list[Chain]:
    """The (layer, batch norm) pairs that can be folded, in the order they run; raises as :func:`fold_batch_norms`."""
    connections = connections_of(model, dummy_input, adjacency_map)
    tied = _tied_parameters(model)
    pairs = []
    for pair in find_chains(model, (lambda module: isinstance(module, _FOLDABLE), is_batch_norm), connections):
        reason = _obstacle(pair, tied)
        if reason:
            _logger.debug("%s is not folded into %s: %s", pair.names[1], pair.names[0], reason)
        else:
            pairs.append(pair)
    return pairs


def is_batch_norm(module: nn.Module) -> bool:
    """Whether a module is a batch norm: torch's, or another library's with frozen statistics (by name and buffers)."""
    if isinstance(module, _BATCH_NORMS):
        return True
    buffers = dict(module.named_buffers(recurse=False))
    needed = {"weight", "bias", "running_mean", "running_var"}
    return type(module).__name__.startswith("FrozenBatchNorm") and needed <= buffers.keys()


def folded_parameters(layer: nn.Module, norm: nn.Module) -> FoldedParameters:
    """Weight and bias of ``layer`` with ``norm`` folded into them; neither is changed.

    Computed in float64 and rounded once. A batch norm without scale and shift has 1 and 0.
    """
    weight, mean, var = _double(layer.weight), _double(norm.running_mean), _double(norm.running_var)
    # Old FrozenBatchNorm2d have no eps.
    scale = torch.rsqrt(var + float(getattr(norm, "eps", 0.0)))
    if norm.weight is not None:
        scale = scale * _double(norm.weight)
    bias = torch.zeros_like(mean) if layer.bias is None else _double(layer.bias)
    bias = (bias - mean) * scale
    if norm.bias is not None:
        bias = bias + _double(norm.bias)
    weight = weight * _along_outputs(layer, scale)
    kind = {"dtype": layer.weight.dtype, "device": layer.weight.device}
    return FoldedParameters(weight.to(**kind), bias.to(**kind))  # type: ignore[call-overload]


def _along_outputs(layer: nn.Module, scale: Tensor) -> Tensor:
    """``scale`` shaped to multiply the weight; a transposed weight is (in, out / groups, ...), group after group."""
    rank = layer.weight.dim()  # type: ignore[operator]
    if not isinstance(layer, _TRANSPOSED):
        return scale.reshape(-1, *[1] * (rank - 1))
    per_group = scale.reshape(layer.groups, -1).repeat_interleave(layer.in_channels // layer.groups, dim=0)
    return per_group.reshape(layer.in_channels, -1, *[1] * (rank - 2))


def _double(tensor: Any) -> Tensor:
    found: Tensor = tensor
    return found.detach().double()


def _set_parameters_(layer: nn.Module, parameters: FoldedParameters) -> None:
    with torch.no_grad():
        layer.weight.copy_(parameters.weight)  # type: ignore[operator]
        if layer.bias is not None:
            layer.bias.copy_(parameters.bias)  # type: ignore[operator]
        else:
            layer.bias = nn.Parameter(parameters.bias, requires_grad=bool(layer.weight.requires_grad))


def _tied_parameters(model: nn.Module) -> set[int]:
    """Parameters that are registered with several modules."""
    seen: set[int] = set()
    tied: set[int] = set()
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                (tied if id(parameter) in seen else seen).add(id(parameter))
    return tied


def _obstacle(pair: Chain, tied: set[int]) -> str:
    """Why a pair cannot be folded; "" where it can."""
    layer, norm = pair.modules
    if norm.running_mean is None or norm.running_var is None:
        return "it does not track running statistics"
    if parametrize.is_parametrized(layer) or "weight" not in layer._parameters or "bias" not in layer._parameters:
        return "the layer's weight is computed from others"
    if any(id(parameter) in tied for parameter in layer._parameters.values()):
        return "the layer's weight is tied to another"
    if any(entry.shares for entries in pair.entries for entry in entries):
        return "other modules or functions read their parameters too"
    if _does_more(pair):
        return "a hook or a forward of their own does more than the layer and the norm alone"
    shape = pair.entries[0][0].shape
    if shape and len(shape) != _expected_rank(layer):
        return "it normalizes another dimension than the layer's channels"
    channels = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
    if norm.running_mean.numel() != channels:  # type: ignore[operator]
        return f"it has another number of channels than the layer's {channels}"
    return ""


def _does_more(pair: Chain) -> bool:
    """Whether a module runs anything but its own operator on its own parameters: subclasses, hooks."""
    (layer_entries, norm_entries), norm = pair.entries, pair.modules[1]
    if len(layer_entries) != 1 or layer_entries[0].op_meta.type not in _LAYER_OPERATIONS:
        return True
    if any(entry.computed for entry in layer_entries):
        return True
    if isinstance(norm, _BATCH_NORMS):
        return (
            len(norm_entries) != 1 or norm_entries[0].op_meta.type != "BatchNormalization" or norm_entries[0].computed
        )
    return bool(norm._forward_hooks or norm._forward_pre_hooks)


def _expected_rank(layer: nn.Module) -> int:
    """Dimensions of the layer's output when its channels are dimension 1."""
    return 2 if isinstance(layer, nn.Linear) else int(layer.weight.dim())  # type: ignore[operator]
