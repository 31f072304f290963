"""A quantized graph in the operators that torch's x86 compiler turns into int8 kernels (layer 4).

Activations become ``quantized_decomposed::quantize_per_tensor`` and ``dequantize_per_tensor`` in uint8, weights
``dequantize_per_channel`` of int8: the patterns of PT2E quantization, which torchao registers and inductor's freezing
pass replaces by oneDNN's int8 convolutions and matrix products.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

from distiller_ng.export._dequantize import DEQUANTIZE, FAKE_QUANTIZE
from distiller_ng.export._grids import bits_of
from distiller_ng.export._naming import layer_name
from distiller_ng.export._weights import CONVOLUTIONS, LINEAR, TRANSPOSED
from distiller_ng.export.quantized_graph import QuantizedGraph
from distiller_ng.ops.linear_quantization import LinearQuantMode, QuantizationParameters, along_axis, quantize
from distiller_ng.ops.optional import require
from distiller_ng.quantization.exporters import LayerPrecision

__all__ = ["lower_dynamically_", "lower_to_pt2e_"]

_aten = torch.ops.aten
_CONVOLUTIONS = CONVOLUTIONS - TRANSPOSED - {_aten.conv3d.default, _aten.conv3d.padding}
_PRODUCTS = {_aten.matmul.default, _aten.bmm.default, _aten.mm.default}
_NO_PRODUCT = "the compiler has no int8 kernel for products of two activations"
_WIDEST = 8  # bits of the kernels


def lower_to_pt2e_(graph: QuantizedGraph) -> tuple[LayerPrecision, ...]:
    """Rewrite ``graph.module`` in place; what each layer computes with in the compiled model.

    Values stay what they were: a signed grid moves to uint8 with its zero point. Weights that the kernels cannot take
    (asymmetric, more than 8 bits, transposed or 3-d convolutions) or that meet floating point activations become
    floating point constants on their grid. What no pattern covers is written as plain arithmetic.
    """
    require("torchao.quantization.pt2e", "torchao", "exporting to torchao")
    operators: Any = torch.ops.quantized_decomposed
    nodes = graph.module.graph
    for node in nodes.nodes:
        _take_padding(node)
    reasons = {name: text for node in nodes.nodes for name, text in _reason(graph, node)}
    integer = {node: _input_grid(graph, node.args[0]) for node in nodes.nodes if _is_integer(graph, node)}
    for node in list(nodes.find_nodes(op="call_function", target=DEQUANTIZE)):
        _lower_weight(graph, node, operators, integer)
    for node in list(nodes.find_nodes(op="call_function", target=FAKE_QUANTIZE)):
        grid = graph.grids.written(node)
        plain = grid is None or grid.axis is not None or bits_of(grid) > _WIDEST or not _is_single(node.args[0])
        new = (
            _arithmetic(graph, node) if plain or grid is None else _rounded(graph, node, node.args[0], grid, operators)
        )
        _put(graph, node, new)
    for layer, grid in integer.items():
        source = layer.args[0]
        if isinstance(source, fx.Node) and source.target is not operators.dequantize_per_tensor.default and grid:
            # Behind a pooling or a reshape: the kernels are found only right behind the quantization.
            layer.replace_input_with(source, _rounded(graph, layer, source, grid, operators))
    _tidy(graph.module)
    bits = {layer_name(layer): None if grid is None else bits_of(grid) for layer, grid in integer.items()}
    return tuple(_precision(layer, bits, reasons) for layer in graph.layers)


def lower_dynamically_(graph: QuantizedGraph) -> int:
    """Let every linear layer of a floating point graph compute in int8, its input quantized by its own range, in place;
    how many there are. Weights: int8, symmetric, one scale for each output channel.
    """
    require("torchao.quantization.pt2e", "torchao", "exporting to torchao")
    operators: Any = torch.ops.quantized_decomposed
    calls, count = graph.module.graph, 0
    for layer in list(calls.find_nodes(op="call_function", target=_aten.linear.default)):
        weight = graph.constants.tensor(layer.args[1])
        if weight is None or weight.dtype != torch.float32 or not _is_single(layer.args[0]):
            continue
        grid = QuantizationParameters.of_tensor(weight, 8, LinearQuantMode.SYMMETRIC_RESTRICTED, axis=0)
        parts = {
            "": quantize(weight, grid),
            "_scale": grid.scale.float(),
            "_zero": torch.zeros(len(weight), dtype=torch.int64),
        }
        name = f"{layer_name(layer)}_weight"
        arguments = [graph.constants.add(name + suffix, value, layer) for suffix, value in parts.items()]
        limits = (0, 255, torch.uint8)
        with calls.inserting_before(layer):
            chosen = calls.call_function(
                operators.choose_qparams.tensor, (layer.args[0], 0, 255, torch.finfo(torch.float32).eps, torch.uint8)
            )
            scale, zero = (calls.call_function(operator.getitem, (chosen, place)) for place in (0, 1))
            values = calls.call_function(operators.quantize_per_tensor.tensor, (layer.args[0], scale, zero, *limits))
            values = calls.call_function(operators.dequantize_per_tensor.tensor, (values, scale, zero, *limits))
            new = calls.call_function(operators.dequantize_per_channel.default, (*arguments, 0, -128, 127, torch.int8))
        layer.args = (values, new, *layer.args[2:])
        count += 1
    _tidy(graph.module)
    return count


def _precision(layer: LayerPrecision, bits: Mapping[str, int | None], reasons: Mapping[str, str]) -> LayerPrecision:
    if layer.name in bits:
        return dataclasses.replace(layer, reason="", activation_bits=bits[layer.name])
    return dataclasses.replace(layer, reason=layer.reason or reasons.get(layer.name, ""))


def _take_padding(node: fx.Node) -> None:
    """Zeros that are put around an input by an operator of their own become padding of the convolution itself."""
    if node.target is not _aten.conv2d.default or not isinstance(node.args[0], fx.Node) or not _pads(node.args[0]):
        return
    pad = node.args[0]
    sizes = [*pad.args[1], 0, 0, 0, 0]  # type: ignore[misc]
    left, right, top, bottom = (int(size) for size in sizes[:4])
    if left != right or top != bottom or min(left, top) < 0 or len(pad.args[1]) > 4:  # type: ignore[arg-type]
        return
    defaults: list[Any] = [None, None, None, [1, 1], [0, 0], [1, 1], 1]
    filled: list[Any] = [*node.args, *defaults[len(node.args) :]]
    vertical, horizontal = filled[4] if len(filled[4]) == 2 else filled[4] * 2
    node.args = (pad.args[0], *filled[1:4], [vertical + top, horizontal + left], *filled[5:])


def _pads(node: fx.Node) -> bool:
    """Whether an operator only puts zeros around a tensor."""
    if node.target is _aten.constant_pad_nd.default:
        return not (len(node.args) > 2 and node.args[2])
    if node.target is _aten.pad.default:
        mode = node.args[2] if len(node.args) > 2 else "constant"
        return mode == "constant" and not (len(node.args) > 3 and node.args[3])
    return False


def _input_grid(graph: QuantizedGraph, node: Any) -> QuantizationParameters | None:
    """The grid of a layer's input; zeros lie on every grid that has them."""
    while isinstance(node, fx.Node) and _pads(node):
        node = node.args[0]
    grid = graph.grids.of(node)
    return grid if grid is not None and grid.axis is None and grid.qmin <= int(grid.zero_point) <= grid.qmax else None


