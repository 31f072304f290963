"""``model_summary``: one entry point to the summaries, as the command line uses it (layer 4)."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from distiller_ng.errors import ArgumentError, did_you_mean, listed
from distiller_ng.names import unwrap
from distiller_ng.ops.dataset_shapes import dataset_names, dataset_shape
from distiller_ng.reports.compute import model_performance_summary
from distiller_ng.reports.modules import modules_summary
from distiller_ng.reports.sparsity import weights_sparsity_summary
from distiller_ng.reports.table import Table, pretty_int

__all__ = ["SUMMARIES", "model_summary"]

_logger = logging.getLogger(__name__)
_PICTURES = ("png", "png_w_params")


def model_summary(
    model: nn.Module,
    what: str,
    dataset: str | None = None,
    logdir: str | os.PathLike[str] = "",
    *,
    dummy_input: Any = None,
) -> Table | str:
    """Log a summary of the model at level INFO and return it: a :class:`Table`, or text for ``what="model"``.

    ``what`` is ``sparsity`` (of the weights), ``compute`` (MACs of each layer), ``modules`` (names and types) or
    ``model`` (as ``print`` shows it). ``compute`` runs the model on ``dummy_input``, else on random data shaped as the
    images of ``dataset``, else shaped as ``model.input_shape``. With ``logdir`` a table is also written there as CSV
    (``weights_sparsity.csv``, ``compute.csv``, ``modules.csv``).

    Raises :class:`ArgumentError` for another ``what``, and when ``compute`` has no input to run on.
    """
    if what not in SUMMARIES:
        if what in _PICTURES:
            raise ArgumentError(f"pictures of a model ({what!r}) are not drawn; allowed: {listed(SUMMARIES)}")
        raise ArgumentError(f"unknown summary {what!r}. {did_you_mean(str(what), SUMMARIES)}", argument=("what",))
    if what == "compute" and dummy_input is None:
        # A generator of its own: asking for a summary must not shift the random numbers of a training run.
        dummy_input = torch.randn(_input_shape(model, dataset), generator=torch.Generator().manual_seed(0))
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
}


def _log_total(what: str, table: Table) -> None:
    if what == "sparsity":
        _logger.info("Total sparsity: %0.2f\n", table["Fine (%)"][-1])
    if what == "compute":
        _logger.info("Total MACs: %s", pretty_int(sum(macs for macs in table["MACs"] if isinstance(macs, int))))


def _input_shape(model: nn.Module, dataset: str | None) -> tuple[int, ...]:
    if dataset:
        return dataset_shape(dataset).input_shape
    shape = getattr(unwrap(model), "input_shape", None)
    if shape is None:
        raise ArgumentError(
            "the compute summary needs to know the input: pass dummy_input, set model.input_shape, or name a data set "
            f"({listed(dataset_names())})",
            argument=("dataset",),
        )
    return tuple(shape)
