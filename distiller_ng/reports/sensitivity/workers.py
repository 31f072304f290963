"""Sharing the measurements of a sensitivity analysis among processes and ranks (layer 4)."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from distiller_ng.errors import ArgumentError
from distiller_ng.ops.scores import Scores
from distiller_ng.ops.worker_processes import end_with_parent
from distiller_ng.reports.sensitivity.measuring import Cell, TestFunction, measure

__all__ = ["gather", "measure_in_processes", "rank_and_world"]

K = TypeVar("K")
V = TypeVar("V")


def rank_and_world() -> tuple[int, int]:
    """This process's number and how many there are; ``(0, 1)`` without an initialized process group."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def gather(found: dict[K, V]) -> dict[K, V]:
    """The entries of all ranks, on every rank."""
    _, world = rank_and_world()
    if world == 1:
        return found
    parts: list[Any] = [None] * world
    dist.all_gather_object(parts, found)
    return {key: value for part in parts for key, value in part.items()}


def measure_in_processes(
    model: nn.Module, cells: Sequence[Cell], group: str, test_func: TestFunction, processes: int
) -> Iterator[tuple[Cell, Scores]]:
    """Each cell with its scores, as they are ready. Raises :class:`ArgumentError` for what cannot be sent."""
    try:
        pickle.dumps((model, test_func))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ArgumentError(
            f"processes={processes}: the model and test_func must be importable by name in another process: {error}",
            argument=("processes",),
        ) from error
    context = torch.multiprocessing.get_context("spawn")  # a fork of a process that used threads may hang
    threads = max(1, (os.cpu_count() or 1) // processes)
    with ProcessPoolExecutor(processes, context, _start, (model, test_func, threads)) as pool:
        tasks = [pool.submit(_measure_one, cell, group) for cell in cells]
        for task in as_completed(tasks):
            yield task.result()


_STATE: dict[str, Any] = {}  # of a worker process: what it was started with


def _start(model: nn.Module, test_func: Any, threads: int) -> None:
    end_with_parent()
    torch.set_num_threads(threads)
    _STATE.update(model=model, test_func=test_func)


def _measure_one(cell: Cell, group: str) -> tuple[Cell, Scores]:
    return next(measure(_STATE["model"], [cell], group, _STATE["test_func"]))
