"""Automatic levels for each layer within a budget: an evolutionary search over sparsities and bits (layer 4)."""

from __future__ import annotations

import logging
import os
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch.distributed as dist
from torch import nn

from distiller_ng.automatic._search_budget import Budget, check_budget
from distiller_ng.automatic._search_latency import latency_share
from distiller_ng.automatic._search_record import SearchRecord, heading_of
from distiller_ng.automatic._search_seeds import random_genome, ranked_genomes, uniform_genomes
from distiller_ng.automatic._search_space import Genome, SearchSpace
from distiller_ng.automatic._search_workers import Evaluate, Evaluator
from distiller_ng.automatic.candidates import Candidates
from distiller_ng.automatic.search_result import SearchCandidate, SearchResult, rank_of
from distiller_ng.errors import ArgumentError, DistillerError
from distiller_ng.graph.inputs import ExampleInputsLike
from distiller_ng.names import ALL_PRUNABLE
from distiller_ng.ops.scores import Scores, check_whole
from distiller_ng.pruning.importance.base import ImportanceLike
from distiller_ng.reports.sensitivity.workers import gather

__all__ = ["search_compression"]

logger = logging.getLogger(__name__)

_MOST = {"element": 0.95, "filter": 0.9}
_TOURNAMENT = 3
_ATTEMPTS = 20  # to vary into something new, before a smaller generation is taken


def search_compression(
    model: nn.Module,
    example_inputs: ExampleInputsLike,
    evaluate: Evaluate,
    budget: Mapping[str, float],
    *,
    group: str = "element",
    params: str | Sequence[str] = ALL_PRUNABLE,
    bits: Sequence[int] = (),
    max_sparsity: float | None = None,
    importance: ImportanceLike = "l1",
    population: int = 16,
    generations: int = 10,
    seed: int = 0,
    results_file: str | os.PathLike[str] | None = None,
    processes: int = 1,
) -> SearchResult:
    """Find a sparsity for each layer (and bits for each parameter) that keeps most accuracy within ``budget``.

    ``evaluate(model)`` returns top-1, or ``(top1, top5, loss)``; it is given a compressed copy in evaluation mode, and
    may train it first. ``budget``: what may remain, as shares: ``{"macs": 0.5}``; also ``size`` (bytes as stored),
    ``params`` (that are not zero) and ``latency`` (measured on the compressed copy, in turn with the model; group
    "filter" only); several hold together. ``group``: "element" prunes single weights, "filter" removes filters with all
    that is coupled with them. ``params``: which parameters (names, patterns, tokens). ``bits``: like ``[4, 8]`` (or 32,
    floating point), what each parameter may be rounded to. ``max_sparsity``: of one layer (default 0.95, of filters
    0.9). ``importance`` ranks filters.

    Evolution: the first of ``population`` candidates are the same level everywhere, and levels of rankings over all
    layers; the others are random. In each of ``generations``, as many new ones come from parents that won tournaments,
    crossed and mutated, and the best of old and new stay. Every candidate is brought within the budget before it is
    measured, and measured once. The same ``seed`` gives the same result, with ``processes``, on several ranks, and
    after an interruption (but for latencies, which no two measurements agree on), if ``evaluate`` is deterministic.

    ``results_file``: JSON, written after every measurement and read before the first. ``processes``: that many evaluate
    at once (``evaluate`` must be importable by name then). In an initialized ``torch.distributed`` group the ranks
    share the evaluations, and all get the result. Progress with the remaining time goes to the log.

    Sources: the task is that of AMC (Y. He et al., https://arxiv.org/abs/1802.03494), the tournaments are those of
    E. Real et al. (https://arxiv.org/abs/1802.01548), survival is elitist. ::

        found = search_compression(model, (images,), accuracy, {"macs": 0.5}, group="filter")
        print(found.best.top1, found.uniform.top1)  # 97.2 against 94.4 for 0.37 everywhere
        Path("schedule.yaml").write_text(found.schedule_text(epochs=20))

    Raises :class:`ArgumentError` for a budget that cannot be met (it says what can), settings that cannot be, and a
    file of another model; :class:`TargetError` for names that match nothing; :class:`GraphError` where channels cannot
    be followed.
    """
    candidates = Candidates(model, example_inputs, group=group, importance=importance)
    limits = check_budget(budget, group)
    for name, value, least in (
        ("population", population, 2),
        ("generations", generations, 0),
        ("processes", processes, 1),
    ):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ArgumentError(f"{name} is a whole number from {least} on, got {value!r}", argument=(name,))
    if not callable(evaluate):
        raise ArgumentError(f"evaluate is a function of a model, got {evaluate!r}", argument=("evaluate",))
    space = SearchSpace(candidates, params, bits, _MOST[group] if max_sparsity is None else max_sparsity)
    record = SearchRecord(results_file, heading_of(candidates, space, importance))
    evaluator = Evaluator(candidates, space, evaluate)
    search = _Search(evaluator, limits, record, population, generations, seed)
    with evaluator.pool(processes) as measure:
        return search.run(measure)