def _reason(graph: QuantizedGraph, node: fx.Node) -> list[tuple[str, str]]:
    """Why a layer with quantized weight and input has no int8 kernel."""
    if node.op != "call_function" or len(node.args) < 2:
        return []
    weight = node.args[1]
    if not isinstance(weight, fx.Node) or weight.target is not DEQUANTIZE:
        return [(layer_name(node), _NO_PRODUCT)] if node.target in _PRODUCTS else []
    grid = graph.grids.written(weight)
    text = "" if grid is None else _obstacle(node, weight, grid)
    return [(layer_name(node), text)] if text else []


def _is_integer(graph: QuantizedGraph, node: fx.Node) -> bool:
    """Whether an int8 kernel can compute the layer."""
    if node.op != "call_function" or node.target not in _CONVOLUTIONS | LINEAR:
        return False
    weight, values = node.args[1], _input_grid(graph, node.args[0])
    if not isinstance(weight, fx.Node) or weight.target is not DEQUANTIZE or values is None:
        return False
    return bits_of(values) <= _WIDEST and _is_single(node.args[0]) and not _reason(graph, node)


def _is_single(node: Any) -> bool:
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    return isinstance(value, Tensor) and value.dtype == torch.float32


def _rounded(
    graph: QuantizedGraph, before: fx.Node, source: Any, grid: QuantizationParameters, operators: Any
) -> fx.Node:
    """Quantized to uint8 and back."""
    shift = 0 if grid.qmin >= 0 else -grid.qmin
    scale, zero = float(grid.scale), int(grid.zero_point) + shift
    arguments = (scale, zero, grid.qmin + shift, grid.qmax + shift, torch.uint8)
    with graph.module.graph.inserting_before(before):
        quantized = graph.module.graph.call_function(operators.quantize_per_tensor.default, (source, *arguments))
        value = graph.module.graph.call_function(operators.dequantize_per_tensor.default, (quantized, *arguments))
    for new in (quantized, value):
        new.meta.update(_origin(before))
    return value


