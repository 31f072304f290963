"""Exact resume: the state of every random generator, and where a loop must continue (layer 1)."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["ResumePoint", "capture_rng", "loader_generators", "restore_rng"]


@dataclass(frozen=True, slots=True)
class ResumePoint:
    """What a loop that calls the hooks itself must restore after ``load_state_dict``.

    Continue in ``epoch`` with minibatch ``minibatch_id`` (0 = a fresh epoch) of ``minibatches_per_epoch`` (0 = not
    known yet), drawn in the order the interrupted epoch had, with the generators set by :meth:`restore_rng` and the
    loader's own ones set to ``generators``.
    ``scheduler.epochs()`` and ``scheduler.minibatches(loader)`` do all of this themselves.
    """

    epoch: int
    minibatch_id: int
    minibatches_per_epoch: int
    rng: Mapping[str, Any]
    generators: Mapping[str, Tensor]

    def restore_rng(self) -> None:
        """Set Python's, NumPy's and torch's generators to where they were when the state was saved."""
        restore_rng(self.rng)

    def __str__(self) -> str:
        total = f" of {self.minibatches_per_epoch}" if self.minibatches_per_epoch else ""
        return f"epoch {self.epoch}, minibatch {self.minibatch_id}{total}"


def capture_rng() -> dict[str, Any]:
    """The state of Python's, NumPy's, torch's and every CUDA generator, as tensors and plain values."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "python": {"version": version, "words": torch.tensor(words, dtype=torch.int64), "gauss": gauss},
        "numpy": {
            "name": str(name),
            "keys": torch.from_numpy(np.asarray(keys).astype(np.int64)),
            "position": int(position),
            "has_gauss": int(has_gauss),
            "cached": float(cached),
        },
        "torch": torch.get_rng_state(),
        "cuda": list(torch.cuda.get_rng_state_all()) if torch.cuda.is_available() else [],
    }


def restore_rng(state: Mapping[str, Any]) -> None:
    """Set every generator that :func:`capture_rng` saved; CUDA ones only as far as there are devices."""
    python, numpy = state["python"], state["numpy"]
    random.setstate((python["version"], tuple(python["words"].tolist()), python["gauss"]))
    keys = numpy["keys"].numpy().astype(np.uint32)
    np.random.set_state((numpy["name"], keys, numpy["position"], numpy["has_gauss"], numpy["cached"]))
    torch.set_rng_state(state["torch"].cpu())
    for device, cuda in enumerate(state["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(cuda.cpu(), device)


def loader_generators(loader: Any) -> dict[str, torch.Generator]:
    """A loader's and its sampler's own generators, each once."""
    found = {"loader": getattr(loader, "generator", None)}
    sampler = getattr(getattr(loader, "sampler", None), "generator", None)
    if sampler is not found["loader"]:
        found["sampler"] = sampler
    return {name: generator for name, generator in found.items() if generator is not None}
