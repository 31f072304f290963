"""Activation statistics and histograms of the image-classification application (layer 5)."""

from __future__ import annotations

import argparse
import copy
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import nn

from distiller_ng.apputils.classifier_batches import Criterion
from distiller_ng.apputils.classifier_loops import Loggers, load_data, test
from distiller_ng.data_loggers import (
    CollectorSet,
    DataLogger,
    collect_histograms,
    collect_quant_stats,
    collectors_context,
    log_activation_statistics,
    save_collectors_data,
)
from distiller_ng.data_loggers.collector_sets import PHASES
from distiller_ng.ops.modules import make_non_parallel_copy
from distiller_ng.utils import float_range_argparse_checker

__all__ = [
    "activations_watched",
    "acts_histogram_collection",
    "acts_quant_stats_collection",
    "add_activation_arguments",
]

logger = logging.getLogger(__name__)


def add_activation_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--activation-stats`` and ``--activation-histograms``, Distiller's."""
    group = parser.add_argument_group("Analysis")
    group.add_argument(
        "--activation-stats",
        "--act-stats",
        nargs="+",
        choices=PHASES,
        metavar="PHASE",
        default=[],
        help="collect statistics of activations in these phases (train, valid, test) into the run folder",
    )
    group.add_argument(
        "--activation-histograms",
        "--act-hist",
        type=float_range_argparse_checker(exc_min=True),
        metavar="FRACTION",
        help="collect histograms of activations on this fraction of the test set, and stop",
    )


@contextmanager
def activations_watched(
    collectors: Mapping[str, CollectorSet],
    phase: str,
    epoch: int,
    loggers: Iterable[DataLogger],
    logdir: str | os.PathLike[str] | None,
) -> Iterator[None]:
    """Collect in a phase, tell the loggers how sparse activations are, and write all statistics.

    The files go to ``<logdir>/activations/<phase>/`` (``sparsity_ofm.csv``, ``l1_channels.csv``, ...); an epoch's
    replace those of the one before. Without a folder nothing is written.
    """
    with collectors_context(collectors[phase]) as active:
        yield
    if not active:
        return
    log_activation_statistics(epoch, phase, loggers, active["sparsity_ofm"])
    if logdir is not None:
        save_collectors_data(active, Path(logdir) / "activations" / phase)
    for collector in active.values():
        collector.reset()


def acts_histogram_collection(
    model: nn.Module,
    criterion: Criterion,
    loggers: Loggers,
    args: argparse.Namespace,
    logdir: str | os.PathLike[str] | None = None,
) -> dict[str, dict[str, Any]]:
    """Histograms of all activations on ``args.activation_histograms`` of the test set, see :func:`collect_histograms`.

    ``logdir`` gets ``acts_quantization_stats.yaml``, ``acts_histograms.pt`` and, if matplotlib is installed, the
    pictures. The test set is run twice. Raises :class:`DatasetError`.
    """
    fraction = args.activation_histograms
    logger.info("Collecting activation histograms on %.1f %% of the test set", 100 * fraction)
    test_fn = _tester(criterion, loggers, args, fraction, None)
    pictures = logdir is not None and find_spec("matplotlib") is not None
    return collect_histograms(make_non_parallel_copy(model), test_fn, save_dir=logdir, save_hist_imgs=pictures)


def acts_quant_stats_collection(
    model: nn.Module,
    criterion: Criterion,
    loggers: Loggers,
    args: argparse.Namespace,
    test_loader: Any = None,
    save_to_file: bool = False,
    logdir: str | os.PathLike[str] | None = None,
) -> dict[str, dict[str, Any]]:
    """Calibration statistics on ``test_loader``, or on ``args.qe_calibration`` of the test set.

    ``save_to_file`` writes ``acts_quantization_stats.yaml`` into ``logdir`` (the working directory without one). See
    :func:`collect_quant_stats` for the result. Raises :class:`DatasetError`.
    """
    test_fn = _tester(criterion, loggers, args, getattr(args, "qe_calibration", None) or 1.0, test_loader)
    folder = (logdir or os.curdir) if save_to_file else None
    return collect_quant_stats(make_non_parallel_copy(model), test_fn, save_dir=folder)


def _tester(criterion: Criterion, loggers: Loggers, args: argparse.Namespace, fraction: float, loader: Any) -> Any:
    if loader is None:
        wanted = copy.copy(args)
        wanted.effective_test_size = fraction
        loader = load_data(wanted, fixed_subset=True, load_train=False, load_val=False)

    def run(model: nn.Module) -> Any:
        return test(loader, model, criterion, loggers, args=args)

    return run
