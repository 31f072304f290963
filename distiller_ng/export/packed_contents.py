"""What a deployed model needs of a compressed one: every tensor with its grid, and how to rebuild the structure
(layer 4).

Quantized layers give the weights they compute with, batch norms folded in where the simulation folds them; the
floating point copies that training needs stay behind.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from distiller_ng.checkpoint.record import CompressionRecord
from distiller_ng.errors import ExportError, listed
from distiller_ng.export.packed_encoding import WeightGrid
from distiller_ng.names import canonical_name, strip_wrappers, unwrap
from distiller_ng.quantization._weights import QuantizedLayer
from distiller_ng.quantization.range_linear_fake import RangeLinearEmbeddingWrapper
from distiller_ng.quantization.range_linear_output import OutputGrid
from distiller_ng.quantization.range_linear_params import RangeLinearQuantParamLayerWrapper

__all__ = ["Contents", "contents_of"]

_WRAPPED = "wrapped_module"


@dataclass
class Contents:
    """Tensors by canonical name, the grids of those that have one, and ``structure`` (JSON) for the loader.

    ``structure``: ``record`` (changes to make again on a fresh model), ``frozen`` (layer: parameters whose quantized
    values are stored), ``identities`` (modules that do nothing any more), ``biases`` (layers that got one) and ``tied``
    (names that share a tensor with another).
    """

    tensors: dict[str, Tensor]
    grids: dict[str, WeightGrid] = field(default_factory=dict)
    structure: dict[str, Any] = field(default_factory=dict)


@torch.no_grad()
def contents_of(model: nn.Module) -> Contents:
    """Everything of ``model`` that a file needs; the model itself is not changed.

    Raises :class:`ExportError` for tensors that are no plain data (lazy, on the meta device).
    """
    plain = unwrap(model)
    state = plain.state_dict(keep_vars=True)
    tensors = {short: state[full] for short, full in strip_wrappers(state).items()}
    odd = [name for name, value in tensors.items() if not _is_plain(value)]
    if odd:
        raise ExportError(f"{listed(odd, limit=4)} cannot be stored: run the model once, on a real device, before")
    contents = Contents(tensors)
    record = CompressionRecord().completed(plain)
    if _is_weights_only(plain):
        _unwrap_weights(plain, contents)
        record = CompressionRecord(entry for entry in record if entry.transform != "quantize")
    elif any(isinstance(module, OutputGrid) for module in plain.modules()):
        for name, wrapper in _wrappers(plain):
            if isinstance(wrapper, RangeLinearQuantParamLayerWrapper) and "w_scale" in wrapper._buffers:
                contents.grids[f"{name}.{_WRAPPED}.weight"] = _grid_in_wrapper(wrapper)
        contents.structure["prepared"] = "PostTrainLinearQuantizer"
    _take_quantized_layers(plain, contents)
    contents.structure["record"] = [entry.as_dict() for entry in record]
    contents.structure["tied"] = _share(contents)
    return contents


def _is_plain(value: Any) -> bool:
    return isinstance(value, Tensor) and not nn.parameter.is_lazy(value) and value.device.type != "meta"


def _wrappers(model: nn.Module) -> Iterator[tuple[str, OutputGrid]]:
    for name, module in model.named_modules(remove_duplicate=False):  # state dicts name shared modules twice too
        if isinstance(module, OutputGrid):
            yield canonical_name(name), module


def _is_weights_only(model: nn.Module) -> bool:
    """Whether post-training quantization changed nothing but weights, so that plain layers can hold them."""
    wrappers = [wrapper for _, wrapper in _wrappers(model)]
    return bool(wrappers) and all(
        isinstance(wrapper, RangeLinearEmbeddingWrapper)
        or (isinstance(wrapper, RangeLinearQuantParamLayerWrapper) and not wrapper.quantizes_activations)
        for wrapper in wrappers
    )


def _unwrap_weights(model: nn.Module, contents: Contents) -> None:
    """Weights and biases under the names they have in the model before quantization; the wrappers' own state goes."""
    wrappers = dict(_wrappers(model))
    kept: dict[str, Tensor] = {}
    for name, value in contents.tensors.items():
        owner, _, attribute = name.rpartition(".")
        if owner in wrappers:
            continue
        inner = owner.removesuffix(f".{_WRAPPED}") if owner.removesuffix(f".{_WRAPPED}") in wrappers else owner
        kept[f"{inner}.{attribute}" if inner else attribute] = value
    for name, wrapper in wrappers.items():
        if "w_scale" in wrapper._buffers:
            contents.grids[f"{name}.weight"] = _grid_in_wrapper(wrapper)
    contents.tensors = kept
    modules = [(canonical_name(name), module) for name, module in model.named_modules()]
    contents.structure["identities"] = [name for name, module in modules if isinstance(module, nn.Identity)]
    contents.structure["biases"] = [name.removesuffix(".bias") for name in kept if name.endswith(".bias")]


def _grid_in_wrapper(wrapper: Any) -> WeightGrid:
    if isinstance(wrapper, RangeLinearQuantParamLayerWrapper) and wrapper.quantizes_activations:
        one = torch.ones(())  # the wrapper computes with the integers themselves
        return WeightGrid(one, torch.zeros((), dtype=torch.int32))
    scale, zero_point = wrapper.w_scale.reshape(-1).cpu(), wrapper.w_zero_point.reshape(-1).cpu()
    axis = wrapper.channel_dim if scale.numel() > 1 else None
    return WeightGrid(scale, zero_point.expand_as(scale), axis, reciprocal=True)


def _take_quantized_layers(model: nn.Module, contents: Contents) -> None:
    """The weights and biases that quantization-aware layers compute with, in place of what they train."""
    frozen: dict[str, list[str]] = {}
    computed: dict[int, dict[str, tuple[Tensor, WeightGrid | None]]] = {}
    for full, layer in model.named_modules(remove_duplicate=False):
        if not isinstance(layer, QuantizedLayer) or not layer.is_quantizing:
            continue
        name = canonical_name(full)
        if id(layer) not in computed:
            computed[id(layer)] = _computes_with(layer)
        for parameter, (value, grid) in computed[id(layer)].items():
            key = f"{name}.{parameter}" if name else parameter
            contents.tensors[key] = value
            if grid is not None:
                contents.grids[key] = grid
            frozen.setdefault(name, []).append(parameter)
    contents.structure["frozen"] = frozen


def _computes_with(layer: QuantizedLayer) -> dict[str, tuple[Tensor, WeightGrid | None]]:
    """The values of the parameters that quantization or folding changes, and their grids."""
    is_folded = layer.__dict__.get("folded_norm") is not None
    found: dict[str, tuple[Tensor, WeightGrid | None]] = {}
    for name in ("weight", "bias") if is_folded else layer.quantized_parameters:
        how = layer.quantized_parameters.get(name)
        value = layer.folded(name) if how is None else layer.quantized(name)
        grid = None if how is None else layer.quantization_parameters(name)
        if value is not None:
            found[name] = (value.detach(), None if grid is None else WeightGrid.of(grid))
    return found


def _share(contents: Contents) -> dict[str, str]:
    """Tied tensors are stored once: ``{name: the name it is stored under}``; those leave ``contents.tensors``."""
    first: dict[tuple[Any, ...], str] = {}
    tied: dict[str, str] = {}
    for name, value in list(contents.tensors.items()):
        where = (value.data_ptr(), value.shape, value.stride(), value.dtype, value.device)
        if value.numel() and where in first:
            tied[name] = first[where]
            del contents.tensors[name]
        elif value.numel():
            first[where] = name
    return tied
