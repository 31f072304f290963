"""Multiply-accumulates of single operators, as products of their dimensions (layer 1)."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any, TypeAlias

import numpy as np
from torch import Tensor, fx

from distiller_ng.graph.labels import LabelArray
from distiller_ng.graph.trace import TracedModel, arguments, op_name

__all__ = [
    "MAC_OPERATORS",
    "Product",
    "independent_of_inputs",
    "is_product_of_activations",
    "products_of",
    "shape_of",
    "single_dimension",
]

#: One product: sizes of dimensions, where a (node, dim) pair may lose channels and an integer may not.
Product: TypeAlias = "tuple[int | tuple[fx.Node, int], ...]"
_Formula: TypeAlias = "Callable[[fx.Node, dict[str, Any]], list[Product]]"


def shape_of(value: Any) -> tuple[int, ...]:
    """The shape of a node's (first) tensor; () for anything else."""
    held = value.meta.get("val") if isinstance(value, fx.Node) else None
    if isinstance(held, tuple | list):
        held = next((item for item in held if isinstance(item, Tensor)), None)
    return tuple(int(size) for size in held.shape) if isinstance(held, Tensor) else ()


def products_of(node: fx.Node) -> list[Product]:
    """The MACs of one operator as a sum of products; nothing for operators that multiply no matrices.

    A convolution makes one product: positions, filters, channels a filter reads, kernel size. Attention makes two,
    queries with keys and weights with values.
    """
    formula = MAC_OPERATORS.get(op_name(node).rstrip("_"))
    return formula(node, arguments(node)) if formula is not None else []


def is_product_of_activations(node: fx.Node, weights: set[fx.Node]) -> bool:
    """Whether an operator multiplies two tensors that both depend on the model's inputs (``weights`` do not)."""
    name = op_name(node).rstrip("_")
    if name == "scaled_dot_product_attention":
        return True
    if MAC_OPERATORS.get(name) not in (_matmul, _einsum, *_ADDED.values()):
        return False
    added = arguments(node).get("self") if name in _ADDED else None
    return not any(source in weights for source in node.all_input_nodes if source is not added)


def independent_of_inputs(traced: TracedModel) -> set[fx.Node]:
    """Nodes that no input of the model reaches: parameters, buffers, constants and what is computed from them alone."""
    given = set(traced.user_inputs)
    found: set[fx.Node] = set()
    for node in traced.graph.nodes:
        if node not in given and node.op != "output" and all(source in found for source in node.all_input_nodes):
            found.add(node)
    return found


def _all(node: Any, *, without: int | None = None) -> Product:
    rank = len(shape_of(node))
    left_out = None if without is None else without % rank
    return tuple((node, dim) for dim in range(rank) if dim != left_out)


def _convolution(node: fx.Node, args: dict[str, Any]) -> list[Product]:
    """Every output position (for a transposed one: every input position) meets one slice of the weight."""
    weight = args["weight"]
    transposed = bool(args.get("transposed", "transpose" in op_name(node)))
    taps = shape_of(args["input"]) if transposed else shape_of(node)
    rank = len(shape_of(weight)) - 2
    batch = taps[0] if len(taps) == rank + 2 else 1
    return [(batch, *taps[-rank:], *_all(weight))]


def _linear(node: fx.Node, args: dict[str, Any]) -> list[Product]:
    weight = args["weight"]
    rows = shape_of(args["input"])[:-1]
    return [(*rows, *_all(weight))]


def _bilinear(node: fx.Node, args: dict[str, Any]) -> list[Product]:
    return [(*shape_of(args["input1"])[:-1], *_all(args["weight"]))]


def _recurrent(node: fx.Node, args: dict[str, Any]) -> list[Product]:
    """Every step multiplies each weight matrix once."""
    data = shape_of(args.get("input", args.get("data")))
    steps = prod(data[:-1])
    return [(steps, *_all(weight)) for weight in args["params"] if len(shape_of(weight)) == 2]


def _cell(node: fx.Node, args: dict[str, Any]) -> list[Product]:
    batch = prod(shape_of(args["input"])[:-1])
    return [(batch, *_all(weight)) for weight in (args["w_ih"], args["w_hh"])]


def _matmul(node: fx.Node, args: dict[str, Any]) -> list[Product]:
    left = node.all_input_nodes[0] if "self" not in args else args["self"]
    return [(*_all(node), (left, len(shape_of(left)) - 1))]


def _added(first: str) -> _Formula:
    def formula(node: fx.Node, args: dict[str, Any]) -> list[Product]:
        left = args[first]
        batch = shape_of(left)[:1] if op_name(node).startswith("addbmm") else ()
        return [(*batch, *_all(node), (left, len(shape_of(left)) - 1))]

    return formula


def _einsum(node: fx.Node, args: dict[str, Any]) -> list[Product]:
    """Every letter once; for more than two operands as if they were multiplied at once. Dots are read by shape."""
    inputs = str(args["equation"]).replace(" ", "").partition("->")[0].split(",")
    if len(args["tensors"]) < 2:
        return []
    sizes: dict[str, tuple[fx.Node, int]] = {}
    more: Product = ()
    for letters, tensor in zip(inputs, args["tensors"], strict=True):
        before, dots, after = letters.partition("...")
        shape = shape_of(tensor)
        hidden = len(shape) - len(before) - len(after) if dots else 0
        if hidden and prod(shape[len(before) : len(before) + hidden]) > prod(s for s in more if isinstance(s, int)):
            more = shape[len(before) : len(before) + hidden]
        dims = [*range(len(before)), *range(len(before) + hidden, len(shape))]
        for letter, dim in zip(before + after, dims, strict=True):
            if letter not in sizes or shape[dim] > shape_of(sizes[letter][0])[sizes[letter][1]]:
                sizes[letter] = (tensor, dim)
    return [(*more, *sizes.values())]


def _attention(node: fx.Node, args: dict[str, Any]) -> list[Product]:
    keys = shape_of(args["key"])[-2]
    rows = _all(node, without=-1)
    width = (args["query"], len(shape_of(args["query"])) - 1)
    return [(*rows, keys, width), (*_all(node), keys)]


#: Products that are added to a tensor.
_ADDED: dict[str, _Formula] = {
    **{"addmm": _added("mat1"), "addmv": _added("mat")},
    **{"addbmm": _added("batch1"), "baddbmm": _added("batch1")},
}


def _table() -> dict[str, _Formula]:
    kinds = ("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "convolution")
    formulas: dict[str, _Formula] = dict.fromkeys(kinds, _convolution)
    formulas |= dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu"), _recurrent)
    formulas |= dict.fromkeys(("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell"), _cell)
    formulas |= dict.fromkeys(("matmul", "mm", "bmm", "mv", "dot", "inner", "vdot", "linalg_matmul"), _matmul)
    formulas |= {"linear": _linear, "bilinear": _bilinear, "einsum": _einsum}
    return formulas | _ADDED | {"scaled_dot_product_attention": _attention}


#: Formula by the operator's plain name.
MAC_OPERATORS: dict[str, _Formula] = _table()


def single_dimension(channels: LabelArray, dim: int) -> LabelArray | None:
    """Channel numbers along ``dim`` of an array that varies along nothing else; None where that does not hold."""
    if channels.shape[dim] == 1:
        return None
    moved = np.moveaxis(channels, dim, 0).reshape(channels.shape[dim], -1)
    return moved[:, 0].copy() if (moved == moved[:, :1]).all() else None
