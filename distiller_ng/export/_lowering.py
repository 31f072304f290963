"""Rewriting a quantized graph into what integer kernels of ONNX runtimes are chosen for (layer 4)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from distiller_ng.export._dequantize import DEQUANTIZE, FAKE_QUANTIZE
from distiller_ng.export._grids import MOVING, PADDING, bits_of
from distiller_ng.export._tracing import fixed_size
from distiller_ng.export._weights import CONVOLUTIONS, LINEAR, TRANSPOSED, integer_weight
from distiller_ng.export.quantized_graph import QuantizedGraph
from distiller_ng.ops.linear_quantization import QuantizationParameters

__all__ = [
    "choose_activation_type_",
    "choose_table_type_",
    "fit_weight",
    "flatten_linear_",
    "integer_biases_",
    "reduce_weight_range_",
    "repeat_grids_",
]

_aten = torch.ops.aten
_TYPES = (torch.int8, torch.uint8)
#: Of the accumulator's 31 bits the bias may take this many; the products take the rest.
_BIAS_LIMIT = 2.0**30


def choose_activation_type_(graph: QuantizedGraph, wanted: torch.dtype) -> None:
    """Activations of 8 bits or fewer get integers of type ``wanted``, moved by 128: the values stay the same."""
    for node in graph.module.graph.find_nodes(op="call_function", target=FAKE_QUANTIZE):
        grid = graph.grids.written(node)
        if grid is None or grid.axis is not None or grid.zero_point.dtype not in _TYPES:
            continue
        if grid.zero_point.dtype == wanted:
            continue
        shift = 128 if wanted == torch.uint8 else -128
        if grid.qmin >= 0 and grid.qmax <= 127:  # both types hold it; saturation then cuts at 0 for nothing
            shift = 0
        moved = (grid.zero_point.to(torch.int32) + shift).to(wanted)
        zero = graph.constants.add(f"{node.name}_zero_point", moved, node)
        node.args = (node.args[0], node.args[1], zero, None, grid.qmin + shift, grid.qmax + shift)


def choose_table_type_(graph: QuantizedGraph, wanted: torch.dtype) -> None:
    """The same for tables whose rows are looked up: they are the activations of what follows."""
    for node in graph.module.graph.find_nodes(op="call_function", target=DEQUANTIZE):
        rows = node.args[0]
        if not isinstance(rows, fx.Node) or rows.target is not _aten.embedding.default:
            continue
        table, zero = graph.constants.tensor(rows.args[0]), graph.constants.tensor(node.args[2])
        if table is None or zero is None or table.dtype not in _TYPES or table.dtype == wanted:
            continue
        shift = 128 if wanted == torch.uint8 else -128
        moved = [(one.to(torch.int32) + shift).to(wanted) for one in (table, zero)]
        rows.args = (graph.constants.add(f"{rows.name}_table", moved[0], rows), *rows.args[1:])
        rows.meta["val"] = rows.meta["val"].to(wanted)
        node.args = (rows, node.args[1], graph.constants.add(f"{rows.name}_zero_point", moved[1], node), node.args[3])
        low, high = node.meta["integer_range"]
        node.meta["integer_range"] = (low + shift, high + shift)


def reduce_weight_range_(graph: QuantizedGraph) -> None:
    """Weights of 8 bits get 7: kernels without VNNI add pairs of products in 16 bits, which would overflow."""
    for layer in _layers(graph):
        weight = layer.args[1]
        if not isinstance(weight, fx.Node) or weight.target is not DEQUANTIZE:
            continue
        integers, grid = graph.constants.tensor(weight.args[0]), graph.grids.written(weight)
        if integers is None or grid is None or bits_of(grid) != 8:
            continue
        low, high = (-64, 63) if grid.zero_point.dtype == torch.int8 else (0, 127)
        zero = torch.div(grid.zero_point.to(torch.int32), 2, rounding_mode="floor")
        centred = integers.double() - _along(grid.zero_point.double(), integers, grid.axis)
        # 127 becomes 63 and not 63.5, so that both ends stay within.
        ratio = 63 / 127 if grid.zero_point.dtype == torch.int8 else 127 / 255
        halved = torch.round(centred * ratio + _along(zero.double(), integers, grid.axis)).clamp(low, high)
        fewer = QuantizationParameters(
            (grid.scale.double() / ratio).float(), zero.to(grid.zero_point.dtype), low, high, grid.axis
        )
        new = integer_weight(graph.constants, f"{weight.name}_7bit", halved.to(integers.dtype), fewer, layer)
        layer.replace_input_with(weight, new)


def integer_biases_(graph: QuantizedGraph, *, largest: int = 127) -> None:
    """Biases of layers with integer kernels become int32, in steps of input scale times weight scale.

    Weights of few bits are stored as larger integers of a smaller scale for that, or the steps would be too coarse; and
    where a bias is so large that it would not fit, the weights get a larger scale. ``largest``: of the stored integers.
    """
    for layer in _layers(graph):
        if layer.target in TRANSPOSED or len(layer.args) < 3 or layer.args[2] is None:
            continue
        if layer.target in CONVOLUTIONS and not all(user.target is FAKE_QUANTIZE for user in layer.users):
            continue  # computes in floating point, where the bias is better left there
        inputs, weight = graph.grids.of(layer.args[0]), layer.args[1]
        if inputs is None or bits_of(inputs) > 8 or not isinstance(weight, fx.Node) or weight.target is not DEQUANTIZE:
            continue
        bias, grid = graph.constants.tensor(layer.args[2]), graph.grids.written(weight)
        integers = graph.constants.tensor(weight.args[0])
        if bias is None or grid is None or integers is None or bits_of(grid) > 8 or grid.axis not in (None, 0):
            continue
        fitted, fine = fit_weight(integers, grid, bias.double(), float(inputs.scale), largest)
        if fitted is not integers:
            layer.replace_input_with(weight, integer_weight(graph.constants, f"{weight.name}_fit", fitted, fine, layer))
        _store_bias(graph, layer, bias, inputs, fine)


def fit_weight(
    integers: Tensor, grid: QuantizationParameters, bias: Tensor, step: float, most: int
) -> tuple[Tensor, QuantizationParameters]:
    """The weight with scales that suit the bias; the same objects where they do already.

    ``step``: of the input's grid; ``most``: the largest integer to store.
    """
    scale, zero = grid.scale.double().reshape(-1), grid.zero_point.reshape(-1)
    largest = int(integers.to(torch.int32).abs().max()) if integers.numel() else 127
    stretch = most // max(largest, 1)
    if grid.zero_point.dtype == torch.int8 and not bool(zero.any()) and stretch > 1:
        integers = (integers.to(torch.int32) * stretch).to(integers.dtype)
        scale = scale / stretch
        grid = QuantizationParameters(scale.float().reshape(grid.scale.shape), grid.zero_point, -most, most, grid.axis)
    smallest = bias.abs() / (_BIAS_LIMIT * step)
    if not bool((scale.expand_as(smallest) < smallest).any()):
        return integers, grid
    # Next to such a bias the products are nothing: coarser integers lose nothing that shows.
    coarse = torch.maximum(scale.expand_as(smallest), smallest)
    zero = zero.expand(coarse.numel()).contiguous()
    offset = _along(zero.double(), integers, 0)
    moved = (integers.double() - offset) * _along(scale.expand_as(smallest) / coarse, integers, 0)
    wide = QuantizationParameters(coarse.float(), zero, grid.qmin, grid.qmax, 0)
    return torch.round(moved + offset).to(integers.dtype), wide


def _store_bias(
    graph: QuantizedGraph, layer: fx.Node, bias: Tensor, inputs: QuantizationParameters, weight: QuantizationParameters
) -> None:
    # The product in float32, as runtimes compute it.
    product = inputs.scale.float().reshape(-1) * weight.scale.float().reshape(-1)
    rounded = torch.round(bias.double() / product.double()).to(torch.int32)
    zeros = torch.zeros_like(product, dtype=torch.int32)
    axis = 0 if product.numel() > 1 else None
    params = QuantizationParameters(product, zeros, -(2**31), 2**31 - 1, axis)
    name = str(layer.args[2].target) if isinstance(layer.args[2], fx.Node) else f"{layer.name}_bias"
    layer.args = (*layer.args[:2], integer_weight(graph.constants, name, rounded, params, layer), *layer.args[3:])


def repeat_grids_(graph: QuantizedGraph) -> None:
    """Whatever computes with a tensor on a grid gets it straight from a rounding, also behind a pooling or a reshape.

    Runtimes choose integer kernels by the neighbours of an operator; rounding to the same grid again changes nothing.
    """
    repeated: dict[fx.Node, fx.Node] = {}
    for node in list(graph.module.graph.nodes):
        if node.op != "call_function" or node.target in MOVING or node.target in (FAKE_QUANTIZE, DEQUANTIZE):
            continue
        for source in node.all_input_nodes:
            grid = graph.grids.of(source)
            if source.target in (FAKE_QUANTIZE, DEQUANTIZE) or grid is None or grid.axis is not None:
                continue
            if source.target in PADDING:  # runtimes take it into the convolution
                continue
            if getattr(node.target, "__name__", "") == "getitem" or not isinstance(source.meta.get("val"), Tensor):
                continue
            if source not in repeated:
                repeated[source] = _rounded_again(graph, source, grid)
            node.replace_input_with(source, repeated[source])


def _rounded_again(graph: QuantizedGraph, source: fx.Node, grid: QuantizationParameters) -> fx.Node:
    limits = torch.iinfo(grid.zero_point.dtype)  # all of it: values that lie on the grid need no cutting
    after = source.next
    scale = graph.constants.add(f"{source.name}_scale", grid.scale.reshape(()), after)
    zero = graph.constants.add(f"{source.name}_zero_point", grid.zero_point.reshape(()), after)
    with graph.module.graph.inserting_before(after):
        arguments = (source, scale, zero, None, int(limits.min), int(limits.max))
        node = graph.module.graph.call_function(FAKE_QUANTIZE, arguments)
    node.meta.update({"val": source.meta["val"], **_origin(source)})
    return node


def flatten_linear_(graph: QuantizedGraph) -> None:
    """Linear layers over ``[N, S, C]`` compute on ``[N * S, C]``: one integer product with its bias (Gemm)."""
    for layer in list(graph.module.graph.find_nodes(op="call_function", target=_aten.linear.default)):
        value, source = layer.meta.get("val"), layer.args[0]
        if graph.grids.of(source) is None or graph.grids.of(layer.args[1]) is None:
            continue
        if not isinstance(value, Tensor) or value.dim() <= 2 or not isinstance(source, fx.Node):
            continue
        known = [fixed_size(size) for size in value.shape]
        if known.count(None) > 1:
            continue
        shape = [-1 if size is None else size for size in known]
        with graph.module.graph.inserting_before(layer):
            width = source.meta["val"].shape[-1]
            rows = graph.module.graph.call_function(_aten.view.default, (source, [-1, int(width)]))
        rows.meta.update({"val": source.meta["val"].reshape(-1, width), **_origin(layer)})
        layer.args = (rows, *layer.args[1:])
        with graph.module.graph.inserting_after(layer):
            back = graph.module.graph.call_function(_aten.view.default, (layer, shape))
        back.meta.update({"val": value, **_origin(layer)})
        layer.replace_all_uses_with(back, delete_user_cb=lambda user, own=back: user is not own)
        layer.meta["val"] = value.reshape(-1, value.shape[-1])
        graph.module.graph.lint()


def _origin(node: fx.Node) -> dict[str, Any]:
    return {key: value for key, value in node.meta.items() if key in ("nn_module_stack", "stack_trace")}


def _layers(graph: QuantizedGraph) -> list[fx.Node]:
    nodes = list(graph.module.graph.nodes)
    return [node for node in nodes if node.op == "call_function" and node.target in CONVOLUTIONS | LINEAR]


def _along(values: Tensor, like: Tensor, axis: int | None) -> Tensor:
    if axis is None:
        return values.reshape(())
    shape = [1] * like.dim()
    shape[axis] = -1
    return values.reshape(shape)
