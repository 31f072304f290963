"""Running means of vectors, one collection being made while the last one is in use (layer 2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distiller_ng.pruning._families import Floats

__all__ = ["Samples"]


class Samples:
    """Vectors by key, summed; what was collected counts once :meth:`end` is called.

    A vector of another length than before (channels were removed) begins the collection anew.
    """

    def __init__(self) -> None:
        self._finished: dict[str, tuple[Tensor, int]] = {}
        self._current: dict[str, tuple[Tensor, int]] | None = None

    def begin(self) -> None:
        """Start a new collection, or go on with one that is open."""
        if self._current is None:
            self._current = {}

    def end(self) -> None:
        """Close the collection; an empty one does not replace the last."""
        if self._current:
            self._finished = self._current
        self._current = None

    def add(self, vectors: Mapping[str, Tensor], weight: int = 1) -> None:
        """Add float64 vectors that stand for ``weight`` samples each; one that is not finite spoils none of them."""
        if self._current is None or not all(bool(torch.isfinite(v).all()) for v in vectors.values()):
            return
        if any(key in self._current and self._current[key][0].shape != v.shape for key, v in vectors.items()):
            self._current.clear()
        for key, vector in vectors.items():
            total, count = self._current.get(key, (torch.zeros_like(vector), 0))
            self._current[key] = (total + vector, count + weight)

    @property
    def count(self) -> int:
        """How many keys the finished collection has."""
        return len(self._finished)

    def mean(self, key: str, size: int) -> Floats | None:
        """The mean of the finished collection; None where it has none of that length."""
        total, count = self._finished.get(key, (torch.zeros(0), 0))
        return np.asarray((total / count).numpy(), np.float64) if total.numel() == size and count else None

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors."""
        return {"finished": _saved(self._finished), "current": None if self._current is None else _saved(self._current)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`state_dict`."""
        self._finished = _restored(state["finished"])
        self._current = None if state["current"] is None else _restored(state["current"])


def _saved(vectors: Mapping[str, tuple[Tensor, int]]) -> dict[str, Any]:
    return {key: {"total": total, "count": count} for key, (total, count) in vectors.items()}


def _restored(state: Mapping[str, Any]) -> dict[str, tuple[Tensor, int]]:
    return {key: (saved["total"].cpu(), int(saved["count"])) for key, saved in state.items()}
