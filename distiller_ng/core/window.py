"""When a policy acts: a window of epochs, whole or fractional (layer 1)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Literal, TypeAlias, get_args

from distiller_ng.core.position import TrainPosition
from distiller_ng.errors import ArgumentError

__all__ = ["EVERY_STEP", "FROM_FIRST_STEP", "OPEN_END", "PolicyWindow", "Trigger"]

OPEN_END = -1
#: ``starting_epoch`` and ``frequency`` of a window with ``trigger: step``.
FROM_FIRST_STEP = -1
EVERY_STEP = -1

#: ``epoch``: a policy acts at the beginning of epochs, or of minibatches. ``step``: right before optimizer steps.
Trigger: TypeAlias = Literal["epoch", "step"]
_TOLERANCE = 1e-9  # epochs; absorbs the rounding of minibatch_id / minibatches_per_epoch


@dataclass(frozen=True, slots=True)
class PolicyWindow:
    """The epochs in which a policy is active. Epochs are absolute and 0-based, ``end`` is exclusive.

    Whole windows act in the epochs ``range(start, end, frequency)`` or in a list of epochs. Fractional ones (any of
    the three is not whole) are active from the first optimizer step at or after ``start`` to the last one before
    ``end``, and are due every ``frequency`` epochs. ``end=-1`` leaves a window open.

    With ``trigger="step"`` a window has the timing of SparseML's recipes: between backward and ``optimizer.step()`` it
    is looked at in every step. It starts in the first step at or after ``start`` (-1: the first step of all), is due
    again in the first step at least ``frequency`` epochs after the step it was last due in (so it drifts: start 0, end
    2, frequency 0.3 with 4 steps an epoch acts at 0, 0.5, 1, 1.5 and ends at 2), and ends once, in the first step at or
    after ``end``. Frequency -1 means every step, 0 nothing between start and end; end and start may be equal.

    >>> PolicyWindow.from_range(0, 5, 2).active_epochs()
    [0, 2, 4]
    >>> PolicyWindow.from_range(0, 5, 2).progress(TrainPosition(2))
    0.5
    """

    start: float
    end: float
    frequency: float | None = 1
    epochs: tuple[int, ...] | None = None
    trigger: Trigger = "epoch"

    @classmethod
    def from_epochs(cls, epochs: Sequence[int]) -> PolicyWindow:
        """A list of epochs; Distiller's ``epochs:``. Repetitions are dropped, order does not matter."""
        if isinstance(epochs, str | Mapping) or not isinstance(epochs, Sized) or not isinstance(epochs, Iterable):
            raise ArgumentError(f"epochs must be a list of epoch numbers, got {epochs!r}", argument=("epochs",))
        if len(epochs) == 0:
            raise ArgumentError("epochs is empty: a policy needs at least one epoch", argument=("epochs",))
        for position, epoch in enumerate(epochs):
            if isinstance(epoch, bool) or not isinstance(epoch, Integral) or epoch < 0:
                raise ArgumentError(f"epochs are whole numbers from 0, got {epoch!r}", argument=("epochs", position))
        ordered = tuple(sorted({int(epoch) for epoch in epochs}))
        return cls(ordered[0], ordered[-1] + 1, None, ordered)

    @classmethod
    def of_steps(cls, start: float, end: float, frequency: float = 1) -> PolicyWindow:
        """A window with ``trigger="step"``; raises :class:`ArgumentError`.

        >>> PolicyWindow.of_steps(-1, 2.5, 0.5).progress(TrainPosition(1, 1, 4))
        0.5
        """
        _check_numbers(starting_epoch=start, ending_epoch=end, frequency=frequency)
        if start < 0 and start != FROM_FIRST_STEP:
            message = f"starting_epoch is 0 or more, or -1 for the first step; got {start}"
            raise ArgumentError(message, argument=("starting_epoch",))
        limit = math.inf if end == OPEN_END else end
        if limit < max(start, 0):
            message = f"ending_epoch ({end}) must not lie before starting_epoch ({start}); -1 leaves the window open"
            raise ArgumentError(message, argument=("ending_epoch",))
        if frequency < 0 and frequency != EVERY_STEP:
            message = f"frequency is above 0, 0 (at the start and the end only) or -1 (every step); got {frequency}"
            raise ArgumentError(message, argument=("frequency",))
        return cls(start, limit, frequency, None, "step")

    @classmethod
    def from_range(cls, start: float, end: float, frequency: float = 1) -> PolicyWindow:
        """``starting_epoch``, ``ending_epoch`` (exclusive, -1 = open) and ``frequency``, in epochs."""
        _check_numbers(starting_epoch=start, ending_epoch=end, frequency=frequency)
        if start < 0:
            raise ArgumentError(f"starting_epoch must be 0 or more, got {start}", argument=("starting_epoch",))
        limit = math.inf if end == OPEN_END else end
        if limit <= start:
            raise ArgumentError(
                f"ending_epoch ({end}) must lie after starting_epoch ({start}); it is exclusive, -1 leaves it open",
                argument=("ending_epoch",),
            )
        if not 0 < frequency <= limit - start + _TOLERANCE:
            raise ArgumentError(
                f"frequency must be above 0 and at most ending_epoch - starting_epoch = {limit - start}, "
                f"got {frequency}",
                argument=("frequency",),
            )
        return cls(start, limit, frequency)

    @classmethod
    def from_arguments(
        cls,
        epochs: Sequence[int] | None = None,
        starting_epoch: float | None = None,
        ending_epoch: float | None = None,
        frequency: float | None = 1,
        trigger: Trigger | None = None,
    ) -> PolicyWindow:
        """Distiller's four arguments: either ``epochs``, or the other three. Raises :class:`ArgumentError`."""
        if trigger not in (None, *get_args(Trigger)):
            raise ArgumentError(f"trigger is 'epoch' or 'step', got {trigger!r}", argument=("trigger",))
        if epochs is not None:
            if trigger == "step":
                message = "a list of epochs has no steps: give starting_epoch, ending_epoch and frequency"
                raise ArgumentError(message, argument=("trigger",))
            if starting_epoch is not None or ending_epoch is not None:
                raise ArgumentError(
                    "give either epochs, or starting_epoch and ending_epoch, not both", argument=("epochs",)
                )
            return cls.from_epochs(epochs)
        if starting_epoch is None or ending_epoch is None or frequency is None:
            given = {"starting_epoch": starting_epoch, "ending_epoch": ending_epoch, "frequency": frequency}
            missing = [name for name, value in given.items() if value is None]
            raise ArgumentError(
                f"{' and '.join(missing)} missing: give epochs, or starting_epoch, ending_epoch and frequency",
                argument=(missing[0],),
            )
        make = cls.of_steps if trigger == "step" else cls.from_range
        return make(starting_epoch, ending_epoch, frequency)

    def __str__(self) -> str:
        if self.epochs is not None:
            return f"epochs {', '.join(map(str, self.epochs))}"
        end = "open end" if math.isinf(self.end) else f"{self.end:g}"
        if self.is_stepwise and self.frequency in (0, EVERY_STEP):
            return f"epochs {self.first:g} to {end}, {'every step' if self.frequency else 'once'}"
        return f"epochs {self.first:g} to {end}, every {self.frequency:g}"

    @property
    def first(self) -> float:
        """Where the window begins, in epochs from 0 (``start`` may be -1)."""
        return max(self.start, 0)

    @property
    def is_stepwise(self) -> bool:
        """Whether the window is looked at right before every optimizer step."""
        return self.trigger == "step"

    @property
    def is_fractional(self) -> bool:
        """Whether the window acts between epoch boundaries."""
        if self.is_stepwise:
            return True
        values = (self.start, self.frequency, 0 if math.isinf(self.end) else self.end)
        return self.epochs is None and any(v is not None and float(v) != int(v) for v in values)

    def active_epochs(self, until: int | None = None) -> list[int]:
        """The epochs of a whole window; an open one is listed up to ``until`` (exclusive, needed there)."""
        if self.epochs is not None:
            return list(self.epochs)
        stop = self.end if until is None else min(self.end, until)
        if math.isinf(stop):
            raise ArgumentError("an open window has no last epoch: say until which epoch to list it")
        if self.is_stepwise:
            return [epoch for epoch in range(math.floor(self.first), math.floor(stop) + 1) if self.is_active(epoch)]
        if self.is_fractional:
            return list(range(math.floor(self.start), math.ceil(stop)))
        return list(range(int(self.start), int(stop), int(self.frequency or 1)))

    def is_active(self, epoch: int) -> bool:
        """Whether the policy takes part in this epoch (for a fractional window: in some of its steps)."""
        if self.epochs is not None:
            return epoch in self.epochs
        if self.is_stepwise:
            return self.first < epoch + 1 and (epoch < self.end or epoch == self.first)
        if self.is_fractional:
            return self.start < epoch + 1 and epoch < self.end
        return self.start <= epoch < self.end and (epoch - int(self.start)) % int(self.frequency or 1) == 0

    def contains(self, position: TrainPosition) -> bool:
        """Whether a step lies inside the window (``start <= position < end``; whole windows ask :meth:`is_active`)."""
        if not self.is_fractional:
            return self.is_active(position.epoch)
        return self.start - _TOLERANCE <= position.fraction < self.end - _TOLERANCE

    def is_over(self, position: TrainPosition) -> bool:
        """Whether ``position`` lies at or after the end."""
        return position.fraction >= self.end - _TOLERANCE

    def has_begun(self, position: TrainPosition) -> bool:
        """Whether ``position`` lies at or after the start."""
        return position.fraction >= self.start - _TOLERANCE

    def is_due_after(self, last: float, position: TrainPosition) -> bool:
        """Whether a stepwise window that was last due at ``last`` (in epochs) is due again."""
        frequency = self.frequency or 0
        if frequency == EVERY_STEP:
            return True
        return frequency > 0 and position.fraction >= last + frequency - _TOLERANCE

    def planned(self, steps_per_epoch: float, *, until: float, limit: int = 10_000) -> list[float]:
        """The epochs at which a fractional window acts, its end included, when training has ``until`` epochs.

        >>> PolicyWindow.of_steps(0, 2, 0.3).planned(4, until=3)
        [0.0, 0.5, 1.0, 1.5, 2.0]
        >>> PolicyWindow.from_range(0, 2, 0.3).planned(4, until=3)
        [0.0, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0]

        At most ``limit`` of them; the end counts as reached when training stops there.
        """
        found: list[float] = []
        step = math.ceil(self.first * steps_per_epoch - _TOLERANCE)
        while len(found) < limit:
            at = step / steps_per_epoch
            if self.end <= min(at, until) + _TOLERANCE:
                return [*found, at]
            if at >= until - _TOLERANCE or (found and self.frequency == 0 and math.isinf(self.end)):
                return found
            found.append(at)
            step += 1
            if self.frequency != EVERY_STEP:
                wanted = self._due_next(at)
                step = max(step, math.ceil(min(wanted, self.end, until) * steps_per_epoch - _TOLERANCE))
        return found

    def _due_next(self, at: float) -> float:
        """When a window that acted ``at`` this epoch wants to act again."""
        if self.is_stepwise:
            return at + self.frequency if self.frequency else math.inf
        period = float(self.frequency or 1)
        return self.start + (1 + math.floor((at - self.start) / period + _TOLERANCE)) * period

    def due_count(self, position: TrainPosition) -> int:
        """How many times a fractional window has become due at ``position``: 1 at its start, +1 each ``frequency``."""
        if position.fraction < self.start - _TOLERANCE:
            return 0
        return 1 + math.floor((position.fraction - self.start) / float(self.frequency or 1) + _TOLERANCE)

    @property
    def last_epoch(self) -> int | None:
        """The last epoch that really is active (0-4/3 ends in 3), None for an open window."""
        if self.epochs is not None:
            return self.epochs[-1]
        if math.isinf(self.end):
            return None
        if self.is_fractional:
            return math.ceil(max(self.end, 1)) - 1
        start, frequency = int(self.start), int(self.frequency or 1)
        return start + (int(self.end) - 1 - start) // frequency * frequency

    def is_last(self, epoch: int) -> bool:
        """Whether ``epoch`` is the last active one, from the real list rather than ``end - 1``."""
        return epoch == self.last_epoch

    def progress(self, position: TrainPosition, *, from_minus_one: bool = False) -> float:
        """How much of the window has passed, 0 at its first action and exactly 1 at its last; open windows stay at 0.

        Whole windows count epochs: ``(epoch - first) / (last - first)`` with the real last active epoch. A window of
        one epoch is complete at once. Fractional windows reach 1 at ``end``. At a position of infinity (one-shot use)
        everything is complete. ``from_minus_one``: a start of -1 is epoch -1, as SparseML computes it.
        """
        if math.isinf(position.fraction):
            return 1.0
        if math.isinf(self.end):
            return 0.0
        if self.is_fractional:
            first = self.start if from_minus_one else self.first
            value = 1.0 if self.end == first else (position.fraction - first) / (self.end - first)
        else:
            first, last = int(self.start), self.last_epoch
            value = 1.0 if last is None or last == first else (position.epoch - first) / (last - first)
        return min(max(value, 0.0), 1.0)

    def meta(self, epoch: int | None = None) -> dict[str, Any]:
        """Distiller's ``meta`` dictionary; ``frequency`` is None for a list of epochs."""
        end = OPEN_END if math.isinf(self.end) else self.end
        meta: dict[str, Any] = {"starting_epoch": self.start, "ending_epoch": end, "frequency": self.frequency}
        if epoch is not None:
            meta["current_epoch"] = epoch
        return meta


def _check_numbers(**named: Any) -> None:
    for name, value in named.items():
        if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
            raise ArgumentError(f"{name} must be a number of epochs, got {value!r}", argument=(name,))
