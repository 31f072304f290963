"""Example inputs of a model: what one forward pass is called with (layer 1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from distiller_ng.errors import ArgumentError

__all__ = ["ExampleInputs", "ExampleInputsLike", "as_example_inputs", "batch_size", "flat_tensors", "with_batch"]


@dataclass(frozen=True, slots=True)
class ExampleInputs:
    """Positional and keyword arguments of one forward pass; each may be any nest of tensors and plain values.

    >>> ExampleInputs((torch.zeros(1, 3),), {"scale": 2.0}).kwargs
    {'scale': 2.0}
    """

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def call(self, model: nn.Module) -> Any:
        """Run ``model`` on these inputs."""
        return model(*self.args, **self.kwargs)


#: What users may write: a tensor, a tuple or list of positional arguments, a mapping of keyword arguments, or both.
ExampleInputsLike: TypeAlias = ExampleInputs | Tensor | tuple[Any, ...] | list[Any] | Mapping[str, Any]


def as_example_inputs(value: ExampleInputsLike | None) -> ExampleInputs:
    """Read what a user wrote as ``example_inputs``.

    A tensor is one positional argument, a tuple or list is all of them, a mapping is keyword arguments (a tokenizer's
    output). A model that takes a dictionary as its only argument needs ``({...},)``.

    Raises :class:`ArgumentError` for anything else.
    """
    if isinstance(value, ExampleInputs):
        return value
    if isinstance(value, Tensor):
        return ExampleInputs((value,))
    if isinstance(value, Mapping):
        return ExampleInputs((), dict(value))
    if isinstance(value, tuple | list):
        return ExampleInputs(tuple(value))
    raise ArgumentError(
        "example_inputs says what one forward pass is called with: a tensor, a tuple of positional arguments, a "
        f"mapping of keyword arguments, or ExampleInputs(args, kwargs); got {type(value).__name__}",
        argument=("example_inputs",),
    )


def with_batch(inputs: ExampleInputs, size: int) -> ExampleInputs:
    """The first sample of ``inputs``, ``size`` times: every tensor ``[N, ...]`` becomes ``[size, ...]``."""

    def resized(tensor: Tensor) -> Tensor:
        return tensor if tensor.dim() == 0 else tensor[:1].expand(size, *tensor.shape[1:]).contiguous()

    args, kwargs = pytree.tree_map_only(Tensor, resized, (inputs.args, dict(inputs.kwargs)))
    return ExampleInputs(args, kwargs)


def batch_size(inputs: ExampleInputs) -> int | None:
    """The first dimension of the first tensor; None where no input has one."""
    tensors = flat_tensors((inputs.args, dict(inputs.kwargs)))
    return next((int(t.shape[0]) for t in tensors if t.dim() and t.shape[0]), None)


def flat_tensors(value: Any) -> list[Tensor]:
    """Every tensor of a nest (dicts, lists, dataclasses, output objects of model libraries), in a fixed order."""
    return [leaf for leaf in pytree.tree_leaves(_opened(value)) if isinstance(leaf, Tensor)]


def _opened(value: Any) -> Any:
    """Output objects of model libraries hold their tensors as mapping items or attributes."""
    if isinstance(value, Tensor) or value is None:
        return value
    if isinstance(value, Mapping):
        return [_opened(item) for item in value.values()]
    if isinstance(value, tuple | list):
        return [_opened(item) for item in value]
    if isinstance(value, torch.Size | str | bytes) or not hasattr(value, "__dict__"):
        return value
    return [_opened(item) for item in vars(value).values()]
