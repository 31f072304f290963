"""The application's ``--thinnify``: a smaller model from a pruned checkpoint (layer 5)."""

from __future__ import annotations

import argparse
import copy
import logging
from pathlib import Path

from torch import nn

from distiller_ng.checkpoint.saving import save_checkpoint
from distiller_ng.core.masks import MaskRegistry
from distiller_ng.errors import ArgumentError
from distiller_ng.reports.size_and_speed import size_and_speed, size_and_speed_tbl
from distiller_ng.thinning.functions import contract_model, example_inputs_for

__all__ = ["add_thinning_arguments", "thinnify"]

logger = logging.getLogger("distiller_ng.app")


def add_thinning_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--thinnify``."""
    group = parser.add_argument_group("Structure")
    group.add_argument(
        "--thinnify",
        action="store_true",
        help="after --resume-from: physically remove zero filters and channels, and save the smaller model",
    )


def thinnify(model: nn.Module, masks: MaskRegistry, args: argparse.Namespace, folder: Path | str | None) -> Path:
    """Remove every zero filter and channel of the resumed model and save it as ``<checkpoint>_thinned``; its path.

    Logs parameters, MACs, file size and latency before and after. Raises :class:`ArgumentError` without a resumed
    checkpoint, :class:`GraphError` where the smaller model would not agree with the pruned one.
    """
    resumed = args.resumed_checkpoint_path
    if not resumed:
        raise ArgumentError(
            "--thinnify makes a smaller model from a pruned checkpoint: give it with --resume-from PATH",
            argument=("thinnify",),
        )
    masks.project_()
    before = copy.deepcopy(model)
    inputs = example_inputs_for(model, None, args.dataset)
    report = contract_model(model, masks, args.arch, args.dataset, None, example_inputs=inputs)
    stem = Path(resumed).name.removesuffix(".tar").removesuffix(".pth").removesuffix("_checkpoint")
    path = save_checkpoint(0, args.arch, model, name=f"{stem}_thinned", dir=folder or ".")
    figures = size_and_speed({"before": before, "thinned": model}, inputs)
    logger.info("%s\n\n%s\n\nSmaller model: %s", report, size_and_speed_tbl(figures), path)
    return path
