"""Measuring one change after another on one model (layer 4)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

from torch import nn

from distiller_ng.errors import ArgumentError
from distiller_ng.names import ParameterIndex
from distiller_ng.reports.sensitivity.changes import changed
from distiller_ng.reports.sensitivity.output import Scores

__all__ = ["Cell", "TestFunction", "as_scores", "measure"]

#: ``test_func(model=model) -> (top1, top5, loss)``.
TestFunction: TypeAlias = Callable[..., Sequence[float]]


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
            scores = as_scores(test_func(model=model))
        yield cell, scores


def as_scores(values: Any) -> Scores:
    """``(top1, top5, loss)`` as numbers. Raises :class:`ArgumentError` for anything else."""
    try:
        top1, top5, loss = (float(value) for value in values)
    except (TypeError, ValueError) as error:
        raise ArgumentError(
            f"test_func must return (top1, top5, loss), got {values!r}", argument=("test_func",)
        ) from error
    return top1, top5, loss