def _arithmetic(graph: QuantizedGraph, node: fx.Node) -> fx.Node:
    """What ``fake_quantize`` computes, in plain operators."""
    source, scale, zero, axis, qmin, qmax = node.args
    value = source.meta["val"] if isinstance(source, fx.Node) else torch.empty(())
    wide = torch.float64 if value.dtype == torch.float64 else torch.float32
    shape = [1] * value.dim()
    if axis is not None:
        shape[int(axis)] = -1  # type: ignore[arg-type]
    calls = graph.module.graph
    with calls.inserting_before(node):
        step, offset = (
            calls.call_function(
                _aten.reshape.default,
                (calls.call_function(_aten.to.dtype, (part, wide)), shape if axis is not None else []),
            )
            for part in (scale, zero)
        )
        steps = calls.call_function(_aten.div.Tensor, (calls.call_function(_aten.to.dtype, (source, wide)), step))
        steps = calls.call_function(_aten.add.Tensor, (calls.call_function(_aten.round.default, (steps,)), offset))
        steps = calls.call_function(_aten.clamp.default, (steps, qmin, qmax))
        steps = calls.call_function(_aten.mul.Tensor, (calls.call_function(_aten.sub.Tensor, (steps, offset)), step))
        return calls.call_function(_aten.to.dtype, (steps, value.dtype))


def _origin(node: fx.Node) -> dict[str, Any]:
    return {key: kept for key, kept in node.meta.items() if key in ("nn_module_stack", "stack_trace", "val")}


def _put(graph: QuantizedGraph, old: fx.Node, new: fx.Node) -> None:
    old.replace_all_uses_with(new)
    graph.module.graph.erase_node(old)


def _lower_weight(graph: QuantizedGraph, node: fx.Node, operators: Any, integer: Mapping[fx.Node, Any]) -> None:
    integers, grid = graph.constants.tensor(node.args[0]), graph.grids.written(node)
    if grid is None:
        return
    calls = graph.module.graph
    if integers is None:  # rows of a table, looked up first
        table = node.args[0]
        stored = graph.constants.tensor(table.args[0]) if isinstance(table, fx.Node) else None
        if stored is None:
            return
        place = (float(grid.scale), int(grid.zero_point), grid.qmin, grid.qmax, stored.dtype)
        with calls.inserting_before(node):
            value = calls.call_function(operators.dequantize_per_tensor.default, (table, *place))
        value.meta.update(_origin(node))
        _put(graph, node, value)
        return
    name = f"{layer_name(next(iter(node.users)))}_weight" if node.users else "weight"
    whole = graph.constants.add(name, _dequantized(integers, grid), node)
    for user in list(node.users):
        if user not in integer:
            user.replace_input_with(node, whole)
            continue
        channels = integers.shape[0]
        parts = {
            "": (integers.to(torch.int64) - _middle(grid)).to(torch.int8),
            "_scale": grid.scale.float().reshape(-1).expand(channels),
            "_zero": torch.zeros(channels, dtype=torch.int64),
        }
        arguments = [graph.constants.add(name + suffix, value, user) for suffix, value in parts.items()]
        with calls.inserting_before(user):
            new = calls.call_function(operators.dequantize_per_channel.default, (*arguments, 0, -128, 127, torch.int8))
        new.meta.update(_origin(node))
        user.replace_input_with(node, new)
    if not node.users:
        calls.erase_node(node)


def _obstacle(user: fx.Node, weight: fx.Node, grid: QuantizationParameters) -> str:
    """Why the int8 kernels cannot take a weight where it is used; "" where they can."""
    if user.target not in _CONVOLUTIONS | LINEAR or user.args[1] is not weight:
        return "there is no int8 kernel for this operator"
    if bits_of(grid) > _WIDEST:
        return f"its weight has more than {_WIDEST} bits"
    if grid.axis not in (None, 0):
        return "its weight is quantized along its input channels"
    middle = _middle(grid)
    if bool((grid.zero_point.to(torch.int64) != middle).any()):
        return "its weight is quantized asymmetrically, and the int8 kernels take symmetric weights"
    return ""


def _middle(grid: QuantizationParameters) -> int:
    """What to subtract from the integers so that zero is 0: 128 for symmetric weights in uint8."""
    return 0 if grid.qmin < 0 else (grid.qmin + grid.qmax + 1) // 2


def _dequantized(integers: Tensor, grid: QuantizationParameters) -> Tensor:
    scale, zero = (along_axis(part.double(), integers.dim(), grid.axis) for part in (grid.scale, grid.zero_point))
    if grid.axis is None:
        scale, zero = scale.reshape(()), zero.reshape(())
    return ((integers.double() - zero) * scale).float()


def _tidy(module: fx.GraphModule) -> None:
    module.graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))
    used = {str(node.target) for node in module.graph.find_nodes(op="get_attr")}
    for name in [name for name, _ in [*module.named_parameters(), *module.named_buffers()] if name not in used]:
        owner, _, leaf = name.rpartition(".")
        delattr(module.get_submodule(owner), leaf)
    module.graph.lint()
    module.recompile()
