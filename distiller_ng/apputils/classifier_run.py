"""The parts of a run of the application that are not training: folder, facts, best epochs (layer 5)."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch.optim import Optimizer

from distiller_ng.apputils.log_setup import close_pylogger, config_pylogger, log_execution_env_state
from distiller_ng.apputils.meters import known
from distiller_ng.apputils.run_folder import RunFolder
from distiller_ng.apputils.trackers import PerformanceRecord, TrainingPerformanceTracker
from distiller_ng.errors import ArgumentError, DistillerError

__all__ = ["check_epochs_left", "log_best_epochs", "open_run_folder", "run_facts", "without_leftovers"]

logger = logging.getLogger("distiller_ng.apputils.image_classifier")


def open_run_folder(args: argparse.Namespace, script_dir: str | os.PathLike[str] | None) -> RunFolder | None:
    """The run's folder below ``args.output_dir``, with its log file; None where nothing is to be written.

    ``script_dir`` may hold a ``logging.conf``; None writes nothing, as does an ``output_dir`` of None. Raises
    :class:`ArgumentError` for names that cannot be.
    """
    if script_dir is None or args.output_dir is None:
        return None
    config = Path(script_dir) / "logging.conf"
    run_log = config_pylogger(config if config.is_file() else None, args.name, args.output_dir, args.verbose)
    environment = log_execution_env_state(None, run_log.logdir)
    logger.debug("Arguments: %s", vars(args))
    folder = RunFolder(Path(run_log.logdir), run_log, name=args.name, histograms=args.log_params_histograms)
    folder.keep_environment(environment)
    return folder


@contextmanager
def without_leftovers(folder: RunFolder | None) -> Iterator[None]:
    """Around what comes before training: a run that ends here because of a mistake leaves no folder."""
    try:
        yield
    except (DistillerError, OSError):
        if folder is not None:
            close_pylogger()
            folder.discard_unused()
        raise


def run_facts(args: argparse.Namespace, optimizer: Optimizer | None) -> dict[str, Any]:
    """What a run was asked to do, for ``summary.json``; an optimizer of the user's own counts by its class and rate."""
    own = optimizer is not None and type(optimizer).__name__.lower() != args.opt
    return {
        "arch": args.arch,
        "dataset": args.dataset,
        "schedule": os.path.basename(args.compress) if args.compress else None,
        "epochs": args.epochs,
        "batch_size": args.batch_size,
        "optimizer": type(optimizer).__name__ if own else args.opt,
        "lr": optimizer.param_groups[0].get("initial_lr", optimizer.param_groups[0]["lr"])
        if own and optimizer is not None
        else args.lr,
        "seed": args.seed if args.seed is not None or not args.deterministic else 0,
    }


def log_best_epochs(tracker: TrainingPerformanceTracker) -> PerformanceRecord:
    """Log the best epochs in Distiller's words; the very best."""
    for record in tracker.best_scores():
        scores = known(Top1=record.top1, Top5=record.top5) or {"Loss": record.loss}
        logger.info(
            "==> Best [%s   Sparsity:%.2f   NNZ-Params: %d on epoch: %d]",
            "   ".join(f"{name}: {value:.3f}" for name, value in scores.items()),
            record.sparsity,
            record.params_nnz_cnt,
            record.epoch,
        )
    return tracker.best_scores(1)[0]


def check_epochs_left(start: int, end: int) -> None:
    """Raises :class:`ArgumentError` when a run has no epoch left."""
    if start >= end:
        raise ArgumentError(
            f"--epochs {end}: the next epoch is {start}, so there is nothing to do. "
            "--epochs counts from the beginning of the run, not from the checkpoint",
            argument=("epochs",),
        )
