"""Progress and sparsity as CSV files (layer 2)."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import nn

from distiller_ng.data_loggers.base import DataLogger, StatsGroup, plain_number
from distiller_ng.ops.sparsity import count_nonzero
from distiller_ng.ops.table import Table, size_to_str
from distiller_ng.ops.weights import counted_weights

__all__ = ["CsvLogger"]

_TRAINING_COLUMNS = ("group", "epoch", "completed", "total")
_SPARSITY_COLUMNS = ("parameter", "shape", "volume", "sparse volume", "sparsity level")


class CsvLogger(DataLogger):
    """Writes ``[<fname_prefix>_]weights_sparsity.csv`` and ``[<fname_prefix>_]training.csv`` in the folder ``logdir``.

    ``weights_sparsity.csv`` holds the latest state, one row a weight: its number of values, how many are not zero
    (``sparse volume``) and the percentage of zeros (``sparsity level``). ``training.csv`` grows by one row a report;
    a statistic seen for the first time adds a column. An existing ``training.csv`` is continued, for resumed runs.
    """

    def __init__(self, fname_prefix: str = "", logdir: str | os.PathLike[str] = "") -> None:
        self.fname_prefix = fname_prefix
        self.logdir = Path(logdir)
        self._columns: tuple[str, ...] | None = None

    def get_fname(self, postfix: str) -> Path:
        """The path of one of the files: ``get_fname("training")`` -> ``logdir/<prefix>_training.csv``."""
        return self.logdir / (f"{self.fname_prefix}_{postfix}.csv" if self.fname_prefix else f"{postfix}.csv")

    def log_weights_sparsity(self, model: nn.Module, epoch: int) -> None:
        """Replace ``weights_sparsity.csv``."""
        rows = []
        for name, weight in counted_weights(model):
            volume, nonzero = weight.numel(), count_nonzero(weight)
            level = 100.0 * (volume - nonzero) / volume if volume else 0.0
            rows.append((name, size_to_str(weight.shape), volume, nonzero, level))
        Table("", _SPARSITY_COLUMNS, tuple(rows)).to_csv(self.get_fname("weights_sparsity"))

    def log_training_progress(self, stats_dict: StatsGroup, epoch: int, completed: int, total: int, freq: int) -> None:
        """Add a row to ``training.csv``."""
        group, stats = stats_dict
        row = {"group": group.strip("/"), "epoch": epoch, "completed": completed, "total": int(total)}
        row |= {name: plain_number(value) for name, value in stats.items()}
        path = self.get_fname("training")
        columns = self._known_columns(path)
        new = [name for name in row if name not in columns]
        if new or not path.is_file():
            columns = self._widen(path, (*columns, *new))
        with open(path, "a", encoding="utf-8", newline="") as file:
            csv.DictWriter(file, columns, restval="", lineterminator="\n").writerow(row)

    def _known_columns(self, path: Path) -> tuple[str, ...]:
        if self._columns is None:
            self._columns = _TRAINING_COLUMNS
            if path.is_file():
                with open(path, encoding="utf-8", newline="") as file:
                    self._columns = tuple(next(csv.reader(file), _TRAINING_COLUMNS))
        return self._columns

    def _widen(self, path: Path, columns: tuple[str, ...]) -> tuple[str, ...]:
        """Rewrite the file with more columns; older rows are empty there."""
        rows: Iterable[dict[str, Any]] = []
        if path.is_file():
            with open(path, encoding="utf-8", newline="") as file:
                rows = list(csv.DictReader(file))
        Table("", columns, tuple(tuple(row.get(name, "") for name in columns) for row in rows)).to_csv(path)
        self._columns = columns
        return columns
