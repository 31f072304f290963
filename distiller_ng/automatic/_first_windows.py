"""When the parts of a first schedule act, for a number of epochs."""

from __future__ import annotations

import math
from dataclasses import dataclass

from distiller_ng.automatic._first_target import Technique
from distiller_ng.errors import ArgumentError

__all__ = ["Windows", "windows_for"]

_MANY = 30  # decisions: more of them make the steps no gentler
_FEW = 5  # epochs: below, windows are in fractions of epochs


@dataclass(frozen=True, slots=True)
class Windows:
    """Epochs from 0; ends are exclusive, as in a schedule. What a technique does not have is None.

    ``prune``: (start, end, frequency). ``thin``: the epoch in which filters are removed. ``quantize``: where rounding
    begins. ``freeze``: where ranges of activations and statistics of batch norms stop.
    """

    epochs: int
    prune: tuple[float, float, float] | None = None
    thin: int | None = None
    quantize: int | None = None
    freeze: int | None = None


def windows_for(technique: Technique, epochs: int) -> Windows:
    """The first tenth trains as before, pruning takes up to 60 % (50 % if rounding follows), the rest heals.

    20 epochs of "weights": pruned in epochs 2 to 11, one step an epoch, then 8 epochs of fine-tuning. 100 epochs:
    every second epoch from 10 to 58. Below 5 epochs windows are in fractions: 2 epochs are pruned from 0.2 to 1.2 in
    ten steps. Raises :class:`ArgumentError` for too few epochs.
    """
    if isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 1:
        raise ArgumentError(f"epochs is a whole number from 1, got {epochs!r}", argument=("epochs",))
    thins, rounds = technique.group == "filter", technique.bits != 32
    if epochs < 2 and (thins or (rounds and technique.group is not None)):
        what = "filters are removed between two epochs" if thins else "rounding begins after pruning"
        raise ArgumentError(f"{what}: give 2 epochs or more, got {epochs}", argument=("epochs",))
    prune = None
    until = 0.5 if rounds else 0.6
    if technique.group is not None:
        prune = _fractions(epochs, until, thins or rounds) if epochs < _FEW else _whole(epochs, until)
    after = math.ceil(prune[1]) if prune else max(epochs // 4, 0)
    quantize = min(max(after, int(0.7 * epochs) if prune else 0), epochs - 1) if rounds else None
    freeze = None if quantize is None else quantize + math.ceil(0.75 * (epochs - quantize))
    return Windows(
        epochs, prune, after if thins else None, quantize, freeze if freeze is not None and freeze < epochs else None
    )


def _whole(epochs: int, until: float) -> tuple[float, float, float]:
    start, end = max(1, round(0.1 * epochs)), max(2, round(until * epochs))
    every = math.ceil((end - start) / _MANY)
    end = start + (end - 1 - start) // every * every + 1  # the last decision is the final level
    return start, end, every


def _fractions(epochs: int, until: float, stops: bool) -> tuple[float, float, float]:
    """Ten steps; with ``stops`` they end where an epoch does."""
    start = round(0.1 * epochs, 2)
    end = float(max(1, round(until * epochs))) if stops else round(until * epochs, 2)
    end = min(end, epochs - 1.0) if stops else end
    return start, end, round((end - start) / 10, 3)
