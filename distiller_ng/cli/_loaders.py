"""Loaders of the user's own: ``--loaders file.py:make_loaders`` (layer 5)."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from distiller_ng.apputils import load_data
from distiller_ng.apputils.classifier_task import Loaders, PartOf
from distiller_ng.cli._own_code import called, named_object
from distiller_ng.errors import ArgumentError

if TYPE_CHECKING:  # the model's example may come from loaders
    from distiller_ng.cli._models import GivenModel

__all__ = ["add_loaders_argument", "dataset_loaders", "own_loaders", "required_loaders"]


def add_loaders_argument(parser: Any) -> None:
    """Add ``--loaders`` to a parser or a group."""
    parser.add_argument(
        "--loaders",
        metavar="FILE.PY:FUNCTION",
        help="data of your own: a function that returns (train, validation, test) or (train, test) DataLoaders",
    )


def own_loaders(options: argparse.Namespace) -> Loaders | None:
    """What the function of ``--loaders`` returns; None without the option.

    Raises :class:`ArgumentError` for a function that is not there or fails, and for what it returns.
    """
    text = getattr(options, "loaders", None)
    if text is None:
        return None
    found = named_object(text, "--loaders")
    if isinstance(found, tuple | list):
        return Loaders.of(found, f"--loaders {text}")
    return Loaders.of(called(found, f"--loaders {text}"), f"--loaders {text}()")


def dataset_loaders(options: argparse.Namespace, dataset: str) -> Loaders:
    """Loaders of a known data set, ``--data-fraction`` of each; raises :class:`DatasetError`."""
    part = options.data_fraction
    train, valid, test, _ = load_data(
        dataset,
        "",
        options.data,
        options.batch_size,
        0,
        effective_train_size=part,
        effective_valid_size=part,
        effective_test_size=part,
        fixed_subset=True,
    )
    return Loaders(train, valid, test)


def required_loaders(options: argparse.Namespace, given: GivenModel) -> Loaders:
    """The user's loaders, or those of the data set; raises :class:`ArgumentError` where neither is named."""
    own = own_loaders(options)
    if own is not None:
        part = options.data_fraction
        return own if part == 1.0 else Loaders(*(PartOf(loader, part) for loader in own))
    if given.dataset is None:
        raise ArgumentError(f"{given.name}: say what data it takes: --loaders file.py:make_loaders, or --dataset NAME")
    return dataset_loaders(options, given.dataset)
