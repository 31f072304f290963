"""Weights of a traced graph: as integers, with the batch norm behind their layer folded in (layer 4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from distiller_ng.export._constants import Constants
from distiller_ng.export._dequantize import DEQUANTIZE, FAKE_QUANTIZE
from distiller_ng.export._grids import Grids
from distiller_ng.export._naming import layer_name
from distiller_ng.ops.linear_quantization import QuantizationParameters, along_axis, quantize

__all__ = [
    "CONVOLUTIONS",
    "LINEAR",
    "TRANSPOSED",
    "fold_norms",
    "integer_weight",
    "lookup_integers",
    "scaled_integers",
    "store_integers",
]

_aten = torch.ops.aten
_NORM = _aten._native_batch_norm_legit_no_training.default
TRANSPOSED = {_aten.conv_transpose1d.default, _aten.conv_transpose2d.input, _aten.conv_transpose3d.input}
CONVOLUTIONS = {
    *(_aten.conv1d.default, _aten.conv2d.default, _aten.conv3d.default),
    *(_aten.conv1d.padding, _aten.conv2d.padding, _aten.conv3d.padding),
    *TRANSPOSED,
}
LINEAR = {_aten.linear.default}


@dataclass(frozen=True, slots=True)
class _Fold:
    """``y * factor + shift`` of each channel: what a batch norm does in evaluation. Float64."""

    factor: Tensor
    shift: Tensor


def store_integers(constants: Constants, grids: Grids) -> None:
    """Every constant that is rounded to a grid becomes integers and their grid."""
    graph = constants.module.graph
    for node in list(graph.find_nodes(op="call_function", target=FAKE_QUANTIZE)):
        values, grid = constants.tensor(node.args[0]), grids.written(node)
        if values is None or grid is None:
            continue
        source = node.args[0]
        name = str(source.target) if isinstance(source, fx.Node) and source.op == "get_attr" else layer_name(node)
        _put(constants, node, integer_weight(constants, name, quantize(values, grid), grid, node))


def integer_weight(
    constants: Constants, name: str, integers: Tensor, grid: QuantizationParameters, before: fx.Node
) -> fx.Node:
    """A node ``dequantize(integers, scale, zero_point, axis)`` of new constants."""
    parts = {"": integers, "_scale": grid.scale.float(), "_zero_point": grid.zero_point}
    if grid.axis is None:
        parts = {key: value if not key else value.reshape(()) for key, value in parts.items()}
    arguments = [constants.add(name + suffix, value, before) for suffix, value in parts.items()]
    with constants.module.graph.inserting_before(before):
        node = constants.module.graph.call_function(DEQUANTIZE, (*arguments, grid.axis))
    node.meta.update({key: value for key, value in before.meta.items() if key in ("nn_module_stack", "stack_trace")})
    node.meta["integer_range"] = (grid.qmin, grid.qmax)
    node.meta["val"] = torch.empty(integers.shape)
    return node


def lookup_integers(constants: Constants, grids: Grids) -> None:
    """Rows of a quantized table are looked up as integers: dequantizing the whole table first would cost more."""
    for node in list(constants.module.graph.find_nodes(op="call_function", target=_aten.embedding.default)):
        table = node.args[0]
        if not isinstance(table, fx.Node) or table.target is not DEQUANTIZE or table.args[3] is not None:
            continue
        with constants.module.graph.inserting_before(node):
            rows = constants.module.graph.call_function(_aten.embedding.default, (table.args[0], *node.args[1:]))
            found = constants.module.graph.call_function(DEQUANTIZE, (rows, *table.args[1:]))
        rows.meta.update({**node.meta, "val": node.meta["val"].to(torch.int8)})
        found.meta.update(node.meta)
        found.meta["integer_range"] = table.meta["integer_range"]
        _put(constants, node, found)


def fold_norms(constants: Constants, grids: Grids) -> list[str]:
    """Fold every batch norm into the convolution or linear layer before it; what could not be done exactly.

    A quantized weight keeps its integers: the factor goes into the scales, its sign into the integers.
    """
    notes: list[str] = []
    for norm in list(constants.module.graph.find_nodes(op="call_function", target=_NORM)):
        layer, output = norm.args[0], _only_output(norm)
        if not isinstance(layer, fx.Node) or layer.target not in CONVOLUTIONS | LINEAR or len(layer.users) != 1:
            continue
        fold = _fold_of(constants, norm)
        if fold is None or output is None or (layer.target in LINEAR and _dims(layer) != 2):
            continue
        axis = 1 if layer.target in TRANSPOSED else 0
        if layer.target in TRANSPOSED and _groups(layer) != 1:
            notes.append(f"the batch norm behind {layer_name(layer)!r} (grouped, transposed) is not folded")
            continue
        weight = _folded_weight(constants, grids, layer, fold.factor, axis, notes)
        bias = constants.tensor(layer.args[2]) if len(layer.args) > 2 and layer.args[2] is not None else None
        if weight is None or (len(layer.args) > 2 and layer.args[2] is not None and bias is None):
            continue
        own = torch.zeros_like(fold.shift) if bias is None else bias.double()
        kept = weight.meta["val"].dtype
        shifted = (own * fold.factor + fold.shift).to(kept)
        node = constants.add(f"{layer_name(layer)}_bias", shifted, layer)
        layer.args = (layer.args[0], weight, node, *layer.args[3:])
        _put(constants, output, layer)
        constants.module.graph.erase_node(norm)
    return notes


def _folded_weight(
    constants: Constants, grids: Grids, layer: fx.Node, factor: Tensor, axis: int, notes: list[str]
) -> fx.Node | None:
    weight = layer.args[1]
    name = f"{layer_name(layer)}_weight"
    if not isinstance(weight, fx.Node):
        return None
    if weight.target is not DEQUANTIZE:
        values = constants.tensor(weight)
        if values is None:
            return None
        return constants.add(name, (values.double() * along_axis(factor, values.dim(), axis)).to(values.dtype), layer)
    integers, grid = constants.tensor(weight.args[0]), grids.written(weight)
    if integers is None or grid is None or grid.axis not in (None, axis):
        return None
    turned, moved = scaled_integers(integers, grid, factor, axis)
    if moved:
        notes.append(f"{moved} weights of {layer_name(layer)!r} moved by one step: the batch norm turns their sign")
    return integer_weight(constants, name, *turned, layer)


def scaled_integers(
    integers: Tensor, grid: QuantizationParameters, factor: Tensor, axis: int
) -> tuple[tuple[Tensor, QuantizationParameters], int]:
    """Integers and grid of ``factor`` times a weight, and how many integers had to be clipped."""
    channels = factor.numel()
    scale = grid.scale.double().reshape(-1).expand(channels) * factor.abs()
    dead = scale.float() < torch.finfo(torch.float32).tiny  # a channel that the batch norm turns off
    zero = grid.zero_point.reshape(-1).expand(channels).to(torch.int64)
    wide, low, high = integers.to(torch.int64), *_limits(grid)
    negative = factor < 0
    signs = along_axis(torch.where(negative, -1, 1), integers.dim(), axis)
    offset = along_axis(zero, integers.dim(), axis)
    if bool((zero == 0).all()):
        wide = wide * signs
        moved = int(((wide < low) | (wide > high)).sum())
        wide = wide.clamp(low, high)
        qmin, qmax = (grid.qmin, grid.qmax) if not bool(negative.any()) else _both_ways(grid, low, high)
    else:  # mirrored in the middle of the range, where the zero point goes too
        mirrored = grid.qmin + grid.qmax
        wide = torch.where(signs < 0, mirrored - wide, wide)
        zero, moved, qmin, qmax = torch.where(negative, mirrored - zero, zero), 0, grid.qmin, grid.qmax
        offset = along_axis(zero, integers.dim(), axis)
    wide = torch.where(along_axis(dead, integers.dim(), axis), offset, wide)
    params = QuantizationParameters(
        torch.where(dead, 1.0, scale).float(), zero.to(grid.zero_point.dtype), qmin, qmax, axis
    )
    return (wide.to(integers.dtype), params), moved


def _limits(grid: QuantizationParameters) -> tuple[int, int]:
    limits = torch.iinfo(grid.zero_point.dtype)
    return int(limits.min), int(limits.max)


def _both_ways(grid: QuantizationParameters, low: int, high: int) -> tuple[int, int]:
    return max(min(grid.qmin, -grid.qmax), low), min(max(grid.qmax, -grid.qmin), high)


def _fold_of(constants: Constants, norm: fx.Node) -> _Fold | None:
    _, gamma, beta, mean, variance, _, eps = norm.args
    known = [constants.tensor(one) for one in (mean, variance)]
    if any(one is None for one in known):
        return None
    centre, spread = (one.double() for one in known if one is not None)
    factor = torch.rsqrt(spread + float(eps))  # type: ignore[arg-type]
    if gamma is not None:
        value = constants.tensor(gamma)
        if value is None:
            return None
        factor = factor * value.double()
    shift = -centre * factor
    if beta is not None:
        value = constants.tensor(beta)
        if value is None:
            return None
        shift = shift + value.double()
    return _Fold(factor, shift)


def _only_output(norm: fx.Node) -> fx.Node | None:
    users = list(norm.users)
    return users[0] if len(users) == 1 and users[0].args[1] == 0 else None


def _groups(layer: fx.Node) -> int:
    return int(layer.args[6]) if len(layer.args) > 6 else 1  # type: ignore[arg-type]


def _dims(node: fx.Node) -> int:
    value = node.meta.get("val")
    return value.dim() if isinstance(value, Tensor) else 0


def _put(constants: Constants, old: fx.Node, new: Any) -> None:
    old.replace_all_uses_with(new)
    constants.module.graph.erase_node(old)
