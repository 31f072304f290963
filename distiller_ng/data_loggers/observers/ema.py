"""The range of a typical batch (layer 2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from distiller_ng.data_loggers.observers.base import OBSERVERS, Observer
from distiller_ng.errors import ArgumentError

__all__ = ["EMAObserver"]


@OBSERVERS.register("ema")
class EMAObserver(Observer):
    """Exponential moving averages of each batch's smallest and largest value, corrected for their start at 0.

    ``decay``, in (0, 1), is the weight of the past: ``ema = decay * ema + (1 - decay) * x``, and the average of ``t``
    batches is ``ema / (1 - decay ** t)``. With 0.999 it is nearly the plain mean over a few hundred batches.

    Source: B. Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
    Inference", https://arxiv.org/abs/1712.05877; the correction as in Adam. Batches with the maxima 1 and 3 give 2.333
    with ``decay`` 0.5. Raises :class:`ArgumentError` for another ``decay``. ::

        observer_named("ema", {"decay": 0.9})
    """

    _biased: Tensor

    def __init__(self, *, decay: float = 0.999) -> None:
        if isinstance(decay, bool) or not isinstance(decay, int | float) or not 0.0 < decay < 1.0:
            raise ArgumentError(f"decay must be between 0 and 1, got {decay!r}", argument=("decay",))
        self.decay = float(decay)
        super().__init__()

    def observe(self, values: Tensor, low: Tensor, high: Tensor) -> None:
        """Move both averages."""
        ends = torch.stack([low, high]) * (1 - self.decay)
        self._biased = ends if self.batches == 1 else ends + self._biased * self.decay

    def chosen_range(self) -> tuple[Tensor, Tensor]:
        """The corrected averages."""
        low, high = self._biased / (1 - self.decay**self.batches)
        return low, high

    def merge(self, other: EMAObserver) -> None:
        """As if the other's batches had come before: its average counts with its number of batches."""
        self._biased = self._biased + other._biased.to(self._biased) * self.decay**self.batches

    def state(self) -> dict[str, Any]:
        """The averages before correction."""
        return {"biased": self._biased}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`state`."""
        self._biased = state["biased"]
