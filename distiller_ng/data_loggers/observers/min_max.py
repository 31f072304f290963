"""The full range of everything seen (layer 2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from distiller_ng.data_loggers.observers.base import OBSERVERS, Observer

__all__ = ["MinMaxObserver"]


@OBSERVERS.register("min_max")
class MinMaxObserver(Observer):
    """From the smallest to the largest value; a single outlier makes all steps coarser.

    The batches ``[0., 3.]`` and ``[-1., 2.]`` give ``(-1.0, 3.0)``. Takes no arguments.
    """

    _low: Tensor
    _high: Tensor

    def observe(self, values: Tensor, low: Tensor, high: Tensor) -> None:
        """Widen."""
        first = self.batches == 1
        self._low = low if first else torch.minimum(self._low, low)
        self._high = high if first else torch.maximum(self._high, high)

    def chosen_range(self) -> tuple[Tensor, Tensor]:
        """The extremes."""
        return self._low, self._high

    def merge(self, other: MinMaxObserver) -> None:
        """The extremes of both."""
        self._low = torch.minimum(self._low, other._low.to(self._low.device))
        self._high = torch.maximum(self._high, other._high.to(self._high.device))

    def state(self) -> dict[str, Any]:
        """The extremes."""
        return {"low": self._low, "high": self._high}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`state`."""
        self._low, self._high = state["low"], state["high"]
