"""Operators that work position by position (layer 1)."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
from torch import fx

from distiller_ng.graph.labels import Labels
from distiller_ng.graph.parameters import ParameterView
from distiller_ng.graph.trace import op_name
from distiller_ng.graph.walker import Value, Walker, rule

#: f(0) = 0, and nothing of size 0 becomes infinite.
ZERO_KEEPING = frozenset(
    {"relu", "relu6", "leaky_relu", "prelu", "elu", "selu", "celu", "gelu", "silu", "mish", "hardswish", "hardtanh"}
    | {"tanh", "neg", "abs", "sign", "sqrt", "square", "sin", "tan", "asin", "atan", "sinh", "asinh", "erf", "expm1"}
    | {"log1p", "dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout", "native_dropout", "softshrink"}
    | {
        "hardshrink",
        "softsign",
        "tanhshrink",
        "clone",
        "contiguous",
        "detach",
        "alias",
        "to",
        "_to_copy",
        "round",
        "negative",
    }
    | {"clip", "clamp"}
    | {
        "floor",
        "ceil",
        "trunc",
        "nan_to_num",
        "pow",
        "masked_fill",
        "lift_fresh_copy",
        "lift_fresh",
        "type_as",
        "float",
    }
)
_SAME = ("clone", "contiguous", "detach", "alias", "to", "_to_copy", "dropout", "feature_dropout", "alpha_dropout")
_MORE = ("feature_alpha_dropout", "native_dropout", "lift_fresh_copy", "lift_fresh", "type_as", "nan_to_num", "float")


#: Point-wise operators that torch does not mark as such.
_UNMARKED = ("hardswish", "where", "masked_fill", "rsub", "floor_divide", "multiply", "subtract", "divide", "rrelu")
_UNMARKED_TOO = (
    "true_divide",
    "log_sigmoid",
    "negative",
    "clip",
    "copy",
    "fill",
    "complex",
    "bernoulli",
    "_prelu_kernel",
)
_QUANTIZED = ("fake_quantize_per_tensor_affine", "_fake_quantize_per_tensor_affine_cachemask_tensor_qparams")
_QUANTIZED_ROWS = ("fake_quantize", "fake_quantize_per_channel_affine")


@rule("*pointwise*", *_UNMARKED, *_UNMARKED_TOO)
def pointwise(walker: Walker, node: fx.Node, args: dict[str, Any]) -> Value:
    """Any operator marked as point-wise: its operands' channels are one, position by position."""
    name = op_name(node).rstrip("_")
    shape = walker.shape(node)
    views = [walker.parameter(source) for source in node.all_input_nodes]
    known = [view for view in views if view is not None]
    if known and all(
        view is not None or _single(walker, x) for view, x in zip(views, node.all_input_nodes, strict=True)
    ):
        own = [Labels(np.zeros((1,) * len(view.shape), np.int64), view.shape, view.zero) for view in known]
        return ParameterView.combined(known, shape, zero=_zero_of(name, args, own))
    operands = [walker.labels(source) for source in node.all_input_nodes]
    return walker.merge(operands, shape, node, zero=_zero(name, args, operands))


def _single(walker: Walker, node: fx.Node) -> bool:
    """Whether a tensor holds one value, or follows the size of others."""
    return prod(walker.shape(node)) == 1 or all(x.made and not x.varying for x in walker.results(node))


@rule(*_QUANTIZED)
def quantized(walker: Walker, node: fx.Node, args: dict[str, Any]) -> Value:
    """Rounded to a grid that has a zero."""
    view = walker.parameter(node.all_input_nodes[0])
    return walker.labels(node.all_input_nodes[0]) if view is None else view


