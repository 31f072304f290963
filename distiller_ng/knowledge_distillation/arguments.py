"""Distiller's command-line arguments for knowledge distillation (layer 2)."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable

__all__ = ["add_distillation_args"]


def add_distillation_args(
    parser: argparse.ArgumentParser, arch_choices: Iterable[str] | None = None, enable_pretrained: bool = False
) -> None:
    """Add ``--kd-teacher``, ``--kd-resume``, ``--kd-temperature`` and the weights to ``parser``, as a group.

    ``arch_choices`` limits what ``--kd-teacher`` takes; ``enable_pretrained`` adds ``--kd-pretrained``. Names and
    defaults are ``kd_teacher`` (None), ``kd_pretrained`` (False), ``kd_resume`` (''), ``kd_temp`` (1.0),
    ``kd_distill_wt`` (0.5), ``kd_student_wt`` (0.5), ``kd_teacher_wt`` (0.0) and ``kd_start_epoch`` (0).

    >>> parser = argparse.ArgumentParser()
    >>> add_distillation_args(parser)
    >>> parser.parse_args(["--kd-teacher", "resnet56_cifar", "--kd-temp", "4"]).kd_temp
    4.0
    """
    group = parser.add_argument_group("Knowledge Distillation Training Arguments")
    choices = None if arch_choices is None else list(arch_choices)
    listed = "" if choices is None else ": " + " | ".join(choices)
    group.add_argument(
        "--kd-teacher", choices=choices, metavar="ARCH", help=f"Model architecture for teacher model{listed}"
    )
    if enable_pretrained:
        group.add_argument("--kd-pretrained", action="store_true", help="Use pre-trained model for teacher")
    group.add_argument(
        "--kd-resume",
        type=str,
        default="",
        metavar="PATH",
        help="Path to checkpoint from which to load teacher weights",
    )
    group.add_argument(
        "--kd-temperature",
        "--kd-temp",
        dest="kd_temp",
        type=_temperature,
        default=1.0,
        metavar="TEMP",
        help="Knowledge distillation softmax temperature",
    )
    _add_weights(group)
    group.add_argument(
        "--kd-start-epoch",
        type=_epoch,
        default=0,
        metavar="EPOCH_NUM",
        help="Epoch from which to enable distillation",
    )


def _add_weights(group: argparse._ArgumentGroup) -> None:
    for name, short, default, what in (
        ("distill", "dw", 0.5, "Weight for distillation loss (student vs. teacher soft targets)"),
        ("student", "sw", 0.5, "Weight for student vs. labels loss"),
        ("teacher", "tw", 0.0, "Weight for teacher vs. labels loss"),
    ):
        group.add_argument(
            f"--kd-{name}-wt",
            f"--kd-{short}",
            dest=f"kd_{name}_wt",
            type=_weight,
            default=default,
            metavar="WEIGHT",
            help=what,
        )


def _temperature(text: str) -> float:
    value = _weight(text)
    if value == 0:
        raise argparse.ArgumentTypeError("the temperature is a number above 0")
    return value


def _weight(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number") from None
    if not math.isfinite(value) or value < 0:
        raise argparse.ArgumentTypeError(f"a finite number from 0 is needed, got {text}")
    return value


def _epoch(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = -1
    if value < 0:
        raise argparse.ArgumentTypeError(f"epochs are whole numbers from 0, got {text!r}")
    return value
