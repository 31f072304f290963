"""Run a model once and keep what its activations were (layer 2)."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from distiller_ng.data_loggers.activation_histograms import ActivationHistogramsCollector
from distiller_ng.data_loggers.contexts import collector_context
from distiller_ng.data_loggers.quant_calibration import QuantCalibrationStatsCollector
from distiller_ng.data_loggers.quant_stats_file import QuantStats
from distiller_ng.data_loggers.raw_activations import RawActivationsCollector
from distiller_ng.errors import CalibrationError

__all__ = ["HISTOGRAMS_FILE", "STATS_FILE", "collect_histograms", "collect_quant_stats", "collect_raw_outputs"]

logger = logging.getLogger(__name__)

STATS_FILE = "acts_quantization_stats.yaml"
HISTOGRAMS_FILE = "acts_histograms.pt"
RAW_FOLDER = "layer_raw_outputs"

PathLike = str | os.PathLike[str]


def collect_quant_stats(
    model: nn.Module,
    test_fn: Callable[..., Any],
    save_dir: PathLike | None = None,
    classes: Sequence[type[nn.Module]] | None = None,
    inplace_runtime_check: bool = False,
    disable_inplace_attrs: bool = False,
    inplace_attr_names: Sequence[str] = ("inplace",),
    modules_to_collect: Iterable[str] | None = None,
    *,
    second_pass: bool = False,
    histograms: bool = False,
) -> QuantStats:
    """Calibration statistics of ``model`` while ``test_fn(model=model)`` runs it on the calibration data.

    ``test_fn`` is called once; ``second_pass`` calls it again for an exact ``b``. ``save_dir`` gets the file
    ``acts_quantization_stats.yaml``; ``modules_to_collect`` restricts to named modules; the rest is as for
    :class:`QuantCalibrationStatsCollector`, which also shows the result. Example::

        stats = collect_quant_stats(model, lambda model: evaluate(model, calibration_loader), save_dir="stats")

    Raises :class:`CalibrationError` for NaN, and when ``test_fn`` ran no module that is watched.
    """
    collector = QuantCalibrationStatsCollector(
        model, classes, inplace_runtime_check, disable_inplace_attrs, inplace_attr_names, histograms=histograms
    )
    modules = None if modules_to_collect is None else list(modules_to_collect)
    with collector_context(collector, modules):
        test_fn(model=model)
    if second_pass and collector.value():
        collector.start_second_pass()
        with collector_context(collector, modules):
            test_fn(model=model)
        collector.stop_second_pass()
    stats = collector.value()
    _refuse_nothing(stats, "statistics")
    if save_dir is not None:
        logger.info("calibration statistics: %s", collector.save(Path(save_dir) / STATS_FILE))
    return stats


def collect_histograms(
    model: nn.Module,
    test_fn: Callable[..., Any],
    save_dir: PathLike | None = None,
    activation_stats: PathLike | Mapping[str, Any] | None = None,
    classes: Sequence[type[nn.Module]] | None = None,
    nbins: int = 2048,
    save_hist_imgs: bool = False,
    hist_imgs_ext: str = ".svg",
) -> dict[str, dict[str, Any]]:
    """Histograms of the activations of ``model`` while ``test_fn(model=model)`` runs it.

    Without ``activation_stats`` these are collected first, which calls ``test_fn`` once more (and writes them to
    ``save_dir`` too). ``save_dir`` gets ``acts_histograms.pt`` and, with ``save_hist_imgs``, the folder
    ``histogram_imgs``. See :class:`ActivationHistogramsCollector` for the result and for what is raised.
    """
    if activation_stats is None:
        activation_stats = collect_quant_stats(model, test_fn, save_dir, classes)
    collector = ActivationHistogramsCollector(model, activation_stats, classes, nbins, save_hist_imgs, hist_imgs_ext)
    with collector_context(collector):
        test_fn(model=model)
    histograms = collector.value()
    _refuse_nothing(histograms, "histograms")
    if save_dir is not None:
        logger.info("activation histograms: %s", collector.save(Path(save_dir) / HISTOGRAMS_FILE))
    return histograms


def collect_raw_outputs(
    model: nn.Module,
    test_fn: Callable[..., Any],
    save_dir: PathLike | None = None,
    classes: Sequence[type[nn.Module]] | None = None,
) -> dict[str, Tensor | list[Tensor]]:
    """The outputs of all modules of ``model`` while ``test_fn(model=model)`` runs it.

    ``save_dir`` gets the folder ``layer_raw_outputs`` with one file a module. See :class:`RawActivationsCollector`.
    """
    collector = RawActivationsCollector(model, classes)
    with collector_context(collector):
        test_fn(model=model)
    outputs = collector.value()
    _refuse_nothing(outputs, "outputs")
    if save_dir is not None:
        logger.info("raw outputs: %s", collector.save(Path(save_dir) / RAW_FOLDER))
    return outputs


def _refuse_nothing(found: Mapping[str, Any], what: str) -> None:
    if not found:
        raise CalibrationError(
            f"no {what} were collected: test_fn ran no module that is watched. It must run the model it is given, "
            "test_fn(model=model), on at least one batch, without a compiled or exported copy of it"
        )
