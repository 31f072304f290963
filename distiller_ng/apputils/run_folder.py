"""The folder of one run: log, checkpoints, CSV, JSON lines, TensorBoard events and results (layer 5)."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from distiller_ng.apputils.run_results import RunResults
from distiller_ng.checkpoint import save_checkpoint
from distiller_ng.core.scheduler import CompressionScheduler
from distiller_ng.data_loggers import (
    CsvLogger,
    DataLogger,
    JsonLinesLogger,
    NullLogger,
    PythonLogger,
    TensorBoardLogger,
)
from distiller_ng.errors import ArgumentError
from distiller_ng.ops.files import write_text_atomically

__all__ = ["RunFolder", "RunState"]


@dataclass(frozen=True, slots=True)
class RunState:
    """What a checkpoint is made of."""

    arch: str
    model: nn.Module
    optimizer: Optimizer | None
    scheduler: CompressionScheduler
    schedule_text: str | None


class RunFolder:
    """Writes everything a run leaves behind, into ``path``.

    ``metrics.jsonl``, ``training.csv``, ``weights_sparsity.csv``, the checkpoints ``[name_]checkpoint.pth.tar`` and
    ``[name_]best.pth.tar``, ``schedule.yaml``, ``summary.json``, and TensorBoard's events where that is installed.
    Raises :class:`ArgumentError` when ``histograms`` are wanted without TensorBoard.
    """

    def __init__(self, path: Path, log: logging.Logger, *, name: str | None = None, histograms: bool = False) -> None:
        self.path, self.name = path, name
        if histograms and find_spec("tensorboard") is None:
            raise ArgumentError("--param-hist draws in TensorBoard: pip install 'distiller_ng[tensorboard]'")
        self.console: DataLogger = PythonLogger(log)
        self.tensorboard: DataLogger = TensorBoardLogger(path) if find_spec("tensorboard") else NullLogger()
        files: list[DataLogger] = [CsvLogger("", path), JsonLinesLogger(path / "metrics.jsonl")]
        self.loggers = [self.tensorboard, self.console, *files]

    def keep_schedule(self, text: str) -> None:
        """Keep a copy of the schedule the run uses."""
        write_text_atomically(self.path / "schedule.yaml", text)

    def save(self, state: RunState, epoch: int, *, extras: Mapping[str, Any], is_best: bool) -> None:
        """Write the checkpoint of a finished epoch, and the best one if it is that."""
        self._write(state, epoch, extras=extras, is_best=is_best, name=self.name)

    def save_final(self, state: RunState, epoch: int) -> None:
        """Write ``[name_]final_checkpoint.pth.tar``: the model after the schedule's last actions."""
        self._write(state, epoch, extras={}, is_best=False, name=f"{self.name}_final" if self.name else "final")

    def save_results(self, results: RunResults) -> None:
        """Write ``summary.json``."""
        results.save(self.path / "summary.json")

    def close(self) -> None:
        """Finish writing."""
        for one in self.loggers:
            one.close()

    def _write(
        self, state: RunState, epoch: int, *, extras: Mapping[str, Any], is_best: bool, name: str | None
    ) -> None:
        save_checkpoint(
            epoch,
            state.arch,
            state.model,
            state.optimizer,
            state.scheduler,
            extras,
            is_best,
            name,
            self.path,
            schedule_text=state.schedule_text,
        )
