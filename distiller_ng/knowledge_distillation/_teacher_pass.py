"""One pass of a teacher over a loader: what it is given, where its logits are, and whether they can be stored."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, SequentialSampler

from distiller_ng.errors import ArgumentError, CalibrationError
from distiller_ng.knowledge_distillation.sample_ids import NO_INPUTS, find_wrapper, split_sample_ids
from distiller_ng.ops.modules import model_device

__all__ = ["as_half", "check_unique", "order_of", "outputs_of"]

_LARGEST = float(torch.finfo(torch.float16).max)


def order_of(loader: Iterable[Any]) -> bool:
    """Whether batches carry ids; ArgumentError for an order that is not the data set's and no ids."""
    if find_wrapper(getattr(loader, "dataset", None)) is not None:
        return True
    if isinstance(loader, DataLoader) and not isinstance(loader.dataset, IterableDataset):
        batches = loader.batch_sampler
        plain = batches is None or type(batches) is BatchSampler
        if not plain or not isinstance(loader.sampler, SequentialSampler):
            culprit = loader.sampler if plain else batches
            raise ArgumentError(
                f"the loader's order comes from {type(culprit).__name__}, so positions do not say which sample is "
                "which: wrap the data set, DataLoader(WithSampleIds(dataset), ...)",
                argument=("loader",),
            )
    return False


def outputs_of(
    teacher: nn.Module,
    loader: Iterable[Any],
    has_ids: bool,
    inputs: Callable[[Any], Any] | None,
    output: str | int | None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits and ids of each batch; the teacher is run as it is, on its own device."""
    device, done = model_device(teacher), 0
    for batch in loader:
        rest, ids = split_sample_ids(batch) if has_ids else (batch, None)
        arguments = _moved(_usual_inputs(rest) if inputs is None else inputs(rest), device)
        if isinstance(arguments, Mapping):
            result = teacher(**arguments)
        else:
            result = teacher(*arguments) if isinstance(arguments, list | tuple) else teacher(arguments)
        logits = _logits_of(result, output)
        if ids is None:
            ids = torch.arange(done, done + len(logits))
        if len(ids) != len(logits):
            raise ArgumentError(
                f"a batch of {len(ids)} samples gave logits of shape {list(logits.shape)}: the first dimension must be "
                "the batch",
                argument=("teacher",),
            )
        done += len(logits)
        yield logits, ids


def _usual_inputs(batch: Any) -> Any:
    if isinstance(batch, Mapping):
        return {key: value for key, value in batch.items() if key not in NO_INPUTS}
    return batch[0] if isinstance(batch, list | tuple) else batch


def _moved(value: Any, device: torch.device | str) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        return {key: _moved(item, device) for key, item in value.items()}
    return [_moved(item, device) for item in value] if isinstance(value, list | tuple) else value


def _logits_of(result: Any, output: str | int | None) -> Tensor:
    chosen = result
    try:
        if output is not None:
            chosen = getattr(result, str(output)) if _is_field(result, output) else result[output]
        elif not isinstance(result, Tensor):
            chosen = result.logits if _is_field(result, "logits") else _first_or_logits(result)
    except (KeyError, IndexError, TypeError):
        chosen = None
    if not isinstance(chosen, Tensor) or not chosen.dim() or not chosen.is_floating_point():
        found = sorted(map(str, result)) if isinstance(result, Mapping) else type(result).__name__
        raise ArgumentError(
            f"the teacher's output ({found}) has no floating-point tensor of logits"
            f"{'' if output is None else f' at {output!r}'}: say where they are, output='logits' or output=0",
            argument=("output",),
        )
    return chosen.detach()


def _first_or_logits(result: Any) -> Any:
    return result["logits"] if isinstance(result, Mapping) else result[0]


def _is_field(result: Any, name: str | int) -> bool:
    return isinstance(name, str) and not isinstance(result, Mapping) and hasattr(result, name)


def as_half(logits: Tensor, ids: Tensor, shape: tuple[int, ...] | None) -> np.ndarray[Any, np.dtype[np.float16]]:
    """Rows to write; every number must survive in float16."""
    if shape is not None and logits.shape[1:] != shape:
        raise ArgumentError(
            f"the teacher gave logits of shape {list(logits.shape[1:])} a sample after {list(shape)}: all samples need "
            "the same shape",
            argument=("teacher",),
        )
    values = logits.float().cpu()
    # Not isfinite: one comparison finds NaN, infinity and what float16 would turn into infinity.
    bad = ~(values.abs() <= _LARGEST).flatten(1).all(1) if values.dim() > 1 else ~(values.abs() <= _LARGEST)
    if bad.any():
        where = int(bad.nonzero()[0])
        worst = values[where].flatten()
        value = worst[~(worst.abs() <= _LARGEST)][0].item()
        raise CalibrationError(
            f"the teacher's logits of sample {int(ids[where])} hold {value:g}: float16 stores numbers up to 65504. "
            "Check the teacher and its inputs"
        )
    return values.half().numpy()


def check_unique(ids: Tensor) -> None:
    """ArgumentError when a sample came twice."""
    numbers, counts = np.unique(ids.numpy(), return_counts=True)
    if len(numbers) != len(ids):
        raise ArgumentError(
            f"sample {int(numbers[counts > 1][0])} comes {int(counts.max())} times: pass a loader that yields every "
            "sample once (no sampling with replacement, no padding of a distributed sampler)",
            argument=("loader",),
        )
