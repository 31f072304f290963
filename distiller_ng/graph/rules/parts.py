"""Operators that take a part of a tensor: slices, selections, splits, gathers (layer 1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import fx

from distiller_ng.graph.labels import Labels
from distiller_ng.graph.parameters import ParameterView
from distiller_ng.graph.rules.layers import refuse
from distiller_ng.graph.walker import Value, Walker, rule

_COUNTED = "code counts its channels by number"


@rule("slice", "narrow")
def take_slice(walker: Walker, node: fx.Node, args: dict[str, Any]) -> Value | None:
    """A range of entries; what lies behind a range with fixed ends may go, what lies before its end may not."""
    source = args["self"] if "self" in args else args["input"]
    view = walker.parameter(source)
    data = walker.labels(source) if view is None else _nothing_known(view)
    dim = int(args["dim"] or 0) % len(data.shape)
    size = data.shape[dim]
    if "length" in args:
        start, end, step = int(args["start"]), int(args["start"]) + int(args["length"]), 1
    else:
        start, end, step = args["start"] or 0, size if args["end"] is None else args["end"], int(args["step"] or 1)
    bounds = slice(int(start), int(end), step).indices(size)
    if view is not None:
        return _slice_of_weight(walker, node, view, dim, (int(start), int(end), step))
    if not data.varies(dim) or bounds == (0, size, 1):
        return Labels(data.array, walker.shape(node), data.zero, data.made)
    data = _counted(walker, node, data, dim, (int(start), int(end), step))
    if not data.varies(dim):
        return Labels(data.array, walker.shape(node), data.zero)
    index = tuple(slice(*bounds) if d == dim else slice(None) for d in range(len(data.shape)))
    return Labels(data.array[index], walker.shape(node), data.zero)


def _nothing_known(view: ParameterView) -> Labels:
    return Labels.none(view.shape, zero=view.zero)


def _along(walker: Walker, view: ParameterView, dim: int) -> Labels:
    """Labels for one dimension of a weight that is about to be taken apart there."""
    sizes = [-1 if d == dim else 1 for d in range(len(view.shape))]
    return Labels(walker.coupling.fresh(view.shape[dim]).reshape(sizes), view.shape, view.zero)


def _slice_of_weight(
    walker: Walker, node: fx.Node, view: ParameterView, dim: int, bounds: tuple[int, int, int]
) -> Value:
    first, last, step = slice(*bounds).indices(view.shape[dim])
    if (first, last, step) == (0, view.shape[dim], 1):
        return view
    if step != 1 or last <= first:
        walker.pin(view, [dim], walker.why(node, _COUNTED))
        return Labels.none(walker.shape(node), zero=view.zero)
    if view.shape[dim] > 1:
        data = _along(walker, view, dim)
        walker.axis(view, dim, _counted(walker, node, data, dim, bounds).array.reshape(-1))
    return view.narrowed(dim, first, last - first)


def _counted(walker: Walker, node: fx.Node, data: Labels, dim: int, bounds: tuple[int, int, int]) -> Labels:
    """Restrict what a range with fixed ends allows to remove."""
    start, end, step = bounds
    size = data.shape[dim]
    reason = walker.why(node, _COUNTED)
    if len(data.varying) > 1:
        return walker.coupling.tie(data, [dim], reason)
    inner = {abs(bound) for bound in (start, end) if 0 < abs(bound) < size}
    vector = data.array.reshape(-1)
    if step == 1 and inner == {size - size // 2} and size % 2 == 0:
        walker.coupling.union(vector[: size // 2], vector[size // 2 :])
        walker.coupling.explain(vector, reason)
        return data
    if step == 1 and inner and min(inner) > 1 and walker.has_integer(node, inner):
        return data  # its bounds are attributes, which follow
    fixed = np.zeros(size, bool)
    for bound in (start, end):
        if 0 < bound < size:
            fixed[:bound] = True
        elif -size < bound < 0:
            fixed[bound:] = True
    if step != 1:
        fixed[:] = True
    walker.coupling.fix(vector[fixed], reason)
    return data


@rule("select")
def select(walker: Walker, node: fx.Node, args: dict[str, Any]) -> Value:
    """One entry of a dimension, by its number."""
    data = walker.labels(args["self"])
    dim = int(args["dim"]) % len(data.shape)
    data = _without(walker, node, data, dim, int(args["index"]))
    index = int(args["index"]) if data.varies(dim) else 0
    return Labels(np.take(data.array, index, axis=dim), walker.shape(node), data.zero)


def _without(walker: Walker, node: fx.Node, data: Labels, dim: int, index: int) -> Labels:
    if not data.varies(dim):
        return data
    reason = walker.why(node, _COUNTED)
    if len(data.varying) > 1:
        return walker.coupling.tie(data, [dim], reason)
    vector = data.array.reshape(-1)
    walker.coupling.fix(vector[: index + 1] if index >= 0 else vector[index:], reason)
    return data


@rule("unbind")
def unbind(walker: Walker, node: fx.Node, args: dict[str, Any]) -> Value:
    """Every entry of a dimension, each by its number."""
    data = walker.labels(args["self"])
    dim = int(args["dim"]) % len(data.shape)
    count = data.shape[dim]
    if data.varies(dim):
        reason = walker.why(node, _COUNTED)
        if len(data.varying) > 1:
            data = walker.coupling.tie(data, [dim], reason)
        else:
            walker.coupling.fix(data.array, reason)
    shape = tuple(size for d, size in enumerate(data.shape) if d != dim)
    places = range(count) if data.varies(dim) else [0] * count
    return tuple(Labels(np.take(data.array, place, axis=dim), shape, data.zero) for place in places)


@rule("chunk", "split", "split_with_sizes", "tensor_split", "unsafe_split", "unsafe_chunk", "unsafe_split_with_sizes")
def split(walker: Walker, node: fx.Node, args: dict[str, Any]) -> Value:
    """Parts of one dimension: equal ones lose the same places, others follow only where their sizes are attributes."""
    view = walker.parameter(args["self"])
    data = walker.labels(args["self"]) if view is None else _nothing_known(view)
    dim = int(args["dim"]) % len(data.shape)
    sizes = [int(part.shape[dim]) for part in node.meta["val"]]
    starts = np.cumsum([0, *sizes]).tolist()
    if view is not None:
        data = _along(walker, view, dim)
        walker.axis(view, dim, _split_fairly(walker, node, data, dim, sizes).array.reshape(-1))
        return tuple(view.narrowed(dim, start, size) for start, size in zip(starts, sizes, strict=False))
    parts_of = [tuple(s if d == dim else n for d, n in enumerate(data.shape)) for s in sizes]
    if not data.varies(dim):
        return tuple(Labels(data.array, shape, data.zero, data.made) for shape in parts_of)
    data = _split_fairly(walker, node, data, dim, sizes)
    if not data.varies(dim):
        return tuple(Labels(data.array, shape, data.zero) for shape in parts_of)
    cut = [np.take(data.array, range(starts[i], starts[i + 1]), axis=dim) for i in range(len(sizes))]
    return tuple(Labels(array, shape, data.zero) for array, shape in zip(cut, parts_of, strict=True))


def _split_fairly(walker: Walker, node: fx.Node, data: Labels, dim: int, sizes: Sequence[int]) -> Labels:
    reason = walker.why(node, f"it is split into parts of {list(sizes)}")
    by_count = "chunk" in str(node.target) or "tensor_split" in str(node.target)
    if len(set(sizes)) == 1:
        parts = np.split(data.array, len(sizes), axis=dim)
        for part in parts[1:]:
            walker.coupling.union(parts[0], part)
        walker.coupling.explain(data.array, reason)
        return data
    if len(data.varying) > 1:
        return walker.coupling.tie(data, [dim], reason)
    if walker.is_replaced(node):
        return data
    if by_count or not walker.has_integer(node, [size for size in sizes if size > 1]):
        walker.coupling.fix(data.array, reason)
    return data


@rule("index_select", "gather", "take_along_dim")
def gather(walker: Walker, node: fx.Node, args: dict[str, Any]) -> Value | None:
    """Entries of one dimension by numbers that are not known."""
    data = walker.labels(args["self"])
    dim = int(args["dim"]) % len(data.shape)
    index = args.get("index", args.get("indices"))
    by_element = "gather" in str(node.target) or "along" in str(node.target)
    if by_element and (walker.labels(index).varying or data.varying):
        return refuse(walker, node, args)
    _not_counted(walker, node, [index])
    data = walker.coupling.tie(data, [dim], walker.why(node, _COUNTED))
    return Labels(data.array, walker.shape(node), data.zero)


def _not_counted(walker: Walker, node: fx.Node, indices: Sequence[Any]) -> None:
    """Tensors of positions keep their size."""
    for tensor in indices:
        walker.coupling.fix(walker.labels(tensor).array, walker.why(node, "its entries are positions"))


@rule("index")
def index(walker: Walker, node: fx.Node, args: dict[str, Any]) -> Value | None:
    """Advanced indexing with tensors; dimensions that are not indexed keep their channels."""
    data = walker.labels(args["self"])
    indices = list(args["indices"])
    dims = [d for d, tensor in enumerate(indices) if tensor is not None]
    _not_counted(walker, node, [indices[d] for d in dims])
    data = walker.coupling.tie(data, dims, walker.why(node, _COUNTED))
    shapes = [walker.shape(indices[d]) for d in dims]
    extra = len(np.broadcast_shapes(*shapes))
    if dims != list(range(dims[0], dims[-1] + 1)):
        return refuse(walker, node, args) if data.varying else None
    array = data.array.reshape(data.array.shape[: dims[0]] + (1,) * extra + data.array.shape[dims[-1] + 1 :])
    return Labels(array, walker.shape(node), data.zero)
