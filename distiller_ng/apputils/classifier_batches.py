"""Batches of any loader, through any model: what goes wrong in a user's code is told in one sentence (layer 5)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from distiller_ng.apputils.meters import are_probabilities
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

_OF_CLASSES = (nn.CrossEntropyLoss, nn.NLLLoss)
_OF_NUMBERS = (nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss)

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
    """Inputs and labels of a batch.

    A batch is ``(inputs, labels)``, ``(input, input, ..., labels)``, or a mapping of inputs with ``labels``, as
    collators for text make. Inputs are a tensor, a tuple of positional arguments or a mapping of keyword arguments;
    labels int64 ``[N]``, probabilities ``[N, classes]``, or what a loss of the user's takes. Raises
    :class:`ArgumentError` for anything else.
    """
    inputs, target = _parts(batch, what)
    if not isinstance(target, Tensor):
        raise ArgumentError(f"labels of the {what} loader are a {type(target).__name__}, not a tensor [N]")
    if not isinstance(inputs, Tensor | tuple | list | Mapping):
        kind = type(inputs).__name__
        raise ArgumentError(f"inputs of the {what} loader are a {kind}: give a tensor, a tuple or a dict of tensors")
    if target.dim() == 2 and target.shape[1] == 1 and not target.is_floating_point():
        target = target[:, 0]
    return inputs, target


def _parts(batch: Any, what: str) -> tuple[Any, Any]:
    if isinstance(batch, Mapping) and (names := [name for name in ("labels", "label") if name in batch]):
        return {name: value for name, value in batch.items() if name != names[0]}, batch[names[0]]
    if not isinstance(batch, tuple | list) or len(batch) < 2:
        got = f"{len(batch)} parts" if isinstance(batch, tuple | list) else f"a {type(batch).__name__}"
        raise ArgumentError(f"a batch of the {what} loader is (inputs, labels), got {got}")
    return (batch[0] if len(batch) == 2 else tuple(batch[:-1])), batch[-1]


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


def loss_of(criterion: Criterion, output: Any, target: Tensor) -> Tensor:
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


def check_labels(output: Any, target: Tensor, criterion: Criterion, where: str) -> None:
    """Raises :class:`ArgumentError` for labels and outputs that the loss would take, but not as they are meant.

    Classes must be those of the output ``[N, classes]``, and what cross entropy compares must be classes.
    """
    if isinstance(criterion, _OF_CLASSES):
        _check_classifier(output, target, criterion)
    elif isinstance(criterion, _OF_NUMBERS) and isinstance(output, Tensor) and output.shape != target.shape:
        raise ArgumentError(
            f"{where}: {type(criterion).__name__} compares number with number, but outputs are {shape_text(output)} "
            f"and labels {shape_text(target)}: give both one shape, e.g. labels.unsqueeze(1)"
        )
    if not isinstance(output, Tensor) or output.dim() != 2:
        return
    if len(target) != len(output):
        raise ArgumentError(f"{where}: {len(target)} labels for {len(output)} outputs")
    if target.dim() != 1 or target.is_floating_point() or not len(target) or output.shape[1] < 2:
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


def _check_classifier(output: Any, target: Tensor, criterion: nn.Module) -> None:
    advice = "for another kind of model give its --loss file.py:loss (train, evaluate, thin), or --evaluate"
    if not isinstance(output, Tensor) or (output.dim() != 2 and target.dim() < 2):
        raise ArgumentError(
            f"a classifier returns logits [N, classes], this model's output is {shape_text(output)}; {advice}"
        )
    if output.dim() == 2 and target.is_floating_point() and not are_probabilities(output, target):
        labels = shape_text(target)
        raise ArgumentError(
            f"{type(criterion).__name__} needs classes, and these labels are numbers, {labels}; {advice}"
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
