"""From a command line to a run of the application: model, data, loss, optimizer, teachers (layer 5)."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from distiller_ng.apputils.classifier_args import init_classifier_compression_arg_parser
from distiller_ng.apputils.classifier_batches import Criterion
from distiller_ng.apputils.classifier_task import Task
from distiller_ng.apputils.log_setup import close_pylogger
from distiller_ng.cli._loaders import required_loaders
from distiller_ng.cli._models import GivenModel, given_teachers
from distiller_ng.cli._own_code import called, named_object
from distiller_ng.errors import ArgumentError

__all__ = ["add_loss_argument", "application_arguments", "given_task", "log_to_stderr", "named_loss"]


def add_loss_argument(parser: argparse.ArgumentParser) -> None:
    """Add ``--loss``."""
    parser.add_argument(
        "--loss",
        metavar="FILE.PY:LOSS",
        help="of your own: a function (output, target), or a loss class without arguments (default: cross entropy)",
    )


def application_arguments(options: argparse.Namespace, given: GivenModel) -> argparse.Namespace:
    """The application's arguments, with those of ``options`` that have its names; the others have its defaults."""
    args = init_classifier_compression_arg_parser(include_ptq_lapq_args=True).parse_args([])
    for name, value in vars(options).items():
        if hasattr(args, name):
            setattr(args, name, value)
    args.dataset = given.dataset if given.dataset is not None else getattr(options, "loaders", None)
    part = options.data_fraction
    args.effective_train_size = args.effective_valid_size = args.effective_test_size = part
    return args


def given_task(options: argparse.Namespace, given: GivenModel, *, training: bool = False) -> Task:
    """What the command line names beyond the application's own arguments.

    Raises :class:`ArgumentError` for what is not there or of the wrong kind.
    """
    of_dataset = options.loaders is None and given.dataset is not None
    # In training the application opens a data set itself: a part of it is drawn anew in every epoch.
    loaders = None if of_dataset and training else required_loaders(options, given)
    said = options.input_shape is not None or options.example is not None
    make = getattr(options, "optimizer", None)
    return Task(
        model=given.model,
        loaders=loaders,
        criterion=named_loss(options.loss),
        make_optimizer=_Maker(make) if training and make is not None else None,
        teachers=(given_teachers(options) or {}) if training else {},
        example_inputs=given.example() if said else None,
    )


@contextlib.contextmanager
def log_to_stderr() -> Iterator[None]:
    """What the application, and code of the user's, print goes to standard error: standard output has the result."""
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        close_pylogger()


class _Maker:
    """The function of ``--optimizer``."""

    def __init__(self, text: str) -> None:
        self.text, self.make = text, named_object(text, "--optimizer")
        if not callable(self.make):
            raise ArgumentError(f"--optimizer {text} is no function: write make(model) that returns an optimizer")

    def __call__(self, model: nn.Module) -> Optimizer:
        made = called(_Call(self.make, model), f"--optimizer {self.text}")
        if not isinstance(made, Optimizer):
            kind = type(made).__name__
            raise ArgumentError(f"--optimizer {self.text}(model) returned a {kind}, not a torch optimizer")
        return made


class _Call:
    """A function with its argument."""

    def __init__(self, function: Any, argument: Any) -> None:
        self.function, self.argument = function, argument

    def __call__(self) -> Any:
        return self.function(self.argument)


def named_loss(text: str | None) -> Criterion | None:
    """The loss of ``--loss``; None without. Raises :class:`ArgumentError` for what is none."""
    if text is None:
        return None
    found: Any = named_object(text, "--loss")
    if isinstance(found, type):
        found = called(found, f"--loss {text}")
    if not callable(found):
        raise ArgumentError(f"--loss {text} is a {type(found).__name__}, not a function (output, target) or a class")
    criterion: Criterion = found
    return criterion


def checked_file(path: str, flag: str) -> Path:
    """A file that is there; raises :class:`ArgumentError`."""
    found = Path(path).expanduser()
    if not found.is_file():
        raise ArgumentError(f"{flag}: there is no file {path!r}")
    return found
