"""A record for every sample that passes through a module (layer 2)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from distiller_ng.data_loggers._batch_summary import rows_of
from distiller_ng.data_loggers._watching import main_output
from distiller_ng.data_loggers.activation_stats import ActivationStatsCollector
from distiller_ng.data_loggers.summary_stats import DEFAULT_ACTIVATIONS, save_csv
from distiller_ng.ops.table import Cell, Table, size_to_str

__all__ = ["RecordsActivationStatsCollector"]

_STATISTICS = ("min", "max", "mean", "std", "l2")


class RecordsActivationStatsCollector(ActivationStatsCollector):
    """Minimum, maximum, mean, standard deviation and L2 norm of each module's output, sample by sample.

    :meth:`value` holds lists with one entry a sample in the order they came, and the shape of the first batch::

        {"relu1": {"min": [0.0, 0.0], "max": [3.1, 2.7], "mean": [...], "std": [...], "l2": [...],
                   "shape": "(2, 8, 32, 32)"}}

    ``std`` divides by the number of elements less one, and is 0 for one element. The sample ``[3., 4.]`` gives min 3,
    max 4, mean 3.5, std 0.707 and l2 5. Records stay on the tensors' device until :meth:`value`.
    """

    def __init__(self, model: nn.Module, classes: Sequence[type[nn.Module]] | None = DEFAULT_ACTIVATIONS) -> None:
        super().__init__(model, "statistics_records", classes)
        self._records: dict[str, list[Tensor]] = {}  # [5, samples] a batch
        self._shapes: dict[str, str] = {}

    def after(self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Record every sample of the output."""
        tensor = main_output(module, output)
        if tensor is None:
            return
        self._shapes.setdefault(name, size_to_str(tensor.shape))
        self._records.setdefault(name, []).append(_records_of(tensor))

    def value(self) -> dict[str, dict[str, Any]]:
        """The records of each module."""
        found = {}
        for name, batches in self._records.items():
            columns = torch.cat([batch.to(batches[0].device) for batch in batches], dim=1).tolist()
            found[name] = {**dict(zip(_STATISTICS, columns)), "shape": self._shapes[name]}
        return self.in_model_order(found)

    def reset(self) -> None:
        """Forget what was collected."""
        self._records.clear()
        self._shapes.clear()

    def table(self) -> Table:
        """One row a module and sample."""
        rows: list[tuple[Cell, ...]] = []
        for name, record in self.value().items():
            columns = [record[statistic] for statistic in _STATISTICS]
            rows += [(name, sample, *numbers) for sample, numbers in enumerate(zip(*columns))]
        return Table("Activations of each sample", ("Layer", "Sample", *_STATISTICS), tuple(rows))

    def save(self, fname: str | os.PathLike[str]) -> str:
        """Write :meth:`table` as comma-separated values, with the ending ``.csv``; the file's name."""
        return save_csv(self.table(), fname)


def _records_of(tensor: Tensor) -> Tensor:
    """``[5, samples]``."""
    rows, samples = rows_of(tensor)
    rows = rows.reshape(samples, -1) if tensor.dim() == 1 else rows  # [N]: a sample is one value
    elements = rows.shape[1]
    mean = rows.mean(dim=1)
    spread = torch.linalg.vector_norm(rows - mean[:, None], 2, dim=1) / max(elements - 1, 1) ** 0.5
    columns = [rows.amin(dim=1), rows.amax(dim=1), mean, spread, torch.linalg.vector_norm(rows, 2, dim=1)]
    return torch.stack(columns).to(torch.float64 if rows.dtype == torch.float64 else torch.float32)
