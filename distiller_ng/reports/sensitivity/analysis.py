"""Distiller's sensitivity analysis: in place, resumable, over processes and ranks (layer 4)."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from torch import Tensor, nn

from distiller_ng.errors import ArgumentError, DistillerError, listed
from distiller_ng.names import ParameterIndex, unwrap
from distiller_ng.ops.files import write_text_atomically
from distiller_ng.ops.scores import Scores, as_scores, told
from distiller_ng.reports.sensitivity import workers
from distiller_ng.reports.sensitivity.changes import check_group, check_level, is_measurable
from distiller_ng.reports.sensitivity.measuring import Cell, TestFunction, measure

__all__ = ["perform_sensitivity_analysis"]

logger = logging.getLogger(__name__)


def perform_sensitivity_analysis(
    model: nn.Module,
    net_params: str | Iterable[str],
    sparsities: Iterable[float],
    test_func: TestFunction,
    group: str = "element",
    *,
    results_file: str | os.PathLike[str] | None = None,
    processes: int = 1,
) -> dict[str, dict[float, Scores]]:
    """Measure the model with one parameter pruned (or rounded) at a time: ``{parameter: {level: (top1, top5, loss)}}``.

    ``net_params``: names, patterns or tokens; of what they match, parameters with two dimensions or more are measured.
    ``group``: ``element`` (lowest magnitudes), ``filter`` and ``channel`` (lowest mean magnitude along the first and
    second dimension), with ``sparsities`` in 0..1; or ``bits``, with whole numbers of bits in place of sparsities
    (symmetric, a scale for each output channel). Weights are changed in place and are back afterwards.

    ``results_file``: a JSON file that is written after every measurement and read before the first, so that an
    interrupted analysis goes on. ``processes``: that many measure at once (``test_func`` must be importable by name
    then). In an initialized ``torch.distributed`` group the ranks share the measurements, and all get all results.
    Progress with the remaining time goes to the log. Source: S. Han et al., https://arxiv.org/abs/1506.02626.

    A layer that keeps 90 % top-1 at a level of 0.8, while another falls to 20 %, can be pruned harder::

        found = perform_sensitivity_analysis(model, ["conv1.weight", "fc.weight"], [0.0, 0.5, 0.8], test)
        sensitivities_to_csv(found, "sensitivity.csv")

    Raises :class:`ArgumentError` (a ``ValueError``) for another group, levels that cannot be and a file of another
    model, :class:`TargetError` for names that match nothing.
    """
    group = check_group(group)
    levels = [check_level(level, group) for level in sparsities]
    bare = unwrap(model)
    index = ParameterIndex(bare)
    names = [name for name in index.select(net_params, argument=("net_params",)) if is_measurable(index[name])]
    if not names or not levels:
        what = "parameters with two dimensions or more" if not names else "levels"
        raise ArgumentError(f"there are no {what} to measure", argument=("net_params" if not names else "sparsities",))
    cells = [Cell(name, level) for name in names for level in dict.fromkeys(levels)]
    record = _Record(results_file, group, {name: _fingerprint(index[name]) for name in names})
    rank, world = workers.rank_and_world()
    mine = [cell for number, cell in enumerate(cells) if number % world == rank and cell not in record.found]
    measured = (
        workers.measure_in_processes(bare, mine, group, test_func, processes)
        if processes > 1
        else measure(bare, mine, group, test_func)
    )
    _collect(record, measured, len(mine))
    found = workers.gather(record.found)
    record.finish(found)
    return {name: {cell.level: found[cell] for cell in cells if cell.name == name} for name in names}


def _collect(record: _Record, measured: Iterator[tuple[Cell, Scores]], total: int) -> None:
    began = time.monotonic()
    for done, (cell, scores) in enumerate(measured, start=1):
        record.add(cell, scores)
        left = (time.monotonic() - began) / done * (total - done)
        line = "sensitivity %d/%d: %s at %g: %s (%.0f s left)"
        logger.info(line, done, total, cell.name, cell.level, told(scores), left)


def _fingerprint(parameter: Tensor) -> str:
    return hashlib.sha256(parameter.detach().cpu().float().contiguous().numpy().tobytes()).hexdigest()[:16]


class _Record:
    """What was measured so far, in memory and in a file."""

    def __init__(self, path: str | os.PathLike[str] | None, group: str, parameters: dict[str, str]) -> None:
        self.base = None if path is None else Path(path)
        self.path = self.base
        rank, world = workers.rank_and_world()
        if self.base is not None and world > 1:
            self.path = self.base.with_name(f"{self.base.name}.rank{rank}")
        self.heading = {"group": group, "parameters": parameters}
        self.found: dict[Cell, Scores] = {}
        for file in (self.base, self.path):
            if file is not None and file.exists():
                self._read(file)

    def _read(self, path: Path) -> None:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            group, parameters, cells = content["group"], content["parameters"], content["measured"]
            found = {Cell(str(name), float(level)): as_scores(scores) for name, level, scores in cells}
        except (ValueError, TypeError, KeyError, DistillerError) as error:
            message = f"{path} holds no sensitivities, or it is damaged: remove it, or name another"
            raise ArgumentError(message, argument=("results_file",)) from error
        if group != self.heading["group"]:
            message = f"{path} holds sensitivities of group {group!r}, asked for is {self.heading['group']!r}"
            raise ArgumentError(message, argument=("results_file",))
        mine: dict[str, str] = self.heading["parameters"]  # type: ignore[assignment]
        other = [name for name, mark in mine.items() if parameters.get(name, mark) != mark]
        if other:
            message = f"{path} was measured on other weights of {listed(other, limit=3)}: remove it, or name another"
            raise ArgumentError(message, argument=("results_file",))
        self.found.update(found)

    def add(self, cell: Cell, scores: Scores) -> None:
        """Note one measurement, in the file too."""
        self.found[cell] = scores
        self._write(self.path)

    def finish(self, found: dict[Cell, Scores]) -> None:
        """Take in what other ranks measured; the first rank writes the file of all."""
        self.found = found
        rank, world = workers.rank_and_world()
        if world > 1 and rank == 0:
            self._write(self.base)
        if world > 1 and self.path is not None:
            self.path.unlink(missing_ok=True)

    def _write(self, path: Path | None) -> None:
        if path is not None:
            measured = [[cell.name, cell.level, list(scores)] for cell, scores in self.found.items()]
            write_text_atomically(path, json.dumps({**self.heading, "measured": measured}, indent=1))
