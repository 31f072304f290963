"""The data a command measures or calibrates with: a known data set, or the user's own function (layer 5)."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import nn

from distiller_ng.apputils import load_data
from distiller_ng.apputils.classifier_loops import test
from distiller_ng.apputils.classifier_task import PartOf
from distiller_ng.cli._loaders import add_loaders_argument, own_loaders
from distiller_ng.cli._models import GivenModel
from distiller_ng.cli._numbers import fraction, whole
from distiller_ng.cli._own_code import called, named_object
from distiller_ng.errors import ArgumentError
from distiller_ng.ops.scores import Scores, as_scores

__all__ = [
    "Evaluation",
    "LoaderEvaluation",
    "OwnEvaluation",
    "add_data_arguments",
    "add_evaluate_argument",
    "calibration_batches",
    "evaluation",
]


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--loaders``, ``--data``, ``--batch-size`` and ``--data-fraction``."""
    group = parser.add_argument_group("Data")
    add_loaders_argument(group)
    group.add_argument("--data", metavar="DIR", help="where the data set is; digits and synthetic need none")
    group.add_argument("-b", "--batch-size", type=whole(1), default=256, metavar="N", help="samples (default: 256)")
    group.add_argument(
        "--data-fraction", type=fraction, default=1.0, metavar="F", help="part of the data to use (default: 1.0)"
    )


def add_evaluate_argument(parser: argparse.ArgumentParser, what: str = "") -> None:
    """Add ``--evaluate``; ``what`` ends its help."""
    parser.add_argument(
        "--evaluate",
        metavar="FILE.PY:FUNCTION",
        help=f"your own: function(model) -> top-1 in percent, or (top1, top5, loss){what}",
    )


@dataclass
class Evaluation:
    """``evaluation(model=model)`` -> ``(top1, top5, loss)`` on a data set's test images, the same ones every time.

    It can be sent to another process, which reads the data itself.
    """

    dataset: str
    folder: str | None
    batch_size: int
    fraction: float
    _loader: Any = field(default=None, repr=False)

    def __call__(self, model: nn.Module) -> tuple[float, float, float]:
        """Measure."""
        return test(self.loader(), model, nn.CrossEntropyLoss())

    def loader(self) -> Any:
        """The test images. Raises :class:`DatasetError` when they are not there."""
        if self._loader is None:
            sizes = {"effective_test_size": self.fraction, "fixed_subset": True, "sequential": True}
            self._loader = load_data(
                self.dataset,
                "",
                self.folder,
                self.batch_size,
                0,
                test_only=True,
                **sizes,  # type: ignore[arg-type]
            )[2]
        return self._loader

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_loader": None}


@dataclass
class LoaderEvaluation(Evaluation):
    """The same on the test loader of the user's ``--loaders``; ``dataset`` is what was written there."""

    def loader(self) -> Any:
        """The test loader. Raises :class:`ArgumentError` when there is none."""
        if self._loader is None:
            loaders = own_loaders(argparse.Namespace(loaders=self.dataset))
            if loaders is not None:
                self._loader = loaders.test if self.fraction == 1.0 else PartOf(loaders.test, self.fraction)
        return self._loader


@dataclass(frozen=True)
class OwnEvaluation:
    """A function of the user's, named on the command line, as something that can be sent to another process."""

    text: str

    def __call__(self, model: nn.Module) -> Scores:
        """Call it. Raises :class:`ArgumentError` when it fails, and for what is no accuracy."""
        what = f"--evaluate {self.text}"
        return as_scores(called(partial(named_object(self.text, "--evaluate"), model), what), what)


def evaluation(options: argparse.Namespace, given: GivenModel) -> Evaluation | OwnEvaluation:
    """What measures the model: the user's function, their test loader, or a data set's test images.

    Raises :class:`ArgumentError` when none is named.
    """
    if options.evaluate is not None:
        if not callable(named_object(options.evaluate, "--evaluate")):
            raise ArgumentError(f"--evaluate {options.evaluate} is no function")
        return OwnEvaluation(options.evaluate)
    if getattr(options, "loaders", None) is not None:
        kind: type[Evaluation] = LoaderEvaluation
        name = options.loaders
    else:
        kind, name = Evaluation, _dataset(given, "--evaluate")
    found = kind(name, options.data, options.batch_size, options.data_fraction)
    found.loader()
    return found


def calibration_batches(options: argparse.Namespace, given: GivenModel) -> Iterable[Any]:
    """Training images, without augmentation, the user's validation loader, or what their ``--loader`` returns."""
    if options.loader is not None:
        batches = called(named_object(options.loader, "--loader"), f"--loader {options.loader}")
        if not isinstance(batches, Iterable):
            raise ArgumentError(f"--loader {options.loader}() returned a {type(batches).__name__}, not batches")
        return batches
    own = own_loaders(options)
    if own is not None:
        return own.valid if options.data_fraction == 1.0 else PartOf(own.valid, options.data_fraction)
    dataset = _dataset(given, "--loader")
    loaders = load_data(dataset, "", options.data, options.batch_size, 0, effective_valid_size=options.data_fraction)
    return loaders[1] if loaders[1] is not None else loaders[2]


def _dataset(given: GivenModel, flag: str) -> str:
    if given.dataset is None:
        raise ArgumentError(f"{given.name}: say what data it takes: --dataset NAME, or {flag} package.module:function")
    return given.dataset
