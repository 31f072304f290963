"""Minibatches as users' loaders give them, and loaders looked through a second time (layer 1)."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader, IterableDataset

__all__ = ["Batch", "called_builder", "fresh_loader", "moved", "onto", "split_batch"]

#: Positional arguments, keyword arguments and target of one forward pass.
Batch: TypeAlias = tuple[Sequence[Any], Mapping[str, Any], Any]

_TARGET_KEYS = ("labels", "label", "targets", "target")
_HALF = (torch.float16, torch.bfloat16)


def split_batch(batch: Any) -> Batch:
    """``(inputs..., target)``, a mapping of keyword arguments, or bare inputs."""
    if isinstance(batch, Mapping):
        target = next((batch[key] for key in _TARGET_KEYS if key in batch), None)
        return (), batch, target
    if isinstance(batch, tuple | list):
        return (batch, {}, None) if len(batch) == 1 else (batch[:-1], {}, batch[-1])
    return (batch,), {}, None


def moved(values: Any, like: Tensor) -> Any:
    """Inputs where the model is; in its own type if that is a half type."""
    move = onto(like.device)

    def fit(value: Any) -> Any:
        value = move(value)
        half = isinstance(value, Tensor) and value.is_floating_point() and like.dtype in _HALF
        return value.to(like.dtype) if half else value

    return pytree.tree_map(fit, values)


def onto(device: torch.device) -> Callable[[Any], Any]:
    """A function that moves tensors there and leaves other values alone."""
    return lambda value: value.to(device) if isinstance(value, Tensor) else value


def fresh_loader(loader: DataLoader[Any]) -> Iterable[Any]:
    """A loader over the same samples that leaves a running iterator (and its workers) alone."""
    common: dict[str, Any] = {
        "num_workers": loader.num_workers,
        "collate_fn": loader.collate_fn,
        "worker_init_fn": loader.worker_init_fn,
        "multiprocessing_context": loader.multiprocessing_context,
    }
    if isinstance(loader.dataset, IterableDataset) or loader.batch_sampler is None:
        sampler = None if isinstance(loader.dataset, IterableDataset) else loader.sampler
        drop_last = loader.drop_last if loader.batch_size is not None else False
        return DataLoader(loader.dataset, loader.batch_size, sampler=sampler, drop_last=drop_last, **common)
    return DataLoader(loader.dataset, batch_sampler=loader.batch_sampler, **common)


def called_builder(builder: Callable[..., Iterable[Any]], options: dict[str, Any]) -> Iterable[Any]:
    """What a builder returns, called in the way it is written: ``build()``, ``build(kwargs)``, ``build(**kwargs)``."""
    try:
        parameters = list(inspect.signature(builder).parameters.values())
    except (TypeError, ValueError):  # some builtins have no signature
        return builder()
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.VAR_POSITIONAL)]
    keywords = [p for p in parameters if p.kind in (p.VAR_KEYWORD, p.KEYWORD_ONLY)]
    required = [p for p in positional if p.default is p.empty and p.kind is not p.VAR_POSITIONAL]
    if keywords or (options and set(options) <= {p.name for p in positional}):
        return builder(**options) if not required or options else builder(options)
    return builder(options) if positional else builder()
