"""Walking a traced graph operator by operator, carrying labels along (layer 1)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, fx

from distiller_ng.graph.coupling import Choice, Coupling, rows_of
from distiller_ng.graph.labels import FIXED, LabelArray, Labels, aligned, compact
from distiller_ng.graph.parameters import ParameterView
from distiller_ng.graph.trace import TracedModel, arguments, op_name
from distiller_ng.names import canonical_name

__all__ = ["RULES", "Axis", "ParameterView", "Partition", "Rule", "Value", "Walker", "rule"]

#: Operators that read nothing but the shape of some of their operands.
_LOOK_AT_SHAPES = frozenset(
    {"view_as", "reshape_as", "expand_as", "type_as", "to", "new_zeros", "new_ones", "new_full", "new_empty"}
    | {"_assert_tensor_metadata", "_assert_scalar", "_assert_async", "sym_size"}
)
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


@dataclass(frozen=True, slots=True, eq=False)
class Partition:
    """Channels an operator treats in groups: ``labels`` of shape (groups, members), of a weight.

    ``within``: the dimension of the weight that holds the members of one group, None where it has no such dimension.
    """

    weight: ParameterView
    labels: LabelArray
    within: int | None = None
    feeds: bool = True


Value: TypeAlias = "Labels | ParameterView | tuple[Labels | ParameterView, ...]"
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
        self._pinned: dict[tuple[str, int], str] = {}
        self._held: list[tuple[str, int, slice]] = []
        self._joint: list[tuple[ParameterView, LabelArray]] = []
        self._values: dict[fx.Node, Value] = {}
        self._labelled: dict[fx.Node, list[Labels]] = {}
        self._asked: set[fx.Node] = set()
        self._sizes: dict[str, tuple[int, ...]] = {}
        self._modules = {canonical_name(name): module for name, module in traced.model.named_modules()}
        self._fallback = fallback

    def walk(self) -> None:
        """Apply every operator's rule, pin the model's outputs, and settle what is coupled."""
        for node in self.traced.graph.nodes:
            if node.op in ("placeholder", "get_attr"):
                self._values[node] = self._placeholder(node)
            elif node.op == "call_function":
                self._step(node)
        for node in self.traced.outputs:
            for labels in self.all_labels(node):
                self.coupling.fix(labels.array, "it is part of the model's output")
        self._tie_uses()
        self.coupling.resolve()
        for view, array in self._joint:
            self._settle_joint(view, array)
        for part in self.partitions:
            roots = self.coupling.roots[part.labels]
            if part.within is not None and (roots == roots[:1]).all():
                self.axis(part.weight, part.within, part.labels[0], feeds=part.feeds)
        self._tie_uses()
        self.coupling.resolve()

    def _placeholder(self, node: fx.Node) -> Value:
        shape = _shape(node)
        name = self.traced.tensors.get(node)
        if name is not None:
            self._sizes[name] = shape
            return ParameterView.of(name, shape)
        return Labels.none(shape)

    def _step(self, node: fx.Node) -> None:
        name = op_name(node).rstrip("_")
        if name == "getitem":
            source = self._values[node.args[0]]  # type: ignore[index]
            self._values[node] = source[node.args[1]] if isinstance(source, tuple) else source  # type: ignore[index]
            return
        self._asked.clear()
        value = RULES.get(name, self._fallback)(self, node, arguments(node))
        self._values[node] = self.unlabelled(node) if value is None else value
        for labels in self.results(node):
            if labels.array.size == 1 and labels.array.flat[0] > FIXED:
                self.coupling.fix(labels.array, self.why(node, "nothing would be left of its result"))
        for operand in node.all_input_nodes:
            if operand not in self._asked and name not in _LOOK_AT_SHAPES:
                for labels in self.results(operand):
                    self.coupling.fix(labels.array, self.why(node, "it uses them in a way that is not followed"))

    def _tie_uses(self) -> None:
        """A tensor used several times has one set of channels; what is pinned has none."""
        first: dict[tuple[str, int], Axis] = {}
        for axis in self.axes:
            key = (axis.tensor, axis.dim)
            self.coupling.union(first.setdefault(key, axis).labels, axis.labels)
            if key in self._pinned:
                self.coupling.fix(axis.labels, self._pinned[key])
        for tensor, dim, entries in self._held:
            if (tensor, dim) in first:
                reason = f"{tensor!r} also meets a tensor whose size cannot change"
                self.coupling.fix(first[(tensor, dim)].labels[entries], reason)

    # -- looking up -------------------------------------------------------------------------------------------------

    def value(self, node: fx.Node) -> Value:
        """What a node holds, as it is."""
        self._asked.add(node)
        return self._values[node]

    def labels(self, argument: Any) -> Labels:
        """The labels of a tensor argument; a parameter gets labels of its own, one for each element."""
        return self.all_labels(argument)[0] if isinstance(argument, fx.Node) else Labels.none(())

    def all_labels(self, node: fx.Node) -> list[Labels]:
        """The labels of every tensor a node holds."""
        value = self.value(node)
        if isinstance(value, Labels):
            return [value]
        if node not in self._labelled:
            views = value if isinstance(value, tuple) else (value,)
            self._labelled[node] = [self._labels_of(v) if isinstance(v, ParameterView) else v for v in views]
        return self._labelled[node]

    def results(self, node: fx.Node) -> list[Labels]:
        """The labels a node was given; none for a parameter seen as it is."""
        value = self._values[node]
        return [x for x in (value if isinstance(value, tuple) else (value,)) if isinstance(x, Labels)]

    def parameter(self, argument: Any) -> ParameterView | None:
        """The parameters an argument is computed from entry by entry, if it is."""
        if not isinstance(argument, fx.Node):
            return None
        value = self.value(argument)
        return value if isinstance(value, ParameterView) else None

    def unlabelled(self, node: fx.Node) -> Value:
        """Labels that say nothing, of the shapes a node has."""
        value = node.meta.get("val")
        if isinstance(value, tuple | list):
            return tuple(Labels.none(tuple(v.shape) if isinstance(v, Tensor) else ()) for v in value)
        return Labels.none(tuple(value.shape) if isinstance(value, Tensor) else ())

    def shape(self, node: fx.Node) -> tuple[int, ...]:
        """The shape of a node's (first) tensor."""
        return _shape(node)

    def why(self, node: fx.Node, text: str) -> str:
        """A reason with the operator's place: ``softmax runs across the channels (operator ...)``."""
        return f"{text} ({self.traced.describe(node)})"

    def has_integer(self, node: fx.Node, values: Iterable[int]) -> bool:
        """Whether modules whose forward the node ran in hold these integers as attributes, so that they can change."""
        modules = [self._modules[name] for name in self.traced.modules_of(node)[-2:] if name in self._modules]
        return set(values) <= {value for module in modules for value in _integers_of(module)}

    def is_replaced(self, node: fx.Node) -> bool:
        """Whether the node runs in a module that thinning replaces by one that takes its sizes from its tensors."""
        return isinstance(self._modules.get(self.traced.module_of(node)), torch.nn.MultiheadAttention)

    # -- recording --------------------------------------------------------------------------------------------------

    def axis(self, view: ParameterView | None, dim: int, labels: LabelArray | None, *, feeds: bool = True) -> None:
        """Dimension ``dim`` of a parameter has these channels; without labels, what it meets there has none.

        That holds its entries in every other use of the parameter too.
        """
        if view is not None and labels is None:
            self._held += [(name, own, slice(start, start + view.shape[dim])) for name, own, start in view.along(dim)]
        if view is None or labels is None or labels.size != view.shape[dim]:
            return
        for name, own, start in view.along(dim):
            whole = labels
            if labels.size != self._sizes[name][own]:
                whole = self.coupling.fresh(self._sizes[name][own])
                whole[start : start + labels.size] = labels
            self.axes.append(Axis(name, own, whole, feeds))

    def pin(self, view: ParameterView, dims: Iterable[int], reason: str) -> None:
        """Nothing can go from these dimensions of the parameters of a view."""
        for dim in dims:
            self._pinned.update({(name, own): reason for name, own, _ in view.along(dim)})

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
        placed = [aligned(labels, rank) for labels in operands]
        for dim in range(rank):
            if not any(labels.varies(dim) for labels in placed):
                continue
            if any(x.shape[dim] == shape[dim] and not x.varies(dim) and not x.made for x in placed):
                reason = self.why(node, "it meets a tensor whose size cannot change")
                placed = [self.coupling.tie(labels, [dim], reason) for labels in placed]
        channels = [labels.array for labels in placed if labels.varying]
        if not channels:
            return Labels.none(shape, zero=zero)
        sizes = np.broadcast_shapes(*(array.shape for array in channels))
        spread = [np.broadcast_to(array, sizes) for array in channels]
        for array in spread[1:]:
            self.coupling.union(spread[0], array)
        return Labels(spread[0], tuple(shape), zero)

    # -- parameters that take part element-wise -----------------------------------------------------------------------

    def _labels_of(self, view: ParameterView) -> Labels:
        """Labels of its own for a parameter that takes part as data."""
        size = prod(view.shape)
        if size <= 1:
            return Labels.none(view.shape, zero=view.zero)
        if size > _LARGEST_FOLLOWED:
            array = self.coupling.fresh(view.shape[-1]).reshape((1,) * (len(view.shape) - 1) + (-1,))
        else:
            array = self.coupling.fresh(size).reshape(view.shape)
        labels = Labels(array, view.shape, zero=view.zero)
        self._joint.append((view, array))
        dims = labels.varying
        if len(dims) > 1:
            reason = f"parameter {view.name!r} can only lose whole rows"
            self.coupling.choose(Choice(array, rows_of(array, dims), reason))
        return labels

    def _settle_joint(self, view: ParameterView, array: LabelArray) -> None:
        roots = compact(self.coupling.roots[array])
        varying = [d for d, size in enumerate(roots.shape) if size > 1]
        if len(varying) == 1:
            index = tuple(slice(None) if d == varying[0] else 0 for d in range(array.ndim))
            self.axis(view, varying[0], array[index])
        others = [d for d, size in enumerate(view.shape) if size > 1 and varying != [d]]
        self.pin(view, others, f"parameter {view.name!r} can only lose whole rows")


def _shape(node: fx.Node) -> tuple[int, ...]:
    value = node.meta.get("val")
    if isinstance(value, tuple | list):
        value = next((v for v in value if isinstance(v, Tensor)), None)
    return tuple(int(s) for s in value.shape) if isinstance(value, Tensor) else ()


def _integers_of(module: torch.nn.Module) -> set[int]:
    """Plain integers a module holds as attributes, inside tuples and lists too."""
    found: set[int] = set()
    for value in vars(module).values():
        values = value if isinstance(value, tuple | list) else (value,)
        found |= {v for v in values if isinstance(v, int) and not isinstance(v, bool)}
    return found
