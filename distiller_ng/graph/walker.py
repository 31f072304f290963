"""Walking a traced graph operator by operator, carrying labels along (layer 1)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, fx

from distiller_ng.graph.coupling import Choice, Coupling, Pairs
from distiller_ng.graph.labels import FIXED, LabelArray, Labels, compact
from distiller_ng.graph.trace import TracedModel, arguments, op_name
from distiller_ng.names import canonical_name

__all__ = ["RULES", "Axis", "ParameterView", "Partition", "Rule", "Value", "Walker", "rule"]

#: Above this many elements a parameter is followed along its last dimension only.
_LARGEST_FOLLOWED = 4_000_000


@dataclass(frozen=True, slots=True, eq=False)
class Axis:
    """Index ``i`` of dimension ``dim`` of a parameter or buffer belongs to the channel of ``labels[i]``.

    ``feeds``: the entry produces the channel (a filter, a bias, a norm's scale); else it reads it (a layer's input).
    """

    tensor: str
    dim: int
    labels: LabelArray
    feeds: bool = True


@dataclass(frozen=True, slots=True)
class ParameterView:
    """A parameter or buffer, possibly with its dimensions in another order: ``dims[i]`` is dimension i's own number."""

    name: str
    shape: tuple[int, ...]
    dims: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Partition:
    """Channels an operator treats in groups: ``labels`` of shape (groups, members), of a weight called ``tensor``.

    ``within``: the dimension of the weight that holds the members of one group, None where it has no such dimension.
    """

    tensor: str
    labels: LabelArray
    within: int | None = None
    feeds: bool = True


Value: TypeAlias = "Labels | ParameterView | tuple[Labels, ...]"
Rule: TypeAlias = "Callable[[Walker, fx.Node, dict[str, Any]], Value | None]"

