"""Random input for summaries that run or trace a model (layer 4)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from distiller_ng.errors import ArgumentError, listed
from distiller_ng.names import unwrap
from distiller_ng.ops.dataset_shapes import dataset_names, dataset_shape

__all__ = ["example_input"]


def example_input(model: nn.Module, dataset: str | None = None, input_shape: Any = None) -> Any:
    """Random tensors shaped as the images of ``dataset``, else as ``input_shape``, else as ``model.input_shape``.

    A shape is a tuple of whole numbers or a tuple of such tuples, which gives a tuple of tensors. Raises
    :class:`ArgumentError` when none of the three is known.
    """
    shape = dataset_shape(dataset).input_shape if dataset else input_shape
    shape = getattr(unwrap(model), "input_shape", None) if shape is None else shape
    if shape is None:
        raise ArgumentError(
            "the summary needs to know the input: pass dummy_input, set model.input_shape, or name a data set "
            f"({listed(dataset_names())})",
            argument=("dataset",),
        )
    # A generator of its own: asking for a summary must not shift the random numbers of a training run.
    generator = torch.Generator().manual_seed(0)

    def create(sizes: Any) -> Any:
        if all(isinstance(size, int) for size in sizes):
            return torch.randn(tuple(sizes), generator=generator)
        return tuple(create(part) for part in sizes)

    return create(shape)
