"""What a search has measured so far, in memory and in a file from which it can go on (layer 4)."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from distiller_ng.automatic._search_space import SearchSpace
from distiller_ng.automatic.candidates import Candidates
from distiller_ng.errors import ArgumentError, DistillerError
from distiller_ng.names import canonical_name
from distiller_ng.ops.files import write_text_atomically
from distiller_ng.ops.scores import Scores, as_scores
from distiller_ng.reports.sensitivity.workers import gather, rank_and_world

__all__ = ["SearchRecord", "heading_of"]


def heading_of(candidates: Candidates, space: SearchSpace, importance: object) -> dict[str, Any]:
    """What must be the same for measurements to be of use again: the model, and what genomes mean."""
    return {
        "format": "distiller_ng search",
        "version": 1,
        "model": _fingerprint(candidates.model),
        "group": candidates.group,
        "importance": str(importance),
        "units": [[list(unit.names), unit.steps] for unit in space.units],
        "quantized": list(space.quantized),
    }


def _fingerprint(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        digest.update(f"{canonical_name(name)} {tensor.dtype} {tuple(tensor.shape)}".encode())
        wide = tensor.detach().cpu()
        wide = wide.float() if wide.is_floating_point() and wide.element_size() < 4 else wide
        digest.update(wide.contiguous().numpy().tobytes())
    return digest.hexdigest()[:32]


class SearchRecord:
    """``scores`` and ``latency`` by genome key, written to ``path`` after every measurement.

    In a process group every rank writes a file of its own beside it, and :meth:`share` makes one of them. Raises
    :class:`ArgumentError` for a file that holds something else, or another model's search.
    """

    def __init__(self, path: str | os.PathLike[str] | None, heading: Mapping[str, Any]) -> None:
        self.rank, self.world = rank_and_world()
        self._base = None if path is None else Path(path)
        self._heading = dict(heading)
        self.scores: dict[str, Scores] = {}
        self.latency: dict[str, float] = {}
        if self._base is not None:
            rest = sorted(self._base.parent.glob(f"{self._base.name}.rank*"))  # of ranks that were interrupted
            for file in (self._base, *rest):
                if file.exists():
                    self._read(file)
        self.share()

    @property
    def _own(self) -> Path | None:
        if self._base is None or self.world == 1:
            return self._base
        return self._base.with_name(f"{self._base.name}.rank{self.rank}")

    def add(self, key: str, scores: Scores) -> None:
        """Note what an evaluation gave."""
        self.scores[key] = scores
        self._write(self._own)

    def add_latency(self, key: str, share: float) -> None:
        """Note a latency; the first rank writes it."""
        self.latency[key] = share
        if self.rank == 0:
            self._write(self._own)

    def share(self) -> None:
        """Every rank gets what the others measured; the file of all is written."""
        if self.world == 1:
            return
        self.scores, self.latency = gather(self.scores), gather(self.latency)
        if self._base is not None and (self.scores or self.latency):
            if self.rank == 0:
                self._write(self._base)
            gather({self.rank: None})  # all wait until it is there
            if self._own is not None:
                self._own.unlink(missing_ok=True)

    def _write(self, path: Path | None) -> None:
        if path is not None:
            measured = {"scores": {key: list(scores) for key, scores in self.scores.items()}, "latency": self.latency}
            write_text_atomically(path, json.dumps({**self._heading, **measured}, indent=1))

    def _read(self, path: Path) -> None:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            heading = {key: content[key] for key in self._heading}
            scores = {str(key): as_scores(value) for key, value in content["scores"].items()}
            latency = {str(key): float(value) for key, value in content["latency"].items()}
        except (ValueError, TypeError, KeyError, AttributeError, DistillerError) as error:
            message = f"{path} holds no search, or a damaged one: remove it, or name another"
            raise ArgumentError(message, argument=("results_file",)) from error
        other = next((key for key, value in self._heading.items() if heading[key] != value), None)
        if other is not None:
            what = {"model": "other weights", "units": "other parameters or levels", "quantized": "other parameters"}
            of = what.get(other, f"another {other} ({heading[other]!r}, asked for is {self._heading[other]!r})")
            message = f"{path} holds a search of {of}: remove it, or name another"
            raise ArgumentError(message, argument=("results_file",))
        self.scores.update(scores)
        self.latency.update(latency)