#: Rules by the operator's plain name, without a trailing underscore.
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a function as the rule of the operators called ``names``."""

    def register(function: Rule) -> Rule:
        for name in names:
            RULES[name] = function
        return function

    return register


class Walker:
    """The state of one walk: what every node's tensors are labelled with, and where parameters meet labels.

    ``fallback``: the rule of an operator that has none of its own.
    """

    def __init__(self, traced: TracedModel, fallback: Rule) -> None:
        self.traced = traced
        self.coupling = Coupling()
        self.axes: list[Axis] = []
        self.partitions: list[Partition] = []
        self._joint: list[tuple[ParameterView, LabelArray]] = []
        self._values: dict[fx.Node, Value] = {}
        self._fallback = fallback

    def walk(self) -> None:
        """Apply every operator's rule, pin the model's outputs, and settle what is coupled."""
        for node in self.traced.graph.nodes:
            if node.op == "placeholder":
                self._values[node] = self._placeholder(node)
            elif node.op == "call_function":
                self._step(node)
            elif node.op == "get_attr":
                self._values[node] = self.unlabelled(node)
        for node in self.traced.outputs:
            for labels in self.all_labels(node):
                self.coupling.fix(labels.array, "it is part of the model's output")
        self.coupling.resolve()
        for view, array in self._joint:
            self._settle_joint(view, array)
        for partition in self.partitions:
            roots = self.coupling.roots[partition.labels]
            if partition.within is not None and (roots == roots[:1]).all():
                self.axes.append(Axis(partition.tensor, partition.within, partition.labels[0], partition.feeds))

    def _placeholder(self, node: fx.Node) -> Value:
        shape = _shape(node)
        name = self.traced.tensors.get(node)
        if name is not None:
            return ParameterView(name, shape, tuple(range(len(shape))))
        return Labels.none(shape)

    def _step(self, node: fx.Node) -> None:
        if op_name(node) == "getitem":
            source = self._values[node.args[0]]  # type: ignore[index]
            self._values[node] = source[node.args[1]] if isinstance(source, tuple) else source  # type: ignore[index]
            return
        apply = RULES.get(op_name(node).rstrip("_"), self._fallback)
        value = apply(self, node, arguments(node))
        if value is None:
            value = self.unlabelled(node)
        self._values[node] = value

    # -- looking up -------------------------------------------------------------------------------------------------

    def value(self, node: fx.Node) -> Value:
        """What a node holds, as it is."""
        return self._values[node]

    def labels(self, argument: Any) -> Labels:
        """The labels of a tensor argument; a parameter gets labels of its own, one for each element."""
        if not isinstance(argument, fx.Node):
            return Labels.none((), zero=False)
        value = self._values[argument]
        if isinstance(value, tuple):
            return value[0]
        if isinstance(value, ParameterView):
            value = self._labelled_parameter(value)
            self._values[argument] = value
        return value

    def all_labels(self, node: fx.Node) -> list[Labels]:
        """The labels of every tensor a node holds."""
        value = self._values[node]
        return list(value) if isinstance(value, tuple) else [self.labels(node)]

    def results(self, node: fx.Node) -> list[Labels]:
        """The labels a node was given; none for a parameter seen as it is."""
        value = self._values[node]
        if isinstance(value, tuple):
            return list(value)
        return [value] if isinstance(value, Labels) else []

    def parameter(self, argument: Any) -> ParameterView | None:
        """The parameter or buffer an argument is, if it is one and still unlabelled."""
        value = self._values.get(argument) if isinstance(argument, fx.Node) else None
        return value if isinstance(value, ParameterView) else None

    def unlabelled(self, node: fx.Node) -> Value:
        """Labels that say nothing, of the shapes a node has."""
        value = node.meta.get("val")
        if isinstance(value, Tensor):
            return Labels.none(tuple(value.shape))
        if isinstance(value, tuple | list):
            return tuple(Labels.none(tuple(v.shape) if isinstance(v, Tensor) else ()) for v in value)
        return Labels.none(())

    def shape(self, node: fx.Node) -> tuple[int, ...]:
        """The shape of a node's (first) tensor."""
        return _shape(node)

    def why(self, node: fx.Node, text: str) -> str:
        """A reason with the operator's place: ``softmax runs across the channels (operator ...)``."""
        return f"{text} ({self.traced.describe(node)})"

    def has_integer(self, node: fx.Node, values: Iterable[int]) -> bool:
        """Whether modules whose forward the node ran in hold these integers as attributes, so that they can change."""
        names = self.traced.modules_of(node)
        held: set[int] = set()
        for name in names[-2:]:
            held |= integers_of(self.traced.model.get_submodule(_raw(self.traced.model, name)))
        return set(values) <= held

    # -- recording --------------------------------------------------------------------------------------------------

    def axis(self, view: ParameterView | None, dim: int, labels: LabelArray | None, *, feeds: bool = True) -> None:
        """Dimension ``dim`` of a parameter has these channels; nothing where either is None."""
        if view is not None and labels is not None and labels.size == view.shape[dim]:
            self.axes.append(Axis(view.name, view.dims[dim], labels, feeds))

    def rectangle(self, labels: Labels, node: fx.Node) -> Labels:
        """What varies along several dimensions can only lose whole rows along one of them."""
        dims = labels.varying
        if len(dims) > 1:
            reason = self.why(node, "only whole rows of the shape it is given can go")
            self.coupling.choose(Choice(labels.array, rows_of(labels.array, dims), reason))
        return labels

    def only_along(self, labels: Labels, dims: Sequence[int], node: fx.Node, reason: str) -> Labels:
        """Tie labels along every dimension but ``dims``."""
        others = [d for d in labels.varying if d not in dims]
        return self.coupling.tie(labels, others, self.why(node, reason)) if others else labels

    def merge(self, operands: Sequence[Labels], shape: Sequence[int], node: fx.Node, *, zero: bool) -> Labels:
        """Labels of the result of an element-wise operator, whose operands are broadcast to ``shape``."""
        rank = len(shape)
        aligned = [_aligned(labels, rank) for labels in operands]
        for dim in range(rank):
            if not any(labels.varies(dim) for labels in aligned):
                continue
            if any(x.shape[dim] == shape[dim] and not x.varies(dim) and not x.made for x in aligned):
                reason = self.why(node, "it meets a tensor whose size cannot change")
                aligned = [self.coupling.tie(labels, [dim], reason) for labels in aligned]
        channels = [labels.array for labels in aligned if labels.varying]
        if not channels:
            return Labels.none(shape, zero=zero)
        sizes = np.broadcast_shapes(*(array.shape for array in channels))
        spread = [np.broadcast_to(array, sizes) for array in channels]
        for array in spread[1:]:
            self.coupling.union(spread[0], array)
        return Labels(spread[0], tuple(shape), zero)

    # -- parameters that take part element-wise -----------------------------------------------------------------------

    def _labelled_parameter(self, view: ParameterView) -> Labels:
        size = prod(view.shape)
        if size <= 1:
            return Labels.none(view.shape, zero=True)
        if size > _LARGEST_FOLLOWED:
            array = self.coupling.fresh(view.shape[-1]).reshape((1,) * (len(view.shape) - 1) + (-1,))
        else:
            array = self.coupling.fresh(size).reshape(view.shape)
        labels = Labels(array, view.shape, zero=True)
        self._joint.append((view, array))
        dims = labels.varying
        if len(dims) > 1:
            self.coupling.choose(
                Choice(array, rows_of(array, dims), f"parameter {view.name!r} can only lose whole rows")
            )
        return labels

    def _settle_joint(self, view: ParameterView, array: LabelArray) -> None:
        roots = compact(self.coupling.roots[array])
        varying = [d for d, size in enumerate(roots.shape) if size > 1]
        if len(varying) == 1:
            index = tuple(slice(None) if d == varying[0] else 0 for d in range(array.ndim))
            self.axis(view, varying[0], array[index])


