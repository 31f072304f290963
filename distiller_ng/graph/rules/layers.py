"""Convolutions, linear layers and embeddings: where channels begin and end (layer 1)."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import fx

from distiller_ng.graph.coupling import Choice, rows_of
from distiller_ng.graph.labels import Labels
from distiller_ng.graph.parameters import ParameterView
from distiller_ng.graph.walker import Partition, Value, Walker, rule

_MIXED = "its input's channels are mixed with other dimensions"


@rule("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "convolution")
def convolve(walker: Walker, node: fx.Node, args: dict[str, Any]) -> Value | None:
    """Filters make channels, input channels read them; the weight is (out, in / groups, ...) or transposed."""
    weight, bias = weight_of(walker, args["weight"]), weight_of(walker, args["bias"])
    data = walker.labels(args["input"])
    shape = walker.shape(node)
    if weight is None or (args["bias"] is not None and bias is None):
        return unclear_weight(walker, node, args)
    transposed = "transpose" in str(node.target)
    batched = len(shape) == len(weight.shape)
    channel = 1 if batched else 0
    data = walker.only_along(data, [channel], node, _MIXED)
    inputs = data.vector(channel)
    groups = int(args["groups"])
    outputs = walker.coupling.fresh(shape[channel]) if shape[channel] > 1 else None
    out_dim, in_dim = (1, 0) if transposed else (0, 1)
    if groups == 1:
        walker.axis(weight, in_dim, inputs, feeds=False)
        walker.axis(weight, out_dim, outputs)
    else:
        _grouped(walker, node, weight, (inputs, outputs), groups, transposed)
    walker.axis(bias, 0, outputs)
    return _labelled(outputs, channel, shape, _zero(weight, bias))


def _grouped(walker: Walker, node: fx.Node, weight: ParameterView, ends: tuple[Any, Any], groups: int, t: bool) -> None:
    """Either whole groups go, or the same positions in every group."""
    inputs, outputs = ends
    if outputs is None:
        return
    out = outputs.reshape(groups, -1)
    reason = walker.why(node, f"its {groups} groups must stay of one size")
    if inputs is None:
        ins = np.zeros((groups, 1), np.int64)
        walker.coupling.union(*rows_of(out, [0, 1])[1])
        walker.coupling.explain(out, reason)
    else:
        ins = inputs.reshape(groups, -1)
        whole = np.concatenate([ins, out], axis=1)
        by_group = rows_of(whole, [0, 1])[0]
        by_place = tuple(
            np.concatenate(side) for side in zip(rows_of(ins, [0, 1])[1], rows_of(out, [0, 1])[1], strict=True)
        )
        walker.coupling.choose(Choice(whole, (by_group, (by_place[0], by_place[1])), reason))
    # A group that goes takes its rows of dimension 0 with it; what dimension 1 holds is one group's.
    rows, columns = (ins, out) if t else (out, ins)
    if rows.shape[1] * groups == weight.shape[0]:
        walker.axis(weight, 0, rows.reshape(-1) if rows.any() else None, feeds=not t)
    members = 1 if columns.any() and columns.shape[1] == weight.shape[1] > 1 else None
    walker.partitions.append(Partition(weight, columns if columns.any() else rows, members, feeds=t))


@rule("linear")
def linear(walker: Walker, node: fx.Node, args: dict[str, Any]) -> Value | None:
    """Rows of the weight make channels, columns read them."""
    weight, bias = weight_of(walker, args["weight"]), weight_of(walker, args["bias"])
    if weight is None or len(weight.shape) != 2 or (args["bias"] is not None and bias is None):
        return unclear_weight(walker, node, args)
    shape = walker.shape(node)
    data = walker.labels(args["input"])
    data = walker.only_along(data, [len(data.shape) - 1], node, _MIXED)
    outputs = walker.coupling.fresh(shape[-1]) if shape[-1] > 1 else None
    walker.axis(weight, 1, data.vector(len(data.shape) - 1), feeds=False)
    walker.axis(weight, 0, outputs)
    walker.axis(bias, 0, outputs)
    return _labelled(outputs, len(shape) - 1, shape, _zero(weight, bias))


@rule("embedding")
def embedding(walker: Walker, node: fx.Node, args: dict[str, Any]) -> Value | None:
    """Columns of the table make channels."""
    weight = weight_of(walker, args["weight"])
    if weight is None:
        return unclear_weight(walker, node, args)
    shape = walker.shape(node)
    walker.pin(weight, [0], walker.why(node, "its rows are looked up by number"))
    outputs = walker.coupling.fresh(shape[-1]) if shape[-1] > 1 else None
    walker.axis(weight, 1, outputs)
    return _labelled(outputs, len(shape) - 1, shape, weight.zero)


def weight_of(walker: Walker, argument: Any) -> ParameterView | None:
    """The parameter a layer's weight or bias is."""
    return walker.parameter(argument)


def _zero(weight: ParameterView, bias: ParameterView | None) -> bool:
    return weight.zero and (bias is None or bias.zero)


def unclear_weight(walker: Walker, node: fx.Node, args: dict[str, Any]) -> Value | None:
    """A layer whose weight is computed in a way that cannot be followed keeps its inputs and outputs."""
    reason = walker.why(
        node, "its weight is computed in forward, not entry by entry (remove the parametrization, or exclude the layer)"
    )
    for source in node.all_input_nodes:
        for labels in walker.all_labels(source):
            walker.coupling.fix(labels.array, reason)
    return None


@rule("*unknown*")
def refuse(walker: Walker, node: fx.Node, args: dict[str, Any]) -> Value | None:
    """Nothing that goes into this operator can lose channels."""
    text = f"{str(node.target).split('.')[-2] if '.' in str(node.target) else node.target!s} is not understood"
    reason = walker.why(node, text)
    for source in node.all_input_nodes:
        for labels in walker.all_labels(source):
            walker.coupling.fix(labels.array, reason)
    return None


def _labelled(outputs: Any, dim: int, shape: tuple[int, ...], zero: bool) -> Labels:
    if outputs is None:
        return Labels.none(shape, zero=zero)
    sizes = [-1 if d == dim else 1 for d in range(len(shape))]
    return Labels(outputs.reshape(sizes), shape, zero=zero)
