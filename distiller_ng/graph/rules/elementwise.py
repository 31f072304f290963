"""Operators that work position by position (layer 1)."""

from __future__ import annotations

from typing import Any

from torch import fx

from distiller_ng.graph.labels import Labels
from distiller_ng.graph.walker import Value, Walker, rule

#: f(0) = 0, and nothing of size 0 becomes infinite.
ZERO_KEEPING = frozenset(
    {"relu", "relu6", "leaky_relu", "prelu", "elu", "selu", "celu", "gelu", "silu", "mish", "hardswish", "hardtanh"}
    | {"tanh", "neg", "abs", "sign", "sqrt", "square", "sin", "tan", "asin", "atan", "sinh", "asinh", "erf", "expm1"}
    | {"log1p", "dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout", "native_dropout", "softshrink"}
    | {"hardshrink", "softsign", "tanhshrink", "clone", "contiguous", "detach", "alias", "to", "_to_copy", "round"}
    | {"floor", "ceil", "trunc", "nan_to_num", "fake_quantize", "lift_fresh_copy", "lift_fresh", "type_as", "float"}
)
_SAME = ("clone", "contiguous", "detach", "alias", "to", "_to_copy", "dropout", "feature_dropout", "alpha_dropout")
_MORE = ("feature_alpha_dropout", "native_dropout", "lift_fresh_copy", "lift_fresh", "type_as", "nan_to_num", "float")


@rule("*pointwise*")
def pointwise(walker: Walker, node: fx.Node, args: dict[str, Any]) -> Value:
    """Any operator marked as point-wise: its operands' channels are one, position by position."""
    name = str(node.target).split(".")[1].rstrip("_")
    operands = [walker.labels(source) for source in node.all_input_nodes]
    return walker.merge(operands, walker.shape(node), node, zero=_zero(name, args, operands))


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
    labelled = [labels for labels in operands if labels.varying]
    if not labelled:
        return False
    if name == "mul":
        return any(labels.zero for labels in labelled)
    if name == "div":
        return labelled[0] is operands[0] and operands[0].zero and len(labelled) == 1
    if name in ("add", "sub", "maximum", "minimum"):
        scalar = isinstance(args.get("other"), int | float) and args.get("other") != 0
        return not scalar and all(labels.zero for labels in operands)
    return name in ZERO_KEEPING and labelled[0].zero