def rows_of(array: LabelArray, dims: Sequence[int]) -> tuple[Pairs, ...]:
    """The options of a choice between rows along each of ``dims``: the labels equal if only that one may lose any."""
    options: list[Pairs] = []
    for kept in dims:
        tied = array
        for dim in dims:
            if dim != kept:
                tied = np.take(tied, [0], axis=dim)
        options.append((np.broadcast_to(tied, array.shape).reshape(-1), array.reshape(-1)))
    return tuple(options)


def integers_of(module: torch.nn.Module) -> set[int]:
    """Plain integers a module holds as attributes, inside tuples and lists too."""
    found: set[int] = set()
    for value in vars(module).values():
        values = value if isinstance(value, tuple | list) else (value,)
        found |= {v for v in values if isinstance(v, int) and not isinstance(v, bool)}
    return found


def known(labels: LabelArray) -> LabelArray:
    """Positions that belong to no channel, inside a tensor that has channels, can never be removed."""
    return np.where(labels == 0, FIXED, labels)


def _aligned(labels: Labels, rank: int) -> Labels:
    missing = rank - len(labels.shape)
    if missing <= 0:
        return labels
    array = labels.array.reshape((1,) * missing + labels.array.shape)
    return Labels(array, (1,) * missing + labels.shape, labels.zero, labels.made)


def _raw(model: torch.nn.Module, name: str) -> str:
    """The name a submodule really has, from its canonical one."""
    for raw, _ in model.named_modules():
        if canonical_name(raw) == name:
            return str(raw)
    return ""


def _shape(node: fx.Node) -> tuple[int, ...]:
    value = node.meta.get("val")
    if isinstance(value, tuple | list):
        value = next((v for v in value if isinstance(v, Tensor)), None)
    return tuple(int(s) for s in value.shape) if isinstance(value, Tensor) else ()