Measure = Callable[[Sequence[Genome | None]], Iterable[tuple[Genome | None, Scores]]]


class _Search:
    """One run: the genomes in the order they were thought of, with generation and origin."""

    def __init__(
        self,
        evaluator: Evaluator,
        limits: Mapping[str, float],
        record: SearchRecord,
        population: int,
        generations: int,
        seed: int,
    ) -> None:
        self.candidates, self.space = evaluator.candidates, evaluator.space
        self.record, self.population, self.generations, self.seed = record, population, generations, seed
        self.budget = Budget(limits, self.candidates, self.space, self._latency)
        self.thought: dict[Genome, tuple[int, str]] = {}
        self._uniform: list[Genome] = []
        self._began, self._done = time.monotonic(), 0

    def run(self, measure: Measure) -> SearchResult:
        """All generations."""
        self._first_generation()
        self._evaluate([None, *self.thought], measure)
        for generation in range(1, self.generations + 1):
            fresh = self._next_generation(generation)
            if not fresh:
                logger.info("search: nothing new within the budget after %d candidates", len(self.thought))
                break
            self._evaluate(fresh, measure)
        self.record.share()
        history = [self._candidate(genome) for genome in self.thought]
        uniform = max((self._candidate(genome) for genome in self._uniform), key=lambda one: one.rank)
        best = max(history, key=lambda one: one.rank)
        coupled = [unit.names for unit in self.space.units]
        limits, group = self.budget.limits, self.candidates.group
        return SearchResult(best, uniform, self._original(), history, limits, group, coupled, self.candidates)

    # -- candidates -------------------------------------------------------------------------------------------------

    def _first_generation(self) -> None:
        self._uniform = uniform_genomes(self.space, self.budget)
        rng = random.Random(f"{self.seed} 0")
        if not self._uniform:
            self._refuse()
        for genome in self._uniform:
            self.thought.setdefault(genome, (0, "uniform"))
        for genome in ranked_genomes(self.candidates, self.space, self.budget, rng):
            self.thought.setdefault(genome, (0, "ranked"))
        for _ in range(self.population * _ATTEMPTS):
            if len(self.thought) >= self.population:
                break
            drawn = random_genome(self.space, self.budget, self._uniform[0], rng)
            if drawn is not None:
                self.thought.setdefault(drawn, (0, "random"))

    def _next_generation(self, generation: int) -> list[Genome]:
        rng = random.Random(f"{self.seed} {generation}")
        parents = sorted(self.thought, key=self._rank, reverse=True)[: self.population]
        fresh: list[Genome] = []
        for _ in range(self.population * _ATTEMPTS):
            if len(fresh) >= self.population:
                break
            child = self._tournament(parents, rng)
            if rng.random() < 0.5:
                child = self.space.crossed(child, self._tournament(parents, rng), rng)
            fitted = self.budget.fitted(self.space.mutated(child, rng), rng, fill=rng.random() < 0.75)
            if fitted is not None and fitted not in self.thought:
                self.thought[fitted] = (generation, "evolved")
                fresh.append(fitted)
        return fresh

    def _tournament(self, parents: Sequence[Genome], rng: random.Random) -> Genome:
        """The best of some; ``parents`` are in order."""
        return parents[min(rng.randrange(len(parents)) for _ in range(_TOURNAMENT))]

    def _refuse(self) -> None:
        least = self.budget.measured(self.space.uniform(1.0, self.space.bits[-1] if self.space.bits else 32))
        reached = ", ".join(f"{least[name]:.3g} of {name}" for name in self.budget.limits)
        asked = ", ".join(f"{name}={limit:g}" for name, limit in self.budget.limits.items())
        message = (
            f"no candidate is within {asked}: with every parameter at its smallest {reached} remains. Allow more, name "
            "more parameters, or raise max_sparsity"
        )
        raise ArgumentError(message, argument=("budget",))

    # -- measuring --------------------------------------------------------------------------------------------------

    def _evaluate(self, genomes: Sequence[Genome | None], measure: Measure) -> None:
        """Measure what is not known; of several ranks each its share, and all get all."""
        rank, world = self.record.rank, self.record.world
        new = [genome for genome in genomes if _key(genome) not in self.record.scores]
        failed = {rank: True}
        try:
            for genome, scores in measure(new[rank::world]):
                if genome is None:
                    check_whole(scores)
                self.record.add(_key(genome), scores)
                self._tell(genome, scores)
            failed = {}
        finally:
            failed = gather(failed)  # the other ranks would wait for this one forever
        if failed:
            ranks = ", ".join(map(str, failed))
            raise DistillerError(f"the evaluation failed on rank {ranks}, which says why")
        self.record.share()

    def _tell(self, genome: Genome | None, scores: Scores) -> None:
        self._done += 1
        first = max(self.population, sum(generation == 0 for generation, _ in self.thought.values()))
        total = 1 + first + self.population * self.generations
        left = total - sum(key in self.record.scores for key in ("original", *(one.key for one in self.thought)))
        seconds = (time.monotonic() - self._began) / self._done * max(0, left) / self.record.world
        best = max((self.record.scores[one.key][0] for one in self.thought if one.key in self.record.scores), default=0)
        shares = self.budget.shares(genome) if genome is not None else {}
        kept = ", ".join(f"{shares[name]:.3f} of {name}" for name in self.budget.limits if name in shares)
        what = f"top1 {scores[0]:.2f}" + (f" with {kept}, best {best:.2f}" if kept else " as it is")
        logger.info("search %d/%d: %s (%.0f s left)", total - max(0, left), total, what, seconds)

    def _latency(self, genome: Genome) -> float:
        """Measured once, by the first rank."""
        known = self.record.latency.get(genome.key)
        if known is None:
            measured = [0.0]
            if self.record.rank == 0:
                made = self.candidates.build(self.space.choices(genome))
                measured = [latency_share(made, self.candidates.model, self.candidates.example_inputs)]
            if self.record.world > 1:
                dist.broadcast_object_list(measured, src=0)
            known = measured[0]
            self.record.add_latency(genome.key, known)
        return known

    def _rank(self, genome: Genome) -> tuple[float, float, float]:
        return rank_of(self.record.scores[genome.key], self.budget.measured(genome))

    def _candidate(self, genome: Genome) -> SearchCandidate:
        choices = self.space.choices(genome)
        shares = self.budget.measured(genome)
        generation, origin = self.thought[genome]
        cost = self.candidates.cost(choices)
        return SearchCandidate(choices, *self.record.scores[genome.key], cost, shares, generation, origin)

    def _original(self) -> SearchCandidate:
        whole = dict.fromkeys(self.budget.measured(self._uniform[0]), 1.0)
        return SearchCandidate({}, *self.record.scores["original"], self.candidates.cost({}), whole, 0, "original")


def _key(genome: Genome | None) -> str:
    return "original" if genome is None else genome.key
