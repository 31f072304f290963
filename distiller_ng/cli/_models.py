"""The model a command works on: from the command line to a module and an example of its input (layer 5)."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from distiller_ng.apputils import (
    classification_dataset_str_from_arch,
    classification_get_input_shape,
    load_lean_checkpoint,
)
from distiller_ng.checkpoint.files import read_file
from distiller_ng.cli._examples import NEEDS_EXAMPLE, add_example_argument, checked, of_shape, own_example
from distiller_ng.cli._own_code import SEED, called, named_object
from distiller_ng.errors import ArgumentError
from distiller_ng.graph.inputs import ExampleInputs
from distiller_ng.models import create_model, load_weights_
from distiller_ng.models.weights import read_state_dict

__all__ = [
    "GivenModel",
    "add_model_arguments",
    "add_teacher_argument",
    "given_model",
    "given_teachers",
    "required_model",
]


@dataclass(frozen=True, slots=True)
class GivenModel:
    """A model in evaluation mode, what it is called, the shape of its input (with the batch) and its data set.

    ``own_example`` gives what the command line says about its inputs otherwise: ``--example``, or ``--loaders``.
    """

    model: nn.Module
    name: str
    input_shape: tuple[int, ...] | None
    dataset: str | None
    own_example: Callable[[], ExampleInputs | None] = lambda: None

    def example(self) -> ExampleInputs:
        """What one forward pass takes: what the user gave, or random input of the shape, the same in every run.

        Random input is numbers, or tokens for a model with embeddings that takes no numbers. Raises
        :class:`ArgumentError` when neither is known, and when the model does not run on it.
        """
        found = self.example_or_none()
        if found is None:
            raise ArgumentError(f"{self.name}: {NEEDS_EXAMPLE}")
        return found

    def example_or_none(self) -> ExampleInputs | None:
        """The same, or None where nothing is known."""
        if self.input_shape is not None:
            text = ",".join(map(str, self.input_shape))
            return checked(self.model, of_shape(self.input_shape, self.model), self.name, text)
        own = self.own_example()
        return None if own is None else checked(self.model, [own], self.name)


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--model``, ``--arch``, ``--dataset``, ``--checkpoint``, ``--input-shape`` and ``--example``."""
    group = parser.add_argument_group("Model")
    which = group.add_mutually_exclusive_group()
    which.add_argument(
        "--model", metavar="PKG.MOD:FACTORY", help="your own: package.module:factory, or file.py:factory"
    )
    which.add_argument("-a", "--arch", metavar="NAME", help="an architecture of the zoo, e.g. resnet20_cifar")
    group.add_argument("--dataset", metavar="NAME", help="data set of --arch (default: by its name)")
    group.add_argument("--checkpoint", metavar="FILE", help="trained weights: a checkpoint or a state dict")
    group.add_argument(
        "--input-shape", type=_shape, metavar="N,C,H,W", help="shape of the input with the batch, e.g. 1,3,32,32"
    )
    add_example_argument(group)


def add_teacher_argument(parser: argparse.ArgumentParser) -> None:
    """Add ``--teacher NAME=WHERE``, which may be given several times."""
    parser.add_argument(
        "--teacher",
        action="append",
        default=[],
        metavar="NAME=WHERE",
        help="a model that distillers name: big=nets.py:Big, big=package.module:factory, or an architecture's name "
        "alone (may be given again for more)",
    )


def given_teachers(options: argparse.Namespace) -> dict[str, nn.Module] | None:
    """The models of ``--teacher`` by name; None if there are none.

    Raises :class:`ArgumentError` for a name that is given twice, and for what :func:`given_model` refuses.
    """
    found: dict[str, nn.Module] = {}
    for text in options.teacher:
        name, equals, place = text.partition("=")
        if not name or (equals and not place):
            raise ArgumentError(f"--teacher {text}: write NAME=file.py:factory, e.g. big=nets.py:Big")
        if name in found:
            raise ArgumentError(f"--teacher {text}: there is a teacher {name!r} already")
        if ":" in place:
            found[name] = _own_model(place, "--teacher").eval()
        else:
            arch = place or name
            dataset = options.dataset or classification_dataset_str_from_arch(arch)
            found[name] = _of_the_zoo(dataset, arch).eval()
    return found or None


def required_model(options: argparse.Namespace) -> GivenModel:
    """The model; raises :class:`ArgumentError` when none is given, or what :func:`given_model` raises."""
    found = given_model(options)
    if found is None:
        raise ArgumentError("give a model: --model package.module:factory, or --arch NAME --dataset NAME")
    return found


def given_model(options: argparse.Namespace) -> GivenModel | None:
    """The model the arguments name, with the weights of its checkpoint; None if they name none.

    Raises :class:`ArgumentError` for a module, file, function or architecture that is not there, a factory that fails
    or returns no module, and :class:`CheckpointError` for weights that do not fit.
    """
    if options.model is None and options.arch is None:
        given = [f"--{name}" for name in ("checkpoint", "dataset") if getattr(options, name) is not None]
        if given:
            raise ArgumentError(f"{given[0]} needs a model: --model package.module:factory, or --arch NAME")
        return None
    seed = getattr(options, "seed", None) or SEED
    if options.arch is not None:
        dataset = options.dataset or classification_dataset_str_from_arch(options.arch)
        model, name = _of_the_zoo(dataset, options.arch, seed), f"{options.arch} for {dataset}"
    else:
        dataset, name = options.dataset, options.model
        model = _own_model(options.model, "--model", seed)
    shape = None
    if getattr(options, "example", None) is None:
        shape = options.input_shape or getattr(model, "input_shape", None)
        if shape is None and dataset is not None:
            shape = classification_get_input_shape(dataset)
    if options.checkpoint is not None:
        model = _with_weights(model, Path(options.checkpoint).expanduser())
    return GivenModel(model.eval(), name, _checked_shape(shape, name), dataset, partial(own_example, options))


def _of_the_zoo(dataset: str, arch: str, seed: int = SEED) -> nn.Module:
    """With the same random weights in every run."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return create_model(False, dataset, arch)


def _with_weights(model: nn.Module, path: Path) -> nn.Module:
    """A plain state dict must fit as a whole; a checkpoint also brings thinning and quantization along."""
    if not path.is_file():
        raise ArgumentError(f"--checkpoint: there is no file {str(path)!r}")
    if path.name.endswith(".tar") or "state_dict" in read_file(path):
        return load_lean_checkpoint(model, path)
    read_state_dict(path)
    load_weights_(model, path)
    return model


def _checked_shape(shape: Any, name: str) -> tuple[int, ...] | None:
    if shape is None:
        return None
    if not isinstance(shape, tuple | list | torch.Size) or not all(
        isinstance(size, int) and size > 0 for size in shape
    ):
        raise ArgumentError(f"{name}: its input_shape is {shape!r}; give --input-shape 1,3,32,32")
    return tuple(shape)


def _own_model(text: str, flag: str, seed: int = SEED) -> nn.Module:
    found = named_object(text, flag)
    built = found if isinstance(found, nn.Module) else called(found, f"{flag} {text}", seed=seed)
    if not isinstance(built, nn.Module):
        raise ArgumentError(f"{flag} {text}() returned a {type(built).__name__}, not a torch.nn.Module")
    return built


def _shape(text: str) -> tuple[int, ...]:
    try:
        shape = tuple(int(part) for part in text.replace("x", ",").split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no shape: write 1,3,32,32") from None
    if any(size < 1 for size in shape):
        raise argparse.ArgumentTypeError(f"{text!r}: sizes are 1 or more")
    return shape
