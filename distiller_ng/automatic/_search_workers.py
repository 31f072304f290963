"""Evaluating candidates: one after another, in several processes, on several ranks (layer 4)."""

from __future__ import annotations

import hashlib
import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import nn

from distiller_ng.automatic._search_space import Genome, SearchSpace
from distiller_ng.automatic.candidates import Candidates
from distiller_ng.errors import ArgumentError
from distiller_ng.ops.scores import Scores, as_scores
from distiller_ng.ops.worker_processes import end_with_parent

__all__ = ["Evaluate", "Evaluator"]

#: ``evaluate(model) -> top1`` or ``(top1, top5, loss)``; it may train the model, which is a copy, first.
Evaluate: TypeAlias = Callable[[nn.Module], Any]


class Evaluator:
    """Builds candidates and measures them with the user's function.

    Random numbers of torch begin at a seed of the candidate's own, so that a measurement is the same in every process
    and after a resume.
    """

    def __init__(self, candidates: Candidates, space: SearchSpace, evaluate: Evaluate) -> None:
        self.candidates, self.space, self.evaluate = candidates, space, evaluate

    def one(self, genome: Genome | None) -> Scores:
        """The scores of one candidate; None is the model as it is."""
        model = self.candidates.build({} if genome is None else self.space.choices(genome)).eval()
        key = "original" if genome is None else genome.key
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(hashlib.sha256(key.encode()).hexdigest()[:15], 16))
            return as_scores(self.evaluate(model))

    @contextmanager
    def pool(self, processes: int) -> Iterator[Callable[[Sequence[Genome | None]], Iterator[tuple[Any, Scores]]]]:
        """A function that measures candidates, in as many processes, as they are ready.

        Raises :class:`ArgumentError` for what cannot be sent to another process, and for processes that die.
        """
        if processes == 1:
            yield lambda genomes: ((genome, self.one(genome)) for genome in genomes)
            return
        self._check_sendable(processes)
        context = torch.multiprocessing.get_context("spawn")  # a fork of a process that used threads may hang
        threads = max(1, (os.cpu_count() or 1) // processes)
        with ProcessPoolExecutor(processes, context, _start, (self, threads)) as pool:
            try:
                yield lambda genomes: _measured(pool, genomes)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _check_sendable(self, processes: int) -> None:
        try:
            pickle.dumps(self)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            message = f"processes={processes}: the model and evaluate must be importable by name: {error}"
            raise ArgumentError(message, argument=("processes",)) from error


def _measured(pool: ProcessPoolExecutor, genomes: Sequence[Genome | None]) -> Iterator[tuple[Any, Scores]]:
    tasks = {pool.submit(_one, genome): genome for genome in genomes}
    for task in as_completed(tasks):
        try:
            yield tasks[task], task.result()
        except BrokenProcessPool as error:
            message = f"a process that evaluates died: {error}. Is there enough memory for so many? Take processes=1"
            raise ArgumentError(message, argument=("processes",)) from error


_STATE: dict[str, Evaluator] = {}  # of a worker process: what it was started with


def _start(given: Evaluator, threads: int) -> None:
    end_with_parent()
    torch.set_num_threads(threads)
    _STATE["evaluator"] = given


def _one(genome: Genome | None) -> Scores:
    return _STATE["evaluator"].one(genome)
