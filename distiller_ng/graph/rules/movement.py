"""Operators that move values: views, transposes, concatenations, slices (layer 1)."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import fx

from distiller_ng.graph.labels import Labels, compact, known
from distiller_ng.graph.rules.layers import refuse
from distiller_ng.graph.walker import Value, Walker, rule


@rule("view", "reshape", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze", "view_as", "_reshape_alias")
def reshape(walker: Walker, node: fx.Node, args: dict[str, Any]) -> Value:
    """The same values in another shape; labels fold along."""
    shape = walker.shape(node)
    view = walker.parameter(node.all_input_nodes[0])
    reshaped = None if view is None else view.reshaped(shape)
    if reshaped is not None:
        return reshaped
    data = walker.labels(node.all_input_nodes[0])
    if not data.varying:
        return Labels.none(shape, zero=data.zero, made=data.made)
    groups = _factor(data.shape, shape)
    if groups is None:
        refuse(walker, node, args)
        return walker.unlabelled(node)
    moved = [dim for before, _ in groups if any(data.varies(d) for d in before) for dim in before]
    full = {dim for _, after in _moving(groups, data) for dim in after}
    sizes = [shape[dim] if dim in full else 1 for dim in range(len(shape))]
    array = compact(np.ascontiguousarray(data.expanded(moved)).reshape(sizes))
    result = Labels(array, shape, data.zero, data.made)
    splits = any(sum(array.shape[d] > 1 for d in after) > 1 for _, after in groups)
    return walker.rectangle(result, node) if splits else result


def _moving(groups: list[tuple[list[int], list[int]]], data: Labels) -> list[tuple[list[int], list[int]]]:
    return [(before, after) for before, after in groups if any(data.varies(d) for d in before)]


def _factor(before: tuple[int, ...], after: tuple[int, ...]) -> list[tuple[list[int], list[int]]] | None:
    """Runs of dimensions of the two shapes that hold the same values; None where sizes are 0."""
    if 0 in before or 0 in after:
        return None
    groups: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(before) or j < len(after):
        left, right, a, b = [], [], 1, 1
        if i < len(before):
            left, a, i = [i], before[i], i + 1
        if j < len(after):
            right, b, j = [j], after[j], j + 1
        while a != b:
            if a < b:
                left.append(i)
                a, i = a * before[i], i + 1
            else:
                right.append(j)
                b, j = b * after[j], j + 1
        groups.append((left, right))
    return groups


@rule("permute", "transpose", "t", "swapaxes", "movedim", "numpy_T", "mT")
def permute(walker: Walker, node: fx.Node, args: dict[str, Any]) -> Value:
    """Dimensions in another order; a parameter stays one."""
    source = node.all_input_nodes[0]
    rank = len(walker.shape(source))
    dims = list(range(rank))
    name = str(node.target).split(".")[1].rstrip("_")
    if name == "permute":
        dims = [int(d) % rank for d in args["dims"]]
    elif name == "movedim":
        return _movedim(walker, node, args)
    elif rank > 1:
        first, second = int(args.get("dim0", -2)) % rank, int(args.get("dim1", -1)) % rank
        dims[first], dims[second] = dims[second], dims[first]
    view = walker.parameter(source)
    if view is not None:
        return view.arranged([view.shape[d] for d in dims], dims)
    data = walker.labels(source)
    return Labels(data.array.transpose(dims), tuple(data.shape[d] for d in dims), data.zero, data.made)


def _movedim(walker: Walker, node: fx.Node, args: dict[str, Any]) -> Value:
    data = walker.labels(node.all_input_nodes[0])
    return Labels(
        np.moveaxis(data.array, args["source"], args["destination"]), walker.shape(node), data.zero, data.made
    )


@rule("expand", "expand_as", "broadcast_to")
def expand(walker: Walker, node: fx.Node, args: dict[str, Any]) -> Value:
    """Dimensions of size 1 are repeated, which says nothing new about channels."""
    shape = walker.shape(node)
    view = walker.parameter(node.all_input_nodes[0])
    if view is not None:
        return view.broadcast(shape)
    data = walker.labels(node.all_input_nodes[0])
    array = data.array.reshape((1,) * (len(shape) - data.array.ndim) + data.array.shape)
    return Labels(array, shape, data.zero, data.made)


@rule("repeat", "tile")
def repeat(walker: Walker, node: fx.Node, args: dict[str, Any]) -> Value:
    """The whole tensor several times over."""
    data = walker.labels(args["self"])
    shape = walker.shape(node)
    counts = [int(r) for r in args["repeats" if "repeats" in args else "dims"]]
    counts = [1] * (len(shape) - len(counts)) + counts
    array = data.array.reshape((1,) * (len(shape) - data.array.ndim) + data.array.shape)
    array = np.tile(array, [count if size > 1 else 1 for count, size in zip(counts, array.shape, strict=True)])
    return Labels(array, shape, data.zero)


@rule("repeat_interleave")
def repeat_interleave(walker: Walker, node: fx.Node, args: dict[str, Any]) -> Value | None:
    """Every entry several times in a row."""
    count, dim = args.get("repeats"), args.get("dim")
    if not isinstance(count, int) or dim is None:
        return refuse(walker, node, args)
    data = walker.labels(args["self"])
    dim %= len(data.shape)
    array = data.array.repeat(count, axis=dim) if data.varies(dim) else data.array
    return Labels(array, walker.shape(node), data.zero)


@rule("cat", "concat", "concatenate")
def concatenate(walker: Walker, node: fx.Node, args: dict[str, Any]) -> Value:
    """Labels one behind the other."""
    parts = [walker.labels(tensor) for tensor in args["tensors"] if walker.shape(tensor) != (0,)]
    return _joined(walker, node, parts, int(args["dim"]) % len(walker.shape(node)))


@rule("stack")
def stack(walker: Walker, node: fx.Node, args: dict[str, Any]) -> Value:
    """A concatenation along a new dimension."""
    dim = int(args["dim"]) % len(walker.shape(node))
    parts = []
    for tensor in args["tensors"]:
        data = walker.labels(tensor)
        shape = (*data.shape[:dim], 1, *data.shape[dim:])
        parts.append(Labels(np.expand_dims(data.array, dim), shape, data.zero))
    return _joined(walker, node, parts, dim)


def _joined(walker: Walker, node: fx.Node, parts: list[Labels], dim: int) -> Value:
    shape = walker.shape(node)
    zero = all(part.zero for part in parts)
    if not any(part.varying for part in parts):
        return Labels.none(shape, zero=zero, made=all(part.made for part in parts))
    if not any(part.varies(dim) for part in parts):
        sizes = [1 if d == dim else size for d, size in enumerate(shape)]
        flat = [Labels(part.array, tuple(sizes), part.zero, part.made) for part in parts]
        merged = walker.merge(flat, sizes, node, zero=zero)
        return Labels(merged.array, shape, zero)
    others = [d for d in range(len(shape)) if d != dim and any(part.varies(d) for part in parts)]
    for d in others:
        if any(not part.varies(d) and not part.made for part in parts):
            reason = walker.why(node, "it is joined with a tensor whose size cannot change")
            parts = [walker.coupling.tie(part, [d], reason) for part in parts]
    others = [d for d in others if any(part.varies(d) for part in parts)]
    spread = []
    for part in parts:
        sizes = [part.shape[d] if d == dim else (shape[d] if d in others else 1) for d in range(len(shape))]
        spread.append(np.broadcast_to(known(part.array), sizes))
    result = Labels(np.concatenate(spread, axis=dim), shape, zero)
    return walker.rectangle(result, node) if others else result


@rule("flip")
def flip(walker: Walker, node: fx.Node, args: dict[str, Any]) -> Value:
    """The other way round."""
    data = walker.labels(args["self"])
    return Labels(np.flip(data.array, tuple(int(d) for d in args["dims"])), data.shape, data.zero)


@rule("roll")
def roll(walker: Walker, node: fx.Node, args: dict[str, Any]) -> Value:
    """Shifted by a fixed number of places: channels cannot go from a dimension that is."""
    data = walker.labels(args["self"])
    dims = [int(d) % len(data.shape) for d in args["dims"]] or data.varying
    shifts = args["shifts"] if isinstance(args["shifts"], list | tuple) else [args["shifts"]]
    if len(dims) == len(shifts) and len(data.varying) == 1 and data.varying[0] in dims:
        walker.coupling.fix(data.array, walker.why(node, "it is shifted by a fixed number of places"))
    return walker.coupling.tie(data, dims, walker.why(node, "it is shifted by a fixed number of places"))


@rule("zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like")
def like(walker: Walker, node: fx.Node, args: dict[str, Any]) -> Value:
    """As large as another tensor."""
    source = node.all_input_nodes[0]
    zero = "zeros" in str(node.target)
    if walker.parameter(source) is not None:
        return Labels.none(walker.shape(node), zero=zero, made=True)
    labels = walker.labels(source)
    return Labels(labels.array, labels.shape, zero, made=not labels.varying)


@rule("zeros", "ones", "full", "empty", "arange", "rand", "randn", "linspace", "eye", "scalar_tensor", "tril_indices")
def factory(walker: Walker, node: fx.Node, args: dict[str, Any]) -> Value:
    """Made from sizes in the code."""
    return Labels.none(walker.shape(node), zero="zeros" in str(node.target), made=True)


@rule("_assert_tensor_metadata", "_assert_scalar", "_assert_async")
def checked(walker: Walker, node: fx.Node, args: dict[str, Any]) -> Value | None:
    """Gives no result."""
    return None


@rule("new_zeros", "new_ones", "new_full", "new_empty")
def new_factory(walker: Walker, node: fx.Node, args: dict[str, Any]) -> Value:
    """Made from sizes in the code, whatever tensor it is called on."""
    return Labels.none(walker.shape(node), zero="zeros" in str(node.target), made=True)
