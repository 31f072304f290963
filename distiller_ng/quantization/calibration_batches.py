"""Minibatches of calibration data, and running a model on them (layer 2)."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from distiller_ng.core._batches import moved, split_batch
from distiller_ng.errors import ArgumentError, CalibrationError
from distiller_ng.names import unwrap

__all__ = ["CalibrationBatches", "CalibrationData", "ModelInputs", "main_tensor"]


class ModelInputs(NamedTuple):
    """What a model is called with: ``model(*args, **kwargs)``."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def run(self, model: nn.Module) -> Any:
        """The model's output."""
        return model(*self.args, **self.kwargs)

    @property
    def size(self) -> int:
        """How many samples: the length of the first tensor."""
        return next((len(one) for one in self.tensors if one.dim()), 1)

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors among the arguments."""
        return [value for value in (*self.args, *self.kwargs.values()) if isinstance(value, Tensor)]


class CalibrationBatches(Sequence[ModelInputs]):
    """Calibration data, looked through once and kept: batches are tensors, ``(inputs..., target)`` or mappings.

    A mapping's keys are the model's keyword arguments; those that its ``forward`` does not take are left out, labels
    always. Tensors are moved to where the model is. ``CalibrationBatches.of([torch.ones(4, 3)], model)`` holds one
    batch of 4 samples.
    """

    def __init__(self, batches: Sequence[ModelInputs]) -> None:
        self._batches = list(batches)

    @classmethod
    def of(cls, data: CalibrationData, model: nn.Module, *, limit: int | None = None) -> CalibrationBatches:
        """The first batches of ``data``, until ``limit`` samples are reached (None: all).

        Raises :class:`ArgumentError` for what is no iterable of batches, :class:`CalibrationError` for no batches and
        for NaN or infinite values.
        """
        if isinstance(data, cls):
            return data
        if isinstance(data, Tensor | Mapping | str) or not isinstance(data, Iterable):
            raise ArgumentError(
                "calibration data is a DataLoader or a list of batches, each a tensor, (inputs, target) or a mapping; "
                f"got {type(data).__name__}. For one batch write [batch]",
                argument=("calibration_loader",),
            )
        found: list[ModelInputs] = []
        samples = 0
        for number, batch in enumerate(data):
            inputs = _model_inputs(batch, model)
            _check(inputs, number)
            found.append(inputs)
            samples += inputs.size
            if limit is not None and samples >= limit:
                break
        if not found:
            raise CalibrationError(
                "the calibration data has no batches: give a few hundred samples of what the model will see. An "
                "iterator that was used up before is empty, too: give the loader or a list"
            )
        return cls(found)

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, index: Any) -> Any:
        return CalibrationBatches(self._batches[index]) if isinstance(index, slice) else self._batches[index]

    def __iter__(self) -> Iterator[ModelInputs]:
        return iter(self._batches)

    @property
    def samples(self) -> int:
        """How many samples all batches have together."""
        return sum(batch.size for batch in self)

    def first(self, samples: int) -> CalibrationBatches:
        """As many batches from the front as hold so many samples; at least one."""
        kept, count = [], 0
        for batch in self:
            kept.append(batch)
            count += batch.size
            if count >= samples:
                break
        return CalibrationBatches(kept)

    def split(self, held_back: int) -> tuple[CalibrationBatches, CalibrationBatches]:
        """The batches to calibrate with, and the last ones with about ``held_back`` samples to measure with.

        A single batch of several samples is cut in two; a single sample is used for both.
        """
        if len(self) == 1 and self.samples > 1:
            size = self[0].size
            cut = max(1, size - min(held_back, size // 4 or 1))
            parts = [_cut(self[0], 0, cut), _cut(self[0], cut, size)]
            return CalibrationBatches(parts[:1]), CalibrationBatches(parts[1:])
        at, count = len(self) - 1, self[-1].size
        while at > 1 and count < held_back and at > len(self) * 3 // 4:
            at -= 1
            count += self[at].size
        return (CalibrationBatches(self._batches[:at]) if at else self, CalibrationBatches(self._batches[at:]))

    def run(self, model: nn.Module) -> None:
        """Run ``model`` on every batch, without gradients."""
        with torch.no_grad():
            for batch in self:
                batch.run(model)

    def outputs(self, model: nn.Module) -> Tensor:
        """The first tensor of the model's outputs on all batches, ``[samples, ...]``, float32 where it was shorter.

        Batches whose outputs differ in shape are flattened into rows of one value.
        """
        with torch.no_grad():
            found = [main_tensor(batch.run(model)).detach() for batch in self]
        found = [one if one.element_size() >= 4 else one.float() for one in found]
        if len({one.shape[1:] for one in found}) > 1 or not found[0].dim():
            return torch.cat([one.reshape(-1, 1) for one in found])
        return torch.cat(found)


#: A DataLoader, a list of batches, or what :meth:`CalibrationBatches.of` made of one.
CalibrationData: TypeAlias = "Iterable[Any] | CalibrationBatches"


def main_tensor(outputs: Any) -> Tensor:
    """The first floating point tensor of what a model returns: a tensor, or nested tuples, lists and mappings.

    Raises :class:`ArgumentError` when there is none.
    """
    for value in _leaves(outputs):
        if isinstance(value, Tensor) and value.is_floating_point():
            return value
    raise ArgumentError(f"the model returns no floating point tensor, but {type(outputs).__name__}")


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        first = [value["logits"]] if "logits" in value else []
        for one in (*first, *value.values()):
            yield from _leaves(one)
    elif isinstance(value, tuple | list):
        for one in value:
            yield from _leaves(one)
    else:
        yield value


def _model_inputs(batch: Any, model: nn.Module) -> ModelInputs:
    args: Sequence[Any]
    args, kwargs, _ = split_batch(batch)
    if len(args) == 1 and isinstance(args[0], Mapping):
        kwargs, args = args[0], ()
    elif len(args) == 1 and isinstance(args[0], tuple | list):
        args = tuple(args[0])
    accepted = _accepted(model)
    kept = {
        key: value
        for key, value in kwargs.items()
        if key not in ("labels", "label", "targets", "target") and (accepted is None or key in accepted)
    }
    like = next((p for p in model.parameters() if p.is_floating_point()), None)
    if like is None:
        return ModelInputs(tuple(args), kept)
    return ModelInputs(*moved((tuple(args), kept), like))


def _accepted(model: nn.Module) -> set[str] | None:
    """Names of keyword arguments ``forward`` takes; None for any."""
    parameters = inspect.signature(unwrap(model).forward).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    return {parameter.name for parameter in parameters}


def _check(inputs: ModelInputs, number: int) -> None:
    if not inputs.tensors:
        raise ArgumentError(
            f"batch {number} of the calibration data holds no tensor the model could be called with: expected a "
            "tensor, (inputs, target) or a mapping of the model's keyword arguments",
            argument=("calibration_loader",),
        )
    for tensor in inputs.tensors:
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise CalibrationError(
                f"batch {number} of the calibration data holds NaN or infinite values: no range can be derived from "
                "them. Check how the data is normalized"
            )


def _cut(batch: ModelInputs, start: int, end: int) -> ModelInputs:
    size = batch.size

    def part(value: Any) -> Any:
        whole = isinstance(value, Tensor) and value.dim() > 0 and len(value) == size
        return value[start:end] if whole else value

    return ModelInputs(tuple(map(part, batch.args)), {key: part(value) for key, value in batch.kwargs.items()})
