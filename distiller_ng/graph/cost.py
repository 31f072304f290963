"""What a model costs, now and after channels are removed, without removing them (layer 1).

A cost is a sum over operators of products of dimensions. The channel-dependency graph knows which channels each
dimension consists of, so the cost of any choice of channels is a count and a few multiplications: a search for a budget
asks hundreds of times.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from typing import Any, ClassVar, Protocol, runtime_checkable
from weakref import WeakKeyDictionary

from torch import fx

from distiller_ng.graph._operator_macs import (
    Product,
    independent_of_inputs,
    is_product_of_activations,
    products_of,
    shape_of,
    single_dimension,
)
from distiller_ng.graph._terms import SumOfProducts, Term
from distiller_ng.graph.dependency import DependencyGraph
from distiller_ng.graph.labels import LabelArray
from distiller_ng.names import ParameterIndex

__all__ = ["CostModel", "MacsCost", "ParamsCost"]


@runtime_checkable
class CostModel(Protocol):
    """What a budget is measured in. ``name`` is what a schedule writes: ``target: {macs: 0.5}``."""

    @property
    def name(self) -> str:
        """The budget's key in a schedule."""
        ...

    def of(self, graph: DependencyGraph, removed: Collection[int] = frozenset()) -> float:
        """The cost of the traced model without the channels of these numbers; smaller is cheaper.

        Nothing is removed. Removing more never costs more.
        """
        ...


class _CountedCost(ABC):
    """A cost that is a sum of products, prepared once for each graph."""

    def __init__(self) -> None:
        self._prepared: WeakKeyDictionary[DependencyGraph, SumOfProducts] = WeakKeyDictionary()

    def of(self, graph: DependencyGraph, removed: Collection[int] = frozenset()) -> float:
        """The cost without the channels of these numbers (of :meth:`DependencyGraph.channels_of`), exact up to 2**53.

        Whether the channels may be removed is not checked. Raises :class:`ArgumentError` for unknown numbers.
        """
        return float(self._sum(graph).values(removed).sum())

    def by_layer(self, graph: DependencyGraph, removed: Collection[int] = frozenset()) -> dict[str, float]:
        """The cost of each layer, in the order they run; a module called twice has the sum."""
        prepared = self._sum(graph)
        costs: dict[str, float] = {}
        for layer, value in zip(prepared.layers, prepared.values(removed).tolist(), strict=True):
            costs[layer] = costs.get(layer, 0.0) + value
        return costs

    def _sum(self, graph: DependencyGraph) -> SumOfProducts:
        prepared = self._prepared.get(graph)
        if prepared is None:
            prepared = SumOfProducts(self._terms(graph), int(graph._roots.max()) + 1)
            self._prepared[graph] = prepared
        return prepared

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles prepare for themselves."""
        return {name: value for name, value in vars(self).items() if name != "_prepared"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._prepared = WeakKeyDictionary()

    @abstractmethod
    def _terms(self, graph: DependencyGraph) -> list[Term]:
        """What the cost is the sum of."""


class MacsCost(_CountedCost):
    """Multiply-accumulates of one forward pass of the example inputs, whatever their batch.

    Counted are convolutions (transposed and grouped ones too), linear and bilinear layers, recurrent layers and cells,
    and products of an activation with parameters written as ``x @ w`` or ``einsum``. Biases, norms, element-wise
    operators and what computes a weight from parameters are not. Products of two activations (``q @ k.T``,
    ``scaled_dot_product_attention``) are counted apart: only with ``products=True``, as the compute summary leaves
    them out too.

    ``Conv2d(3, 8, 3, padding=1)`` on 1 x 3 x 4 x 4: 16 positions x 8 filters x 27 = 3456; 2 filters fewer: 2592.
    """

    name: ClassVar[str] = "macs"

    def __init__(self, *, products: bool = False) -> None:
        super().__init__()
        self.products = products

    def _terms(self, graph: DependencyGraph) -> list[Term]:
        weights = independent_of_inputs(graph.traced)
        dimensions = _Dimensions(graph)
        terms = []
        for node in graph.traced.nodes:
            products = products_of(node)
            if not products or node in weights:
                continue
            if not self.products and is_product_of_activations(node, weights):
                continue
            layer = graph.traced.module_of(node)
            terms += [dimensions.term(layer, product) for product in products]
        return terms


class ParamsCost(_CountedCost):
    """The number of parameters, biases and norms included, tied ones once.

    ``Conv2d(3, 8, 3)``: 8 x 27 + 8 = 224; 2 filters fewer: 168.
    """

    name: ClassVar[str] = "params"

    def _terms(self, graph: DependencyGraph) -> list[Term]:
        traced = {name: shape_of(node) for node, name in graph.traced.tensors.items()}
        terms = []
        for name, parameter in ParameterIndex(graph.model).items():
            constant = 1
            channels: list[LabelArray] = []
            for dim, size in enumerate(traced.get(name, tuple(parameter.shape))):
                found = graph.axes.get((name, dim))
                if found is None:
                    constant *= size
                else:
                    channels.append(found)
            terms.append(Term(name, constant, tuple(channels)))
        return terms


class _Dimensions:
    """Finds the channels along the dimensions of a graph's nodes."""

    def __init__(self, graph: DependencyGraph) -> None:
        self._graph = graph

    def term(self, layer: str, product: Product) -> Term:
        """One product with everything that never loses channels multiplied out."""
        constant = 1
        channels: list[LabelArray] = []
        for factor in product:
            if isinstance(factor, int):
                constant *= factor
                continue
            found = self.channels(*factor)
            if found is None:
                constant *= shape_of(factor[0])[factor[1]]
            else:
                channels.append(found)
        return Term(layer, constant, tuple(channels))

    def channels(self, node: fx.Node, dim: int) -> LabelArray | None:
        """Channel number of each index of a node's dimension; None where none can go."""
        walker = self._graph._walker
        view = walker.parameter(node)
        if view is not None:
            for name, own_dim, start in view.along(dim):
                found = self._graph.axes.get((name, own_dim))
                if found is not None:
                    return found[start : start + view.shape[dim]]
            return None
        results = walker.results(node)
        return single_dimension(self._graph._roots[results[0].array], dim) if results else None
