"""What a model is called with: ``--example``, ``--input-shape``, or the first sample of the user's data (layer 5)."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from distiller_ng.apputils.classifier_batches import shape_text
from distiller_ng.apputils.classifier_task import first_inputs
from distiller_ng.cli._loaders import own_loaders
from distiller_ng.cli._own_code import SEED, called, in_one_line, named_object
from distiller_ng.errors import ArgumentError
from distiller_ng.graph.inputs import ExampleInputs, as_example_inputs, flat_tensors

__all__ = ["NEEDS_EXAMPLE", "add_example_argument", "checked", "named_example", "of_shape", "own_example"]

#: What is said where nothing tells how a model is called.
NEEDS_EXAMPLE = (
    "give the shape of its input, e.g. --input-shape 1,3,32,32, or, for several inputs, --example mydata.py:example, "
    "a function that returns a tuple or a dict of them"
)


def add_example_argument(parser: Any) -> None:
    """Add ``--example`` to a parser or a group."""
    parser.add_argument(
        "--example",
        metavar="FILE.PY:FUNCTION",
        help="what the model is called with, instead of --input-shape: a function that returns a tensor, a tuple of "
        "arguments or a dict of keyword arguments, for one sample; a DataLoader's first sample",
    )


def named_example(options: argparse.Namespace) -> ExampleInputs | None:
    """What ``--example`` names; None without the option.

    It may be a function or the value itself. Of a DataLoader, or of what ``--loaders`` takes if those are DataLoaders,
    it is the first sample. Raises :class:`ArgumentError` for what is not there, fails or holds no tensor.
    """
    text = getattr(options, "example", None)
    if text is None:
        return None
    if getattr(options, "input_shape", None) is not None:
        raise ArgumentError("--example and --input-shape both say what the model is called with: leave one of them out")
    what = f"--example {text}"
    found = named_object(text, "--example")
    if callable(found) and not isinstance(found, Tensor):
        found, what = called(found, what), f"{what}()"
    if isinstance(found, tuple | list) and found and isinstance(found[-1], DataLoader):
        found = found[-1]
    if isinstance(found, DataLoader):
        found = first_inputs(found)
    if isinstance(found, ExampleInputs):
        return found
    if not isinstance(found, Tensor | tuple | list | Mapping) or not flat_tensors(found):
        raise ArgumentError(f"{what} gave a {type(found).__name__}: give a tensor, a tuple or a dict of tensors")
    return as_example_inputs(found)


def own_example(options: argparse.Namespace) -> ExampleInputs | None:
    """``--example``, else the first sample of the test loader of ``--loaders``; None where neither is given."""
    found = named_example(options)
    loaders = own_loaders(options) if found is None else None
    return found if loaders is None else as_example_inputs(first_inputs(loaders.test))


def of_shape(shape: tuple[int, ...], model: nn.Module) -> list[ExampleInputs]:
    """Random inputs of a shape, the same in every run: numbers, and tokens for a model with embeddings."""
    generator = torch.Generator().manual_seed(SEED)
    try:
        examples = [ExampleInputs((torch.randn(shape, generator=generator),))]
    except (RuntimeError, MemoryError) as error:
        text = ",".join(map(str, shape))
        raise ArgumentError(f"--input-shape {text}: so much input does not fit into memory") from error
    tables = [module.num_embeddings for module in model.modules() if isinstance(module, nn.Embedding)]
    if tables:
        examples.append(ExampleInputs((torch.randint(0, min(tables), shape, generator=generator),)))
    return examples


def checked(model: nn.Module, examples: list[ExampleInputs], name: str, shape: str = "") -> ExampleInputs:
    """The first of them that the model runs on; ``shape`` is what the user wrote.

    Raises :class:`ArgumentError`, one line, where it runs on none.
    """
    failures = []
    for example in examples:
        try:
            with torch.no_grad():
                example.call(model)
        except Exception as error:
            failures.append(error)
        else:
            return example
    last, tried = failures[-1], shape or shape_text((examples[-1].args, dict(examples[-1].kwargs)))
    advice = ""
    if isinstance(last, TypeError) and "argument" in str(last):
        advice = ". For a model that takes several inputs: --example mydata.py:example"
    message = f"{name} does not run on input of shape {tried}: {in_one_line(last)}{advice}"
    raise ArgumentError(message) from last
