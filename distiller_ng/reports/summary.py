"""``model_summary``: one entry point to the summaries, as the command line uses it (layer 4)."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from distiller_ng.errors import ArgumentError, did_you_mean
from distiller_ng.graph.summary_graph import SummaryGraph
from distiller_ng.ops.modules import convert_tensors_recursively_to, model_device
from distiller_ng.reports._example_input import example_input
from distiller_ng.reports.compute import model_performance_summary
from distiller_ng.reports.connectivity import connectivity_summary
from distiller_ng.reports.modules import attributes_summary, modules_summary
from distiller_ng.reports.pictures import draw_model_to_file
from distiller_ng.reports.sparsity import weights_sparsity_summary
from distiller_ng.reports.table import Table, pretty_int

__all__ = ["PICTURES", "SUMMARIES", "model_summary"]

_logger = logging.getLogger(__name__)
#: Pictures by name: whether they show parameters.
PICTURES = {"png": False, "png_w_params": True}


def model_summary(
    model: nn.Module,
    what: str,
    dataset: str | None = None,
    logdir: str | os.PathLike[str] = "",
    *,
    dummy_input: Any = None,
) -> Table | str:
    """Log a summary of the model at level INFO and return it: a :class:`Table`, or text for ``model`` and pictures.

    ``what`` is ``sparsity`` (of the weights), ``compute`` (MACs of each layer), ``modules`` (names and types),
    ``model`` (as ``print`` shows it), ``connectivity`` (which operation reads whose output), ``attributes`` (the
    operations' settings and sizes), or ``png`` (a picture of the operations, with parameters as ``png_w_params``)
    written to ``model.png`` in ``logdir``, whose path is returned. Those that need an input run or trace the model on
    ``dummy_input``, else on random data shaped as the images of ``dataset``, else shaped as ``model.input_shape``.
    With ``logdir`` a table is also written there as CSV (``weights_sparsity.csv``, ``compute.csv``, ``modules.csv``,
    ``connectivity.csv``, ``attributes.csv``).

    Raises :class:`ArgumentError` for another ``what``, when an input is needed and not known, and for pictures when
    matplotlib is not installed; :class:`GraphError` when the model cannot be traced.
    """
    if what not in SUMMARIES and what not in PICTURES:
        raise ArgumentError(
            f"unknown summary {what!r}. {did_you_mean(str(what), [*SUMMARIES, *PICTURES])}", argument=("what",)
        )
    if dummy_input is None and what in _NEED_INPUT:
        dummy_input = convert_tensors_recursively_to(example_input(model, dataset), model_device(model))
    if what in PICTURES:
        path = Path(logdir) / "model.png"
        draw_model_to_file(SummaryGraph(model, dummy_input), path, PICTURES[what])
        _logger.info("picture of the model: %s", path)
        return str(path)
    filename, build = SUMMARIES[what]
    summary = build(model, dummy_input)
    _logger.info("\n%s", summary)
    if isinstance(summary, Table):
        _log_total(what, summary)
        if logdir != "":
            summary.to_csv(Path(logdir) / filename)
    return summary


SUMMARIES: dict[str, tuple[str, Callable[[nn.Module, Any], Table | str]]] = {
    "sparsity": ("weights_sparsity.csv", lambda model, _: weights_sparsity_summary(model)),
    "compute": ("compute.csv", lambda model, dummy_input: model_performance_summary(model, dummy_input)),
    "model": ("", lambda model, _: str(model)),
    "modules": ("modules.csv", lambda model, _: modules_summary(model)),
    "connectivity": ("connectivity.csv", lambda model, x: connectivity_summary(SummaryGraph(model, x))),
    "attributes": ("attributes.csv", lambda model, x: attributes_summary(SummaryGraph(model, x))),
}
_NEED_INPUT = ("compute", "connectivity", "attributes", *PICTURES)


def _log_total(what: str, table: Table) -> None:
    if what == "sparsity":
        _logger.info("Total sparsity: %0.2f\n", table["Fine (%)"][-1])
    if what == "compute":
        _logger.info("Total MACs: %s", pretty_int(sum(macs for macs in table["MACs"] if isinstance(macs, int))))
