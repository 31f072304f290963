"""A search as text and as a picture (layer 4, above reports)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from distiller_ng.automatic.search_result import SearchCandidate, SearchResult
from distiller_ng.errors import ArgumentError
from distiller_ng.ops.files import replacing
from distiller_ng.ops.optional import require
from distiller_ng.ops.table import Cell, Table

__all__ = ["layers_table", "overview_table", "pareto_table", "search_to_picture"]

_FORMATS = (".png", ".svg", ".pdf")
_UNITS = {"macs": "MACs", "size": "Size", "params": "Not zero", "latency": "Latency"}


def overview_table(result: SearchResult) -> Table:
    """The model as it is, the same level everywhere, and the best: accuracy and what remains of the costs."""
    rows = (("as it is", result.original), ("uniform", result.uniform), ("best", result.best))
    names = list(result.best.shares)
    within = ", ".join(f"{name} <= {limit:g}" for name, limit in result.budget.items())
    columns = ("", "Top-1 (%)", "Loss", *(f"{_UNITS[name]} (%)" for name in names))
    return Table(
        f"Best of {len(result.history)} candidates within {within}", columns, tuple(_row(*row) for row in rows)
    )


def layers_table(result: SearchResult) -> Table:
    """Each parameter's sparsity and bits, of the best and of the uniform candidate."""
    whole = "filters" if result.group == "filter" else "weights"
    rows: list[tuple[Cell, ...]] = []
    for name, choice in result.best.choices.items():
        uniform = result.uniform.choices[name]
        tied = next((names for names in result.coupled if name in names), (name,))
        with_ = "" if len(tied) == 1 or tied[0] == name else f"with {tied[0]}"
        levels = (f"{100 * one.sparsity:.1f}" if name in tied or one.sparsity else "-" for one in (choice, uniform))
        rows.append((name, *levels, choice.bits, uniform.bits, with_))
    columns = ("Parameter", f"{whole} gone (%)", "uniform: gone (%)", "bits", "uniform: bits", "coupled")
    return Table("Layers of the best candidate", columns, tuple(rows))


def pareto_table(result: SearchResult) -> Table:
    """Candidates that no other beats in both accuracy and cost, cheapest first."""
    names = list(result.best.shares)
    rows = tuple(_row(one.origin, one) for one in result.pareto())
    title = f"Most accurate for their {_UNITS[next(iter(result.budget))]} (Pareto front)"
    return Table(title, ("From", "Top-1 (%)", "Loss", *(f"{_UNITS[name]} (%)" for name in names)), rows)


def _row(what: str, one: SearchCandidate) -> tuple[Any, ...]:
    loss = "-" if one.loss != one.loss else f"{one.loss:.4f}"
    return (what, f"{one.top1:.2f}", loss, *(f"{100 * share:.1f}" for share in one.shares.values()))


def search_to_picture(result: SearchResult, path: str | os.PathLike[str], *, cost: str | None = None) -> None:
    """Draw top-1 over a cost (default: the first of the budget) of every candidate, with the Pareto front.

    The name's ending says the format: .png, .svg or .pdf. Raises :class:`ArgumentError` for another ending, and without
    matplotlib.
    """
    ending = Path(path).suffix.lower()
    if ending not in _FORMATS:
        raise ArgumentError(f"a picture ends in {', '.join(_FORMATS)}, got {str(path)!r}", argument=("path",))
    figure_class = require("matplotlib.figure", "plots", "drawing a search").Figure
    name = cost or next(iter(result.budget))
    figure = figure_class(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()

    def points(many: list[SearchCandidate]) -> tuple[list[float], list[float]]:
        return [100 * one.shares[name] for one in many], [one.top1 for one in many]

    front = result.pareto(name)
    axes.plot(*points(list(result.history)), ".", color="0.65", label=f"{len(result.history)} candidates")
    axes.plot(*points(front), "-o", color="#1b6ca8", markersize=4, label="Pareto front")
    axes.plot(*points([result.uniform]), "s", color="#b3541e", label="same level everywhere")
    axes.plot(*points([result.best]), "*", color="#1a7f37", markersize=13, label="best")
    axes.axhline(result.original.top1, color="0.3", linestyle=":", label="as it is")
    if name in result.budget:
        axes.axvline(100 * result.budget[name], color="0.3", linestyle="--", label="budget")
    axes.set(xlabel=f"{_UNITS[name]} (% of the original)", ylabel="top-1 (%)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    with replacing(path) as file:
        figure.savefig(file, format=ending[1:], dpi=110)
