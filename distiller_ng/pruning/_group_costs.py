"""Budgets of the group pruner, relative to what the model cost at first (layer 2)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from distiller_ng.errors import ArgumentError
from distiller_ng.graph.cost import CostModel, MacsCost, ParamsCost
from distiller_ng.graph.dependency import DependencyGraph

__all__ = ["Costs"]

logger = logging.getLogger(__name__)


class Costs:
    """Cost models by the name of their budget, and what the model cost before it was first pruned."""

    def __init__(self) -> None:
        self.latency: CostModel | None = None
        self._macs, self._params = MacsCost(), ParamsCost()
        self._original: dict[str, float] = {}
        self._told = False

    def of(self, budget: str) -> CostModel:
        """The model of a budget; latency is taken for multiply-accumulates as long as nobody gave its model."""
        if budget == "latency" and self.latency is not None:
            return self.latency
        if budget == "latency" and not self._told:
            self._told = True
            logger.warning("no latency model was given: the target for latency is taken as one for MACs")
        return self._params if budget == "params" else self._macs

    def load(self, graph: DependencyGraph, shares: Mapping[str, float]) -> Callable[[Sequence[int]], float]:
        """Cost without some channels over the budget, of several budgets the one that is furthest from being met."""
        limits = [(self.of(budget), share * self.original(graph, budget)) for budget, share in shares.items()]

        def load(removed: Sequence[int]) -> float:
            channels = frozenset(removed)
            return max(model.of(graph, channels) / limit if limit > 0 else 0.0 for model, limit in limits)

        return load

    def shares(self, graph: DependencyGraph, budgets: Sequence[str], removed: Sequence[int]) -> dict[str, float]:
        """What remains of each original cost without these channels."""
        channels = frozenset(removed)
        found = {}
        for budget in budgets:
            original = self.original(graph, budget)
            found[budget] = self.of(budget).of(graph, channels) / original if original > 0 else 1.0
        return found

    def check_reachable(
        self, graph: DependencyGraph, target: Mapping[str, float], most: Sequence[int], owner: str
    ) -> None:
        """Raises :class:`ArgumentError` where a target is not met even without all of the channels ``most``."""
        least = self.shares(graph, list(target), most)
        for budget, share in target.items():
            if least[budget] > share * 1.02:
                raise ArgumentError(
                    f"pruner {owner!r} cannot reach {budget}: {share:g}: with every targeted layer at its smallest "
                    f"{least[budget]:.3g} remains. Target more weights, raise max_layer_sparsity, or lower round_to",
                    argument=("target", budget),
                )

    def original(self, graph: DependencyGraph, budget: str) -> float:
        """What the whole model cost when first asked: budgets do not compound when channels were removed since."""
        if budget not in self._original:
            self._original[budget] = self.of(budget).of(graph)
        return self._original[budget]

    def state_dict(self) -> dict[str, Any]:
        """The original costs."""
        return dict(self._original)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`state_dict`."""
        self._original = {str(budget): float(cost) for budget, cost in state.items()}
