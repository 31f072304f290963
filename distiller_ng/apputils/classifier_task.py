"""What a run works on when it is handed in, not named: model, loaders, loss, optimizer, teachers (layer 5)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_map_only

from distiller_ng.apputils.classifier_batches import (
    Criterion,
    batches,
    check_labels,
    loss_of,
    run_model,
    to_device,
    unpacked,
)
from distiller_ng.apputils.classifier_exits import OutputReader
from distiller_ng.apputils.run_results import undisturbed
from distiller_ng.errors import ArgumentError
from distiller_ng.graph.inputs import ExampleInputs, as_example_inputs
from distiller_ng.graph.trace import evaluating
from distiller_ng.ops.modules import model_device

__all__ = ["Loaders", "PartOf", "Task", "check_fit", "first_inputs"]


class Loaders(NamedTuple):
    """Training, validation and test loader: DataLoaders, or anything with a length that can be read again and again."""

    train: Any
    valid: Any
    test: Any

    @classmethod
    def of(cls, given: Any, what: str = "loaders") -> Loaders:
        """Read ``(train, validation, test)``, or ``(train, test)``: the test loader then validates, too.

        ``what`` begins messages. Raises :class:`ArgumentError` for another number of loaders and for what is none.
        """
        if not isinstance(given, tuple | list) or len(given) not in (2, 3):
            got = f"{len(given)} values" if isinstance(given, tuple | list) else f"a {type(given).__name__}"
            raise ArgumentError(f"{what} must be (train, validation, test) or (train, test), got {got}")
        train, valid, test = given if len(given) == 3 else (given[0], given[1], given[1])
        for name, loader in zip(cls._fields, (train, valid, test), strict=True):
            _check_loader(loader, f"{what}: the {name} loader")
        return cls(train, valid, test)


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """Stands in for what the arguments would name; what is None is named by them.

    ``model``: instead of ``--arch``, before compression and with any weights; it is changed in place. ``loaders``:
    instead of ``--dataset``. ``criterion``: instead of cross entropy, ``criterion(output, target)``.
    ``make_optimizer``: instead of ``--opt``, ``make_optimizer(model)``. ``teachers``: for schedules with distillers.
    ``example_inputs``: what one forward pass takes; else the model's ``input_shape`` or a batch of the loaders.
    """

    model: nn.Module | None = None
    loaders: Loaders | None = None
    criterion: Criterion | None = None
    make_optimizer: Callable[[nn.Module], Optimizer] | None = None
    teachers: Mapping[str, nn.Module] = field(default_factory=dict)
    example_inputs: ExampleInputs | None = None

    def optimizer_for(self, model: nn.Module) -> Optimizer | None:
        """What ``make_optimizer`` makes; None without one. Raises :class:`ArgumentError` for no optimizer."""
        if self.make_optimizer is None:
            return None
        optimizer = self.make_optimizer(model)
        if not isinstance(optimizer, Optimizer):
            kind = type(optimizer).__name__
            raise ArgumentError(f"make_optimizer(model) must return a torch optimizer, got a {kind}")
        return optimizer

    def inputs_for(self, model: nn.Module) -> ExampleInputs | None:
        """One sample of what the model is called with: given, of its ``input_shape``, or the loaders'; else None."""
        if self.example_inputs is not None:
            return self.example_inputs
        shape = getattr(model, "input_shape", None)
        if isinstance(shape, tuple | list):
            return ExampleInputs((torch.randn(tuple(shape), generator=torch.Generator().manual_seed(0)),))
        return None if self.loaders is None else as_example_inputs(first_inputs(self.loaders.test))


class PartOf:
    """The first batches of a loader: a ``fraction`` (0..1] of them, at least one. It has a length."""

    def __init__(self, loader: Any, fraction: float) -> None:
        self._loader, self._count = loader, max(1, math.ceil(len(loader) * fraction - 1e-9))
        self.batch_size = None  # logs then speak of minibatches

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Any]:
        return itertools.islice(iter(self._loader), self._count)


def first_inputs(loader: Any, *, samples: int = 1) -> Any:
    """The inputs of a loader's first ``samples`` samples, as it gives them; random generators stay as they were.

    A tensor, or a tuple or a dict of tensors. Raises :class:`ArgumentError` for batches that are not
    ``(inputs, labels)``, :class:`DistillerError` for a loader that fails.
    """
    with undisturbed():
        inputs, _ = unpacked(next(batches(loader, "test")), "test")
    return tree_map_only(Tensor, lambda one: one[:samples] if one.dim() else one, inputs)


def check_fit(model: nn.Module, loaders: Loaders, criterion: Criterion) -> None:
    """Run the model and the loss on the first test batch, so that what does not fit is told before training.

    Nothing is changed, random generators included. Raises :class:`DistillerError` as one sentence.
    """
    with undisturbed(), torch.no_grad(), evaluating(model):
        inputs, target = unpacked(next(batches(loaders.test, "test")), "test")
        device = model_device(model)
        outputs = OutputReader(model, criterion)(run_model(model, to_device(inputs, device), "test"))
        check_labels(outputs[-1], target.to(device), criterion, "the test loader")
        loss_of(criterion, outputs[-1], target.to(device))


def _check_loader(loader: Any, what: str) -> None:
    if isinstance(loader, Iterator):
        raise ArgumentError(f"{what} can be read only once: give a DataLoader or a list of batches")
    if not isinstance(loader, Iterable):
        raise ArgumentError(f"{what} is a {type(loader).__name__}: give a DataLoader or a list of batches")
    try:
        count = len(loader)  # type: ignore[arg-type]
    except TypeError:
        message = f"{what} has no length: epochs need a number of minibatches (give its class a __len__)"
        raise ArgumentError(message) from None
    if not count:
        raise ArgumentError(f"{what} is empty")
