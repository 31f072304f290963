"""Batches of any loader, through any model: what goes wrong in a user's code is told in one sentence (layer 5)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from distiller_ng.errors import ArgumentError, DistillerError

__all__ = [
    "USER_CODE",
    "Criterion",
    "batches",
    "check_labels",
    "described",
    "loss_of",
    "one_line",
    "run_model",
    "shape_text",
    "to_device",
    "unpacked",
]

#: What importing, building and running code of a user's may raise.
USER_CODE = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    NameError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
)

#: ``criterion(output, target)`` -> a scalar.
Criterion: TypeAlias = "nn.Module | Callable[[Any, Any], Tensor]"


def one_line(error: BaseException) -> str:
    """An exception of any length in one line: ``RuntimeError: mat1 and mat2 shapes cannot be multiplied``."""
    lines = [line.strip() for line in str(error).splitlines()]
    if "Original Traceback" in str(error):  # what a loading process hands on ends with what happened
        return next((line for line in reversed(lines) if line), type(error).__name__)
    text = " ".join(" ".join(lines).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def batches(loader: Iterable[Any], what: str) -> Iterator[Any]:
    """The loader's batches; ``what`` names it, e.g. "training".

    Raises :class:`DistillerError` where the loader, or the data set behind it, fails.
    """
    try:
        iterator = iter(loader)
    except USER_CODE as error:
        raise DistillerError(f"the {what} loader failed: {one_line(error)}") from error
    while True:
        try:
            batch = next(iterator)
        except StopIteration:
            return
        except DistillerError:
            raise
        except USER_CODE as error:
            raise DistillerError(f"the {what} loader failed: {one_line(error)}") from error
        yield batch


def unpacked(batch: Any, what: str) -> tuple[Any, Tensor]:
    """Inputs and labels of a batch: its two parts.

    Inputs are a tensor, a tuple of positional arguments or a mapping of keyword arguments; labels int64 ``[N]``, or
    probabilities ``[N, classes]``. Raises :class:`ArgumentError` for anything else.
    """
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        got = f"{len(batch)} parts" if isinstance(batch, tuple | list) else f"a {type(batch).__name__}"
        raise ArgumentError(f"a batch of the {what} loader is (inputs, labels), got {got}")
    inputs, target = batch
    if not isinstance(target, Tensor):
        raise ArgumentError(f"labels of the {what} loader are a {type(target).__name__}, not a tensor [N]")
    if not isinstance(inputs, Tensor | tuple | list | Mapping):
        kind = type(inputs).__name__
        raise ArgumentError(f"inputs of the {what} loader are a {kind}: give a tensor, a tuple or a dict of tensors")
    if target.dim() == 2 and target.shape[1] == 1 and not target.is_floating_point():
        target = target[:, 0]
    return inputs, target


def to_device(inputs: Any, device: torch.device | str) -> Any:
    """All tensors of the inputs on a device."""
    return pytree.tree_map_only(Tensor, lambda tensor: tensor.to(device, non_blocking=True), inputs)


def run_model(model: nn.Module, inputs: Any, what: str) -> Any:
    """What the model returns for one batch; raises :class:`DistillerError` where it does not run on it."""
    try:
        if isinstance(inputs, Mapping):
            return model(**inputs)
        return model(*inputs) if isinstance(inputs, tuple | list) else model(inputs)
    except DistillerError:
        raise
    except USER_CODE as error:
        shape = shape_text(inputs)
        message = f"the model does not run on a batch of the {what} loader ({shape}): {one_line(error)}"
        raise DistillerError(message) from error


def loss_of(criterion: Criterion, output: Tensor, target: Tensor) -> Tensor:
    """The criterion's value; raises :class:`DistillerError` where it does not go with the model's output."""
    try:
        value = criterion(output, target)
    except DistillerError:
        raise
    except USER_CODE as error:
        shapes = f"output {shape_text(output)}, labels {shape_text(target)}"
        raise DistillerError(f"the loss cannot be computed ({shapes}): {one_line(error)}") from error
    if not isinstance(value, Tensor) or value.numel() != 1:
        got = shape_text(value) if isinstance(value, Tensor) else f"a {type(value).__name__}"
        raise ArgumentError(f"the loss must be one number, a tensor with a gradient; got {got}")
    return value


def check_labels(output: Tensor, target: Tensor, criterion: Criterion, where: str) -> None:
    """Raises :class:`ArgumentError` for labels that are no class of the output ``[N, classes]``.

    Labels that ``nn.CrossEntropyLoss`` is told to ignore are allowed. Example: 10 classes and a label of 10.
    """
    if output.dim() != 2:
        raise ArgumentError(f"a classifier returns logits [N, classes], this model's output is {shape_text(output)}")
    if len(target) != len(output):
        raise ArgumentError(f"{where}: {len(target)} labels for {len(output)} outputs")
    if target.dim() != 1 or target.is_floating_point() or not len(target):
        return
    ignored = criterion.ignore_index if isinstance(criterion, nn.CrossEntropyLoss | nn.NLLLoss) else None
    wrong = (target < 0) | (target >= output.shape[1])
    if ignored is not None:
        wrong &= target != ignored
    if bool(wrong.any()):
        found = int(target[wrong][0])
        raise ArgumentError(
            f"{where}: a label is {found}, but the model has {output.shape[1]} classes, 0 to {output.shape[1] - 1}"
        )


def described(loader: Any) -> str:
    """How much a loader holds: ``1294 images (64 per mini-batch)``, or ``20 minibatches``."""
    size: Any = getattr(loader, "batch_size", None)
    images: Any = getattr(loader, "sampler", None)
    try:
        return f"{len(images)} images ({size} per mini-batch)" if size else f"{len(loader)} minibatches"
    except TypeError:
        return f"{len(loader)} minibatches"


def shape_text(inputs: Any) -> str:
    """Shapes and types of tensors: ``[64, 3, 32, 32] float32``."""
    tensors = [leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor)]
    texts = [f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}" for tensor in tensors]
    return ", ".join(texts) if texts else type(inputs).__name__