@rule(*_QUANTIZED_ROWS)
def quantized_rows(walker: Walker, node: fx.Node, args: dict[str, Any]) -> Value:
    """Rounded to a grid that has a zero, with a scale for each index of one dimension or one for all."""
    source = node.all_input_nodes[0]
    view, axis = walker.parameter(source), args.get("axis")
    rank = len(walker.shape(source))
    grids = [grid for name in ("scale", "zero_point") if isinstance(grid := args.get(name), fx.Node)]
    grids = [grid for grid in grids if prod(walker.shape(grid)) > 1]
    # Zero points of symmetric grids are made as long as the scales are.
    grids = [grid for grid in grids if walker.parameter(grid) is not None or not _single(walker, grid)]
    if axis is None or not grids:
        return walker.labels(source) if view is None else view
    views = [found for grid in grids if (found := walker.parameter(grid)) is not None]
    if len(views) < len(grids):
        data = walker.labels(source)
        return walker.coupling.tie(data, [int(axis)], walker.why(node, "its scales cannot be followed"))
    shape = walker.shape(source)
    placed = [grid.arranged(shape, [0 if d == int(axis) % rank else -1 for d in range(rank)]) for grid in views]
    if view is not None:
        return ParameterView.combined([view, *placed], shape, zero=view.zero)
    data = walker.only_along(walker.labels(source), [int(axis)], node, "its scales belong to one dimension")
    for grid in views:
        walker.axis(grid, 0, data.vector(int(axis)))
    return data


@rule(*_SAME, *_MORE)
def unchanged(walker: Walker, node: fx.Node, args: dict[str, Any]) -> Value:
    """Values stay where they are."""
    source = node.all_input_nodes[0]
    view = walker.parameter(source)
    return view if view is not None else walker.labels(source)


@rule("prelu")
def prelu(walker: Walker, node: fx.Node, args: dict[str, Any]) -> Value:
    """One slope, or one for each channel of dimension 1."""
    data, slope = walker.labels(args["self"]), walker.parameter(args["weight"])
    if slope is not None and slope.shape and slope.shape[-1] > 1 and len(data.shape) > 1:
        data = walker.only_along(data, [1], node, "its slopes belong to dimension 1")
        walker.axis(slope, len(slope.shape) - 1, data.vector(1))
    return data


@rule("glu")
def glu(walker: Walker, node: fx.Node, args: dict[str, Any]) -> Value:
    """The first half of the channels, gated by the second."""
    data = walker.labels(args["self"])
    dim = args["dim"] % len(data.shape)
    if not data.varies(dim):
        return Labels(data.array, walker.shape(node), data.zero)
    half = data.shape[dim] // 2
    first, second = (data.array.take(range(at, at + half), axis=dim) for at in (0, half))
    walker.coupling.union(first, second)
    return Labels(first, walker.shape(node), data.zero)


def _zero(name: str, args: dict[str, Any], operands: list[Labels]) -> bool:
    return _zero_of(name, args, operands, [labels for labels in operands if labels.varying])


def _zero_of(name: str, args: dict[str, Any], operands: list[Labels], labelled: list[Labels] | None = None) -> bool:
    """Whether the result is zero where its labelled operands (default: all) are."""
    labelled = operands if labelled is None else labelled
    if not labelled:
        return False
    if name in ("mul", "multiply"):
        return any(labels.zero for labels in labelled)
    if name in ("div", "divide", "true_divide"):
        return labelled[0] is operands[0] and operands[0].zero and len(labelled) == 1
    if name in ("add", "sub", "subtract", "rsub", "maximum", "minimum", "copy", "where"):
        scalar = isinstance(args.get("other"), int | float) and args.get("other") != 0
        return not scalar and all(labels.zero for labels in operands)
    if name in ("clamp", "clip", "hardtanh", "pow", "masked_fill"):
        return _keeps_zero(args) and labelled[0].zero
    return name in ZERO_KEEPING and labelled[0].zero


def _keeps_zero(args: dict[str, Any]) -> bool:
    """Bounds on both sides of zero, a positive power, zeros to fill with."""
    low, high = args.get("min", args.get("min_val")), args.get("max", args.get("max_val"))
    if any(isinstance(bound, fx.Node) for bound in (low, high)):
        return False
    power, value = args.get("exponent", 1), args.get("value", 0)
    if isinstance(power, fx.Node) or isinstance(value, fx.Node):
        return False
    return bool((low is None or low <= 0) and (high is None or high >= 0) and power > 0 and value == 0)
