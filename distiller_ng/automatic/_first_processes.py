"""Measuring compressed copies of a model in several processes."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch

from distiller_ng.automatic.candidates import Candidates, LayerChoice
from distiller_ng.errors import ArgumentError
from distiller_ng.graph.inputs import ExampleInputs
from distiller_ng.ops.scores import Scores, as_scores
from distiller_ng.ops.worker_processes import end_with_parent

__all__ = ["measure_in_processes"]


def measure_in_processes(
    candidates: Candidates, choices: Sequence[Mapping[str, LayerChoice]], test: Any, processes: int
) -> list[Scores]:
    """What ``test(model=copy)`` gives for the copy of each choice, in their order.

    Raises :class:`ArgumentError` for a model or function that cannot be sent to another process.
    """
    subject = (candidates.model, candidates.example_inputs, candidates.group, test)
    try:
        pickle.dumps(subject)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        message = f"processes={processes}: the model and its evaluation must be importable by name: {error}"
        raise ArgumentError(message, argument=("processes",)) from error
    context = torch.multiprocessing.get_context("spawn")  # a fork of a process that used threads may hang
    threads = max(1, (os.cpu_count() or 1) // processes)
    with ProcessPoolExecutor(processes, context, _start, (*subject, threads)) as pool:
        return list(pool.map(_measure_one, choices))


_STATE: dict[str, Any] = {}  # of a worker process: what it was started with


def _start(model: torch.nn.Module, inputs: ExampleInputs, group: str, test: Any, threads: int) -> None:
    end_with_parent()
    torch.set_num_threads(threads)
    _STATE.update(candidates=Candidates(model, inputs, group=group), test=test)


def _measure_one(choice: Mapping[str, LayerChoice]) -> Scores:
    return as_scores(_STATE["test"](model=_STATE["candidates"].build(choice)))
