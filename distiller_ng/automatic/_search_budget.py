"""Budgets of a search: what may remain of the model's costs, and how a candidate is brought within them (layer 4)."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping

from distiller_ng.automatic._search_space import Genome, SearchSpace
from distiller_ng.automatic.candidates import COST_NAMES, Candidates
from distiller_ng.errors import ArgumentError, did_you_mean

__all__ = ["BUDGETS", "Budget", "check_budget"]

#: What a budget may be of: shares of what the model costs.
BUDGETS = (*COST_NAMES, "latency")
_ROUNDS = 24  # of bisection: finer than any step
_TRIES = 6  # measured latencies before a candidate is given up
_MARGIN = 0.97  # how far below the limit a candidate is aimed whose latency was above


def check_budget(budget: object, group: str) -> dict[str, float]:
    """``{"macs": 0.5}``: what may remain, above 0 and at most 1. Raises :class:`ArgumentError` for anything else."""
    if not isinstance(budget, Mapping) or not budget:
        message = f"budget says what may remain of the model's costs, like {{'macs': 0.5}}, got {budget!r}"
        raise ArgumentError(message, argument=("budget",))
    for name, share in budget.items():
        if name not in BUDGETS:
            message = f"no budget is called {name!r}. {did_you_mean(str(name), BUDGETS)}"
            raise ArgumentError(message, argument=("budget", str(name)))
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
            message = f"a budget is what may remain, a number above 0 and at most 1, got {name}: {share!r}"
            raise ArgumentError(message, argument=("budget", name))
    if "latency" in budget and group != "filter":
        message = (
            "zeros and rounded weights do not make a PyTorch model faster: a latency budget needs group 'filter', or "
            "take a budget of macs or size"
        )
        raise ArgumentError(message, argument=("budget", "latency"))
    return {str(name): float(share) for name, share in budget.items()}


class Budget:
    """Prices genomes, and changes them until they are within the budget.

    ``latency``: the measured latency of a genome's model as a share of the original's.
    """

    def __init__(
        self,
        limits: Mapping[str, float],
        candidates: Candidates,
        space: SearchSpace,
        latency: Callable[[Genome], float],
    ) -> None:
        self.limits = dict(limits)
        self._candidates, self._space, self._latency = candidates, space, latency
        self._original = candidates.cost({})
        self._known: dict[str, dict[str, float]] = {}
        self._aim = 1.0  # MACs per latency, both as shares, of the last model that was measured

    def shares(self, genome: Genome) -> dict[str, float]:
        """What remains of the predicted costs."""
        if genome.key not in self._known:
            cost = self._candidates.cost(self._space.choices(genome))
            self._known[genome.key] = {
                name: cost.of(name) / self._original.of(name) if self._original.of(name) else 1.0 for name in COST_NAMES
            }
        return self._known[genome.key]

    def measured(self, genome: Genome) -> dict[str, float]:
        """What remains of every cost; the latency too where there is a budget for it."""
        shares = self.shares(genome)
        return {**shares, "latency": self._latency(genome)} if "latency" in self.limits else dict(shares)

    def fitted(self, genome: Genome, rng: random.Random, *, fill: bool) -> Genome | None:
        """The genome within the budget, with more taken away everywhere where needed; None where it cannot be.

        ``fill``: what the budget leaves is used, with less taken away everywhere.
        """
        found = self._within(genome, rng, self.predicted)
        if found is None:
            return None
        if fill:
            found = self._filled(found, self.predicted)
        return found if "latency" not in self.limits else self._fast_enough(found, rng, fill=fill)

    def uniform(self, bits: int) -> Genome | None:
        """The smallest sparsity, the same everywhere (in hundredths), that is within the budget; None if none is."""
        low, high = 0, 100
        if not self._holds(self._space.uniform(1.0, bits)):
            return None
        while low < high:
            middle = (low + high) // 2
            if self._holds(self._space.uniform(middle / 100, bits)):
                high = middle
            else:
                low = middle + 1
        return self._space.uniform(low / 100, bits)

    def _holds(self, genome: Genome) -> bool:
        return self.predicted(genome) and (
            "latency" not in self.limits or self._latency(genome) <= self.limits["latency"]
        )

    def predicted(self, genome: Genome) -> bool:
        """Whether the predicted costs are within the budget; a latency is not looked at."""
        shares = self.shares(genome)
        return all(shares[name] <= limit + 1e-12 for name, limit in self.limits.items() if name != "latency")

    def _within(self, genome: Genome, rng: random.Random, holds: Callable[[Genome], bool]) -> Genome | None:
        while not holds(self._space.scaled(genome, 0.0)):
            fewer = self._space.fewer_bits(genome, rng)
            if fewer is None:
                return None
            genome = fewer
        if holds(genome):
            return genome
        return self._bisected(genome, 0.0, 1.0, holds)

    def _filled(self, genome: Genome, holds: Callable[[Genome], bool]) -> Genome:
        most = 1 / min(
            (1 - step / unit.steps for unit, step in zip(self._space.units, genome.steps, strict=True)), default=1
        )
        return genome if most == 1 else self._bisected(genome, 1.0, most, holds)

    def _bisected(self, genome: Genome, low: float, high: float, holds: Callable[[Genome], bool]) -> Genome:
        """Scaled by the largest factor that holds; ``low`` does."""
        for _ in range(_ROUNDS):
            middle = (low + high) / 2
            low, high = (middle, high) if holds(self._space.scaled(genome, middle)) else (low, middle)
        found = self._space.scaled(genome, high)
        return found if holds(found) else self._space.scaled(genome, low)

    def _fast_enough(self, genome: Genome, rng: random.Random, *, fill: bool) -> Genome | None:
        """Brought to a latency by its multiply-accumulates, which are known, and measured until it is within."""
        limit = self.limits["latency"]
        target = limit * self._aim
        for _ in range(_TRIES):
            found = self._within(genome, rng, lambda one, most=target: self._few(one, most))  # type: ignore[misc]
            if found is None:
                return None
            if fill:
                found = self._filled(found, lambda one, most=target: self._few(one, most))  # type: ignore[misc]
            macs, latency = self.shares(found)["macs"], self._latency(found)
            if latency <= limit:
                self._aim = macs / latency
                return found
            target = min(target, macs) * limit / latency * _MARGIN
        return None

    def _few(self, genome: Genome, macs: float) -> bool:
        return self.predicted(genome) and self.shares(genome)["macs"] <= macs
