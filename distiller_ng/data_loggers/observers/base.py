"""The base of observers and their registry (layer 2)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, TypeAlias, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from distiller_ng.data_loggers._batch_summary import accumulator_dtype, rows_of
from distiller_ng.errors import ArgumentError, CalibrationError
from distiller_ng.registry import Registry

__all__ = ["OBSERVERS", "Observer", "ObserverLike", "observer_named"]

O = TypeVar("O", bound="Observer")  # noqa: E741
_VERSION = 1


class Observer(ABC):
    """Sees the batches of one tensor and says which range of values to quantize.

    A rule of one's own is one class, with a keyword-only constructor, that keeps what it needs::

        @OBSERVERS.register("three_sigma")
        class ThreeSigma(Observer):
            def reset(self):
                super().reset()
                self.values = []

            def observe(self, values, low, high):
                self.values.append(values)

            def chosen_range(self):
                values = torch.cat(self.values)
                return values.mean() - 3 * values.std(), values.mean() + 3 * values.std()

            def merge(self, other):
                self.values += other.values

            def state(self):
                return {"values": self.values}

            def load_state(self, state):
                self.values = list(state["values"])

    Nothing waits for the device before :meth:`range`. For replicas that see different data, :meth:`synchronize` makes
    all of them have seen everything; :meth:`merge` says how.
    """

    batches: int
    _wrong: Tensor | None

    def __init__(self) -> None:
        self.reset()

    # -- what a rule does -------------------------------------------------------------------------------------------

    @abstractmethod
    def observe(self, values: Tensor, low: Tensor, high: Tensor) -> None:
        """Take note of a batch: its values ``[n]`` in float32 or wider, and their extremes."""

    @abstractmethod
    def chosen_range(self) -> tuple[Tensor, Tensor]:
        """Lower and upper end, from what was observed (at least one batch)."""

    @abstractmethod
    def merge(self, other: Any) -> None:
        """Add what another observer of the same class and arguments has seen (at least one batch)."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """What was observed, as plain values and tensors."""

    @abstractmethod
    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`state`."""

    # -- what callers use -------------------------------------------------------------------------------------------

    def update(self, tensor: Tensor) -> None:
        """See a batch of any shape and dtype; an empty one changes nothing.

        Raises :class:`ArgumentError` for something else than a real tensor.
        """
        if not isinstance(tensor, Tensor) or tensor.is_complex():
            kind = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
            raise ArgumentError(f"an observer needs a tensor of real numbers, got {kind}", argument=("tensor",))
        if tensor.numel() == 0:
            return
        with torch.no_grad():
            values = rows_of(tensor)[0].reshape(-1)
            low, high = values.amin(), values.amax()
            wrong = ~(torch.isfinite(low) & torch.isfinite(high))
            self._wrong = wrong if self._wrong is None else self._wrong.to(wrong.device) | wrong
            dtype = accumulator_dtype(values.device)
            self.batches += 1
            self.observe(values, low.to(dtype), high.to(dtype))

    def range(self) -> tuple[float, float]:
        """The range to quantize, ``low <= high``.

        Raises :class:`CalibrationError` when nothing was seen, and for NaN or infinite values.
        """
        if self.batches == 0 or self._wrong is None:
            raise CalibrationError(f"{type(self).__name__} has seen no values: run the model on calibration data first")
        if bool(self._wrong):
            raise CalibrationError(
                f"{type(self).__name__} has seen NaN or infinite values, so no range can be derived: check the weights "
                "and the calibration data"
            )
        low, high = (float(end) for end in self.chosen_range())
        return min(low, high), max(low, high)

    def reset(self) -> None:
        """Forget everything."""
        self.batches = 0
        self._wrong = None

    def synchronize(self) -> None:
        """Let every replica of a ``torch.distributed`` group have seen what all have; without a group, do nothing.

        All replicas must call it, in the same order for several observers.
        """
        if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
            return
        states: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(states, self.state_dict())
        self.reset()
        for state in states:
            self._join(state)

    def _join(self, state: Mapping[str, Any]) -> None:
        if self.batches == 0:
            self.load_state_dict(state)
        elif state["batches"]:
            other = self._empty_copy()
            other.load_state_dict(state)
            self.merge(other)
            self.batches += other.batches
            if self._wrong is not None and other._wrong is not None:
                self._wrong = self._wrong | other._wrong.to(self._wrong.device)

    def _empty_copy(self: O) -> O:
        other = type(self).__new__(type(self))
        other.__dict__.update(self.__dict__)
        other.reset()
        return other

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors, for resuming."""
        observed = self.state() if self.batches else {}
        return {"version": _VERSION, "batches": self.batches, "wrong": self._wrong, "observed": observed}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`state_dict`. Raises :class:`ArgumentError` for a state of another version."""
        if state.get("version") != _VERSION:
            raise ArgumentError(f"observer state of version {state.get('version')!r}; this is version {_VERSION}")
        self.reset()
        self.batches, self._wrong = int(state["batches"]), state["wrong"]
        if self.batches:
            self.load_state(state["observed"])


ObserverLike: TypeAlias = "str | type[Observer] | Observer"

OBSERVERS: Registry[Observer] = Registry("observer", "distiller_ng.data_loggers.observers")


def observer_named(observer: ObserverLike, arguments: Mapping[str, Any] | None = None) -> Observer:
    """A new observer: ``observer_named("percentile", {"percentile": 99.9})``.

    ``observer`` is a name of :data:`OBSERVERS`, a class, or an observer, of which an empty copy is made. Raises
    :class:`ArgumentError` for an unknown name and for arguments that it does not take.
    """
    if isinstance(observer, Observer):
        if arguments:
            raise ArgumentError("arguments go to the observer's constructor", argument=("arguments",))
        return observer._empty_copy()
    if isinstance(observer, str):
        kind = OBSERVERS.get(observer).cls
    elif isinstance(observer, type) and issubclass(observer, Observer):
        kind = observer
    else:
        raise ArgumentError(f"observer must be a name or an Observer, got {observer!r}", argument=("observer",))
    try:
        return kind(**(arguments or {}))
    except TypeError as error:
        raise ArgumentError(f"{kind.__name__}: {error}", argument=("arguments",)) from error
