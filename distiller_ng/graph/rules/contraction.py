"""Matrix products of activations, and attention (layer 1)."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import fx

from distiller_ng.graph.labels import Labels
from distiller_ng.graph.parameters import ParameterView
from distiller_ng.graph.rules.layers import refuse
from distiller_ng.graph.walker import Value, Walker, rule


@rule("matmul", "bmm", "mm", "mv", "dot", "__matmul__")
def matmul(walker: Walker, node: fx.Node, args: dict[str, Any]) -> Value | None:
    """(..., n, k) x (..., k, m); a parameter on the right is a linear layer."""
    left, right = node.all_input_nodes[0], node.all_input_nodes[-1]
    view, first = walker.parameter(right), walker.parameter(left)
    if view is not None and first is not None and len(view.shape) == len(first.shape) == 2:
        return _product_of_weights(walker, first, view, walker.shape(node))
    if view is not None and len(view.shape) == 2 and first is None:
        return _projected(walker, node, walker.labels(left), view, None)
    a, b = walker.labels(left), walker.labels(right)
    if len(a.shape) < 2 or len(b.shape) < 2:
        return refuse(walker, node, args)
    return _product(walker, node, a, b)


def _product_of_weights(walker: Walker, a: ParameterView, b: ParameterView, shape: tuple[int, ...]) -> ParameterView:
    """A weight of low rank: the entries summed over are channels that only these two have."""
    if a.shape[1] > 1:
        inner = walker.coupling.fresh(a.shape[1])
        walker.axis(a, 1, inner)
        walker.axis(b, 0, inner, feeds=False)
    views = [a.arranged(shape, (0, -1)), b.arranged(shape, (-1, 1))]
    return ParameterView.combined(views, shape, zero=a.zero or b.zero)


@rule("baddbmm", "addbmm")
def add_product(walker: Walker, node: fx.Node, args: dict[str, Any]) -> Value | None:
    """A product added to a tensor."""
    product = _product(walker, node, walker.labels(args["batch1"]), walker.labels(args["batch2"]))
    return walker.merge([walker.labels(args["self"]), product], walker.shape(node), node, zero=False)


@rule("addmm")
def add_projection(walker: Walker, node: fx.Node, args: dict[str, Any]) -> Value | None:
    """A linear layer written out: bias + x @ weight."""
    view, bias = walker.parameter(args["mat2"]), walker.parameter(args["self"])
    if view is None or bias is None:
        return refuse(walker, node, args)
    return _projected(walker, node, walker.labels(args["mat1"]), view, bias)


def _projected(walker: Walker, node: fx.Node, data: Labels, view: ParameterView, bias: ParameterView | None) -> Labels:
    shape = walker.shape(node)
    last = len(data.shape) - 1
    data = walker.only_along(data, [last], node, "its input's channels are mixed with other dimensions")
    walker.axis(view, 0, data.vector(last), feeds=False)
    if shape[-1] == 1:
        return Labels.none(shape, zero=True)
    outputs = walker.coupling.fresh(shape[-1])
    walker.axis(view, 1, outputs)
    walker.axis(bias, 0, outputs)
    return Labels(outputs.reshape((1,) * (len(shape) - 1) + (-1,)), shape, zero=True)


def _product(walker: Walker, node: fx.Node, a: Labels, b: Labels) -> Labels:
    """Sum over k; a channel along k may go where both factors lose it and one of them is zero there."""
    last, before = len(a.shape) - 1, len(b.shape) - 2
    reason = walker.why(node, "it sums over these channels")
    if _sums_away(a, last) and _sums_away(b, before) and (a.zero or b.zero):
        walker.coupling.union(a.array.reshape(-1), b.array.reshape(-1))
        return Labels.none(walker.shape(node), zero=True)
    a, b = walker.coupling.tie(a, [last], reason), walker.coupling.tie(b, [before], reason)
    left = Labels(a.array, (*a.shape[:-1], 1), a.zero)
    right = Labels(b.array, (*b.shape[:-2], 1, b.shape[-1]), b.zero)
    return walker.merge([left, right], walker.shape(node), node, zero=(a.zero and bool(a.varying)) or b.zero)


def _sums_away(labels: Labels, dim: int) -> bool:
    return labels.varying == [dim]


@rule("scaled_dot_product_attention")
def attention(walker: Walker, node: fx.Node, args: dict[str, Any]) -> Value | None:
    """(..., heads, positions, size): whole heads go, with their queries, keys and values."""
    query, key, value = (walker.labels(args[name]) for name in ("query", "key", "value"))
    reason = walker.why(node, "a head goes as a whole")
    query, key = (walker.coupling.tie(x, [len(x.shape) - 1, len(x.shape) - 2], reason) for x in (query, key))
    value = walker.coupling.tie(value, [len(value.shape) - 2], reason)
    if any(d != len(value.shape) - 1 for d in (*query.varying, *key.varying, *value.varying)):
        value = walker.coupling.tie(value, [len(value.shape) - 1], reason)
    shape = walker.shape(node)
    if args.get("enable_gqa") and query.shape[-3] != key.shape[-3]:
        query = _grouped_heads(walker, query, key.shape[-3], reason)
        key, value = (_spread_heads(x, query.shape[-3]) for x in (key, value))
    operands = [
        Labels(query.array, (*query.shape[:-1], 1), query.zero),
        Labels(key.array, (*key.shape[:-2], 1, 1), key.zero),
        Labels(value.array, (*value.shape[:-2], 1, value.shape[-1]), value.zero),
    ]
    if args.get("attn_mask") is not None:
        mask = walker.labels(args["attn_mask"])
        operands.append(Labels(mask.array, (*mask.shape[:-1], 1), mask.zero, mask.made))
    merged = walker.merge(operands, shape, node, zero=value.zero)
    return merged


def _grouped_heads(walker: Walker, query: Labels, heads: int, reason: str) -> Labels:
    if not query.varies(len(query.shape) - 3):
        return query
    members = query.array.reshape(heads, -1)
    first = members[:, :1].repeat(members.shape[1], axis=1)
    walker.coupling.union(first, members)
    walker.coupling.explain(members, reason)
    return Labels(first.reshape(query.array.shape), query.shape, query.zero)


def _spread_heads(labels: Labels, heads: int) -> Labels:
    dim = len(labels.shape) - 3
    shape = (*labels.shape[:dim], heads, *labels.shape[dim + 1 :])
    count = heads // labels.shape[dim]
    array = np.repeat(labels.array, count, axis=dim) if labels.varies(dim) else labels.array
    return Labels(array, shape, labels.zero)


@rule("einsum")
def einsum(walker: Walker, node: fx.Node, args: dict[str, Any]) -> Value | None:
    """Products by letters: two tensors, every letter once in each."""
    equation = str(args["equation"]).replace(" ", "")
    inputs, _, output = equation.partition("->")
    letters = inputs.split(",")
    plain = all(len(set(part)) == len(part) for part in letters) and "." not in equation and output
    if len(letters) != 2 or not plain:
        return refuse(walker, node, args)
    operands = [walker.labels(tensor) for tensor in args["tensors"]]
    summed = [letter for letter in dict.fromkeys("".join(letters)) if letter not in output]
    reason = walker.why(node, "it sums over these channels")
    if _einsum_sums_away(operands, letters, summed):
        walker.coupling.union(operands[0].array.reshape(-1), operands[1].array.reshape(-1))
        return Labels.none(walker.shape(node), zero=True)
    placed = []
    for labels, part in zip(operands, letters, strict=True):
        labels = walker.coupling.tie(labels, [part.index(x) for x in summed if x in part], reason)
        array = labels.array.reshape([n for x, n in zip(part, labels.array.shape, strict=True) if x not in summed])
        sizes = dict(zip(part, labels.shape, strict=True))
        kept = [x for x in part if x not in summed]
        order = [kept.index(x) for x in output if x in kept]
        array = array.transpose(order)
        shape = [sizes.get(x, 1) for x in output]
        array = array.reshape(
            [array.shape[[y for y in output if y in kept].index(x)] if x in kept else 1 for x in output]
        )
        placed.append(Labels(array, tuple(shape), labels.zero))
    return walker.merge(placed, walker.shape(node), node, zero=any(p.zero and p.varying for p in placed))


def _einsum_sums_away(operands: list[Labels], letters: list[str], summed: list[str]) -> bool:
    if len(summed) != 1 or any(summed[0] not in part for part in letters):
        return False
    places = [part.index(summed[0]) for part in letters]
    away = all(_sums_away(labels, place) for labels, place in zip(operands, places, strict=True))
    return away and any(labels.zero for labels in operands)
