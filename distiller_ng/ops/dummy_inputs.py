"""Inputs of the right shape to run a model on (layer 1)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from distiller_ng.errors import ArgumentError
from distiller_ng.ops.dataset_shapes import dataset_shape

__all__ = ["ShapeTypeError", "get_dummy_input", "set_model_input_shape_attr"]


class ShapeTypeError(ArgumentError, TypeError):
    """An input shape is not a tuple of whole numbers, or of such tuples."""


def get_dummy_input(
    dataset: str | None = None, device: str | torch.device | None = None, input_shape: tuple[Any, ...] | None = None
) -> Any:
    """Random input of the shape a data set has, or of ``input_shape``; a data set wins over a shape.

    A shape is a tuple of whole numbers, or a tuple of such tuples at any depth, which gives tensors nested likewise:
    ``get_dummy_input(input_shape=((1, 3), ((2,), (4,))))`` -> ``(Tensor[1, 3], (Tensor[2], Tensor[4]))``.

    Raises :class:`ArgumentError` for an unknown data set, a negative size, or when neither is given, and
    :class:`ShapeTypeError` (a ``TypeError``) for a shape of another form.
    """

    def create(shape: tuple[Any, ...]) -> Any:
        if all(isinstance(size, int) for size in shape):
            return torch.randn(shape, device=device)
        return tuple(create(part) for part in shape)

    return create(_validated_shape(dataset, input_shape))


def set_model_input_shape_attr(
    model: nn.Module, dataset: str | None = None, input_shape: tuple[Any, ...] | None = None
) -> None:
    """Set ``model.input_shape`` (with the batch dimension) from a data set's name or a shape, unless it has one.

    Raises as :func:`get_dummy_input`.
    """
    if not hasattr(model, "input_shape"):
        shape = _validated_shape(dataset, input_shape)
        setattr(model, "input_shape", shape)  # noqa: B010 - nn.Module declares no such attribute


def _validated_shape(dataset: str | None, input_shape: tuple[Any, ...] | None) -> tuple[Any, ...]:
    if dataset:
        return dataset_shape(dataset).input_shape
    if input_shape is None:
        raise ArgumentError("give the name of a data set or an input_shape", argument=("input_shape",))
    _check_shape(input_shape)
    return input_shape


def _check_shape(shape: Any) -> None:
    """Check a shape or nested shapes; raises as :func:`get_dummy_input`."""
    if isinstance(shape, tuple) and all(isinstance(size, int) and not isinstance(size, bool) for size in shape):
        if any(size < 0 for size in shape):
            raise ArgumentError(f"input_shape has a negative size: {shape}", argument=("input_shape",))
        return
    if not isinstance(shape, tuple) or not all(isinstance(part, tuple) for part in shape):
        raise ShapeTypeError(
            f"input_shape must be a tuple of whole numbers, such as (1, 3, 32, 32), or a tuple of such tuples; "
            f"got {shape!r}",
            argument=("input_shape",),
        )
    for part in shape:
        _check_shape(part)
