"""The application's greedy pruning: its flags, and the run (layer 5)."""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

from torch import nn

from distiller_ng.apputils.classifier_loops import load_data, train, validate
from distiller_ng.apputils.greedy_filter_pruning import FINETUNING_POLICIES, greedy_pruner
from distiller_ng.errors import ArgumentError
from distiller_ng.utils import float_range_argparse_checker

__all__ = ["add_greedy_arguments", "greedy"]


def add_greedy_arguments(parser: argparse.ArgumentParser) -> None:
    """Add Distiller's flags ``--greedy`` and ``--greedy-...``."""
    share = float_range_argparse_checker(exc_min=True, exc_max=True)
    group = parser.add_argument_group("Greedy pruning")
    group.add_argument("--greedy", action="store_true", help="shrink the model layer by layer instead of training it")
    group.add_argument(
        "--greedy-ft-epochs", type=_epochs, metavar="N", default=1, help="epochs of fine-tuning a trial (default: 1)"
    )
    group.add_argument(
        "--greedy-target-density", type=share, metavar="SHARE", help="share of the MACs to end at, e.g. 0.5"
    )
    group.add_argument(
        "--greedy-pruning-step",
        type=share,
        metavar="SHARE",
        default=0.1,
        help="share of a layer's filters a trial removes (default: 0.1)",
    )
    group.add_argument(
        "--greedy-finetuning-policy",
        choices=FINETUNING_POLICIES,
        default=FINETUNING_POLICIES[0],
        help="epochs of every trial: the same, or growing from 1 while the model shrinks (default: constant)",
    )


def greedy(
    model: nn.Module, criterion: nn.Module, loggers: Any, args: argparse.Namespace, logdir: str | None = None
) -> nn.Module:
    """What ``--greedy`` does: trials train on the training set and are compared on the validation set; the small model.

    ``greedy.csv`` and a checkpoint of each step are written into ``logdir``. Raises :class:`ArgumentError` without
    ``--greedy-target-density``, :class:`DatasetError` for a missing data set.
    """
    if args.greedy_target_density is None:
        raise ArgumentError("--greedy needs --greedy-target-density: the share of the MACs to end at, e.g. 0.5")
    train_loader, val_loader = load_data(args, load_test=False)
    test_fn = partial(validate, val_loader, criterion=criterion, loggers=loggers, args=args)
    train_fn = partial(train, train_loader=train_loader, criterion=criterion, loggers=loggers, args=args)
    example_inputs = next(iter(val_loader))[0][:1].to(next(model.parameters()).device)
    return greedy_pruner(
        model,
        args,
        args.greedy_target_density,
        args.greedy_pruning_step,
        test_fn,
        train_fn,
        example_inputs=example_inputs,
        output_dir=logdir,
    )


def _epochs(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"must be a whole number from 0 on, got {text}")
    return int(text)
