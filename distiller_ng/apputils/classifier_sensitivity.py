"""The application's ``--sense``: how much each parameter tolerates (layer 5)."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import nn

from distiller_ng.apputils.classifier_batches import Criterion
from distiller_ng.apputils.classifier_loops import Loggers, test
from distiller_ng.errors import ArgumentError
from distiller_ng.reports.sensitivity import perform_sensitivity_analysis, sensitivities_to_csv, sensitivities_to_png

__all__ = ["add_sensitivity_arguments", "sensitivity_analysis", "sensitivity_levels"]

logger = logging.getLogger("distiller_ng.app")

_RANGE = (0.0, 0.95, 0.05)
_MOST = 1000


def add_sensitivity_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--sense`` and ``--sense-range``."""
    group = parser.add_argument_group("Sensitivity")
    group.add_argument(
        "--sense",
        dest="sensitivity",
        choices=("element", "filter", "channel"),
        help="prune each parameter alone, at several sparsities, measure the model on the test set, and stop",
    )
    group.add_argument(
        "--sense-range",
        dest="sensitivity_range",
        type=float,
        nargs=3,
        default=list(_RANGE),
        metavar=("START", "STOP", "STEP"),
        help="the sparsities; STOP is not among them (default: 0.0 0.95 0.05)",
    )


def sensitivity_levels(start: float, stop: float, step: float) -> list[float]:
    """The sparsities from ``start`` to below ``stop``: ``sensitivity_levels(0, 0.3, 0.1)`` -> ``[0.0, 0.1, 0.2]``.

    Raises :class:`ArgumentError` for a range that is empty or leaves 0..1.
    """
    if not (0 <= start < stop <= 1 and step > 0):
        raise ArgumentError(
            f"--sense-range {start:g} {stop:g} {step:g}: give 0 <= START < STOP <= 1 and a STEP above 0",
            argument=("sensitivity_range",),
        )
    if (stop - start) / step > _MOST:
        raise ArgumentError(
            f"--sense-range {start:g} {stop:g} {step:g}: these are more than {_MOST} levels; give a larger STEP",
            argument=("sensitivity_range",),
        )
    found, number = [], 0
    while (level := round(start + number * step, 10)) < stop - 1e-9:
        found.append(level)
        number += 1
    return found


def sensitivity_analysis(
    model: nn.Module,
    criterion: Criterion,
    data_loader: Any,
    loggers: Loggers,
    args: argparse.Namespace,
    sparsities: Iterable[float] | None = None,
    *,
    logdir: str | os.PathLike[str] | None = None,
) -> dict[str, dict[float, tuple[float, float, float]]]:
    """Measure ``model`` on ``data_loader`` with one parameter pruned at a time, as ``--sense`` says.

    ``sparsities``: those of ``--sense-range`` if left out. ``logdir`` gets ``sensitivity.csv``, ``sensitivity.json``
    (from which an interrupted analysis goes on) and, if matplotlib is installed, ``sensitivity.png``. The result is
    ``{parameter: {sparsity: (top1, top5, loss)}}``. Raises :class:`ArgumentError` as :func:`sensitivity_levels`.
    """
    levels = sensitivity_levels(*args.sensitivity_range) if sparsities is None else list(sparsities)

    def measure(model: nn.Module) -> tuple[float, float, float]:
        return test(data_loader, model, criterion, loggers, args=args)

    folder = None if logdir is None else Path(logdir)
    names = [name for name, _ in model.named_parameters()]
    record = None if folder is None else folder / "sensitivity.json"
    found = perform_sensitivity_analysis(model, names, levels, measure, args.sensitivity, results_file=record)
    if folder is not None:
        sensitivities_to_csv(found, folder / "sensitivity.csv")
        if find_spec("matplotlib") is not None:
            sensitivities_to_png(found, folder / "sensitivity.png")
        logger.info("sensitivities: %s", folder / "sensitivity.csv")
    return found
