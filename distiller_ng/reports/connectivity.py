"""Which operation reads whose output (layer 4)."""

from __future__ import annotations

from collections.abc import Iterable

from distiller_ng.errors import ArgumentError
from distiller_ng.graph.summary_graph import SummaryGraph
from distiller_ng.reports.table import Table, size_to_str

__all__ = ["checked_graph", "connectivity_summary", "connectivity_summary_verbose", "connectivity_tbl_summary"]

_COLUMNS = ("Name", "Type", "Inputs", "Outputs")


def connectivity_summary(sgraph: SummaryGraph) -> Table:
    """One row for each operation, in the order they run: name, type, and the tensors it reads and makes.

    The first row of ResNet-20: ``conv1, Conv, "input.1, conv1.weight", "conv1:0"``. Raises :class:`ArgumentError` for
    anything but a :class:`SummaryGraph`.
    """
    return _table(sgraph, verbose=False)


def connectivity_summary_verbose(sgraph: SummaryGraph) -> Table:
    """:func:`connectivity_summary` with the shape of each tensor: ``"input.1 (1, 3, 32, 32), ..."``."""
    return _table(sgraph, verbose=True)


def connectivity_tbl_summary(sgraph: SummaryGraph, verbose: bool = False) -> str:
    """:func:`connectivity_summary` as text, or with ``verbose`` :func:`connectivity_summary_verbose`."""
    return str(_table(sgraph, verbose=verbose))


def checked_graph(sgraph: SummaryGraph) -> SummaryGraph:
    """The argument itself. Raises :class:`ArgumentError` when it is no graph, which a model is not."""
    if not isinstance(sgraph, SummaryGraph):
        raise ArgumentError(
            f"this summary is made of a SummaryGraph, got {type(sgraph).__name__}: write SummaryGraph(model, x), with "
            "an example input x",
            argument=("sgraph",),
        )
    return sgraph


def _table(sgraph: SummaryGraph, *, verbose: bool) -> Table:
    graph = checked_graph(sgraph)

    def listed(tensors: Iterable[str]) -> str:
        return ", ".join(f"{t} {size_to_str(graph.param_shape(t))}" if verbose else t for t in tensors)

    rows = tuple((op["name"], op["type"], listed(op["inputs"]), listed(op["outputs"])) for op in graph.ops.values())
    return Table("Connectivity:", _COLUMNS, rows)
