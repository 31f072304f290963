"""Measuring one change after another on one model (layer 4)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, TypeAlias

from torch import nn

from distiller_ng.names import ParameterIndex
from distiller_ng.ops.scores import Scores, as_scores
from distiller_ng.reports.sensitivity.changes import changed

__all__ = ["Cell", "TestFunction", "measure"]

#: ``test_func(model=model) -> (top1, top5, loss)``, or top1 alone.
TestFunction: TypeAlias = Callable[..., "Sequence[float] | float"]


class Cell(NamedTuple):
    """One measurement: a parameter and what is taken from it."""

    name: str
    level: float


def measure(
    model: nn.Module, cells: Iterable[Cell], group: str, test_func: TestFunction
) -> Iterator[tuple[Cell, Scores]]:
    """Each cell with its scores, as they are measured."""
    index = ParameterIndex(model)
    for cell in cells:
        with changed(index[cell.name], group, cell.level):
            scores = as_scores(test_func(model=model), "test_func")
        yield cell, scores
