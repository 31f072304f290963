"""Where a search begins: the same level everywhere, what rankings over all layers say, and chance (layer 4).

Source of the layer-adaptive ranking (LAMP): J. Lee et al., "Layer-adaptive sparsity for the Magnitude-based Pruning",
https://arxiv.org/abs/2010.07611: a weight's square, divided by the sum of the squares of the layer's weights that are
not smaller. Filters are ranked by their importance relative to the layer's mean.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import numpy as np

from distiller_ng.automatic._search_budget import Budget
from distiller_ng.automatic._search_space import Genome, SearchSpace
from distiller_ng.automatic.candidates import Candidates
from distiller_ng.pruning._families import Floats

__all__ = ["random_genome", "ranked_genomes", "uniform_genomes"]

_SAMPLE = 20_000  # values of a unit that a ranking looks at
_QUANTILES = 400


def uniform_genomes(space: SearchSpace, budget: Budget) -> list[Genome]:
    """The same sparsity everywhere, one for each number of bits: the smallest within the budget."""
    found = (budget.uniform(bits) for bits in space.bits or (32,))
    return list(dict.fromkeys(genome for genome in found if genome is not None))


def ranked_genomes(candidates: Candidates, space: SearchSpace, budget: Budget, rng: random.Random) -> Iterator[Genome]:
    """Levels at which one ranking over all layers meets the budget, for each number of bits."""
    scores = [_sampled(candidates.scores(unit.names[0])) for unit in space.units]
    rankings = [scores] if candidates.group == "filter" else [scores, [_layer_adaptive(values) for values in scores]]
    for ranking in rankings if space.units else ():
        for bits in space.bits or (32,):
            genome = budget.fitted(_cut(ranking, space, budget, bits), rng, fill=True)
            if genome is not None:
                yield genome


def random_genome(space: SearchSpace, budget: Budget, around: Genome, rng: random.Random) -> Genome | None:
    """One drawn at random, within the budget; one in four may leave some of it."""
    return budget.fitted(space.drawn(rng, around), rng, fill=rng.random() < 0.75)


def _sampled(values: Floats) -> Floats:
    return values if values.size <= _SAMPLE else values[:: values.size // _SAMPLE]


def _layer_adaptive(magnitudes: Floats) -> Floats:
    squares = magnitudes**2
    from_here: Floats = np.cumsum(squares[::-1])[::-1]
    return np.divide(squares, from_here, out=np.zeros_like(squares), where=from_here > 0)


def _cut(ranking: Sequence[Floats], space: SearchSpace, budget: Budget, bits: int) -> Genome:
    """The levels of the lowest threshold that is within the budget (of the highest, if none is)."""
    thresholds = np.quantile(np.concatenate(ranking), np.linspace(0, 1, _QUANTILES))

    def genome(place: int) -> Genome:
        levels = [float(np.searchsorted(values, thresholds[place]) / values.size) for values in ranking]
        return space.of_levels(levels, (bits,) * len(space.quantized))

    low, high = 0, _QUANTILES - 1
    while low < high:
        middle = (low + high) // 2
        if budget.predicted(genome(middle)):
            high = middle
        else:
            low = middle + 1
    return genome(low)
