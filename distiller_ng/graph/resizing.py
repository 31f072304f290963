"""Where sizes written in a model's code meet tensors that get smaller (layer 1)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import fx

from distiller_ng.graph.labels import LabelArray, Labels
from distiller_ng.graph.trace import arguments, op_name
from distiller_ng.graph.walker import Walker

__all__ = ["Resized", "resized"]

#: Operators that take sizes or positions as integers.
_SIZED_OPERATORS = frozenset(
    {"view", "reshape", "_unsafe_view", "unflatten", "expand", "slice", "narrow", "split", "split_with_sizes", "select"}
    | {"repeat", "group_norm", "conv1d", "conv2d", "conv3d", "convolution", "layer_norm", "chunk", "pixel_shuffle"}
    | {"instance_norm", "repeat_interleave", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"}
)


@dataclass(frozen=True, slots=True)
class Resized:
    """An operator whose sizes are given by the code: the modules it runs in, outermost first, and (old, new) sizes."""

    modules: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]
    where: str


def resized(walker: Walker, roots: LabelArray, channels: Iterable[int]) -> list[Resized]:
    """Operators with sizes of their own whose results get smaller when ``channels`` go."""
    gone = np.zeros(int(roots.max()) + 1, bool)
    gone[np.asarray(sorted(set(channels)), np.int64)] = True
    found = []
    for node in walker.traced.nodes:
        if op_name(node).rstrip("_") in _SIZED_OPERATORS:
            pairs = dict.fromkeys(
                pair for labels in walker.results(node) for pair in _sizes(node, labels, gone[roots[labels.array]])
            )
            if pairs:
                modules = tuple(walker.traced.modules_of(node))
                found.append(Resized(modules, tuple(pairs), walker.traced.describe(node)))
    return found


def _sizes(node: fx.Node, labels: Labels, gone: NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    """(old, new) of every dimension that gets smaller, and of the number of groups a norm works in."""
    for dim in labels.varying:
        others = tuple(d for d in range(gone.ndim) if d != dim)
        lost = int(gone.all(axis=others).sum())
        if lost:
            yield labels.shape[dim], labels.shape[dim] - lost
            if op_name(node) == "group_norm":
                groups = int(arguments(node)["num_groups"])
                yield groups, groups - lost * groups // labels.shape[dim]
