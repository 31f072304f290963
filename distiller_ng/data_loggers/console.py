"""Progress as lines of a Python logger, in the form Distiller's users grep for (layer 2)."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from distiller_ng.data_loggers.base import DataLogger, StatsGroup, named_buffers_called, plain_number
from distiller_ng.ops.table import Table, pretty_int
from distiller_ng.ops.weights import weights_sparsity_tbl_summary

__all__ = ["PythonLogger"]


class PythonLogger(DataLogger):
    """Writes to ``logger`` at level INFO.

    A line of progress reads ``Epoch: [3][   40/  200]    Loss 0.301000    LR 0.100000``; outside training (epoch -1)
    it starts with ``Test:``.
    """

    def __init__(self, logger: logging.Logger) -> None:
        self.pylogger = logger

    def log_training_progress(self, stats_dict: StatsGroup, epoch: int, completed: int, total: int, freq: int) -> None:
        """One line with every statistic."""
        where = f"Epoch: [{epoch}]" if epoch > -1 else "Test: "
        parts = [f"{where}[{completed:5d}/{int(total):5d}]"]
        parts += [f"{name} {_text(plain_number(value))}" for name, value in stats_dict[1].items()]
        self.pylogger.info("%s", "    ".join(parts))

    def log_activation_statistic(
        self, phase: str, stat_name: str, activation_stats: Mapping[str, Any], epoch: int
    ) -> None:
        """A table of the layers."""
        rows = tuple((layer, _cell(value)) for layer, value in activation_stats.items())
        self.pylogger.info("%s", Table(f"Activations ({phase}):", ("Layer", stat_name), rows, decimals=2))

    def log_weights_sparsity(self, model: nn.Module, epoch: int) -> None:
        """The sparsity table and a line ``Total sparsity: 49.98``."""
        table, total = weights_sparsity_tbl_summary(model, return_total_sparsity=True)
        self.pylogger.info("\n%s", table)
        self.pylogger.info("Total sparsity: %0.2f\n", total)

    def log_model_buffers(
        self,
        model: nn.Module,
        buffer_names: Sequence[str],
        tag_prefix: str,
        epoch: int,
        completed: int,
        total: int,
        freq: int,
    ) -> None:
        """One table for each buffer name."""
        for wanted in buffer_names:
            found = named_buffers_called(model, [wanted])
            rows = tuple((module, _cell(tensor)) for module, _, tensor in found)
            if rows:
                title = f"{tag_prefix} {wanted} (epoch {epoch}, step {completed}/{int(total)}):".strip()
                self.pylogger.info("%s", Table(title, ("Layer", wanted), rows))


def _text(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return pretty_int(value)
    return f"{value:.6f}" if isinstance(value, float) else str(value)


def _cell(value: Any) -> str | float | int:
    plain = plain_number(value)
    if isinstance(plain, Tensor):
        return ", ".join(f"{number:.4g}" for number in plain.flatten().tolist())
    return plain if isinstance(plain, int | float) else str(plain)
