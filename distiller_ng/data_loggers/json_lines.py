"""Every report as one JSON object a line, for programs to read (layer 2)."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from distiller_ng.data_loggers.base import DataLogger, StatsGroup, named_buffers_called, plain_number
from distiller_ng.ops.sparsity import count_nonzero
from distiller_ng.ops.weights import counted_weights

__all__ = ["JsonLinesLogger"]


class JsonLinesLogger(DataLogger):
    """Appends to the file ``path``; each line is complete as soon as it is written.

    A report of progress reads ``{"event": "training", "group": "Performance/Training", "epoch": 3, "completed": 40,
    "total": 200, "metrics": {"Loss": 0.301}}``. Sparsities are fractions of zeros, 0 to 1. NaN and infinity, which
    JSON does not have, become null.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def log(self, event: str, fields: Mapping[str, Any]) -> None:
        """Append one line ``{"event": event, **fields}``."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps({"event": event} | {name: _plain(value) for name, value in fields.items()}, allow_nan=False)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(line + "\n")

    def log_training_progress(self, stats_dict: StatsGroup, epoch: int, completed: int, total: int, freq: int) -> None:
        """A line of event ``training`` (``test`` when epoch is -1)."""
        group, stats = stats_dict
        where = {"group": group.strip("/"), "epoch": epoch, "completed": completed, "total": int(total)}
        self.log("training" if epoch > -1 else "test", where | {"metrics": stats})

    def log_activation_statistic(
        self, phase: str, stat_name: str, activation_stats: Mapping[str, Any], epoch: int
    ) -> None:
        """A line of event ``activations``."""
        self.log("activations", {"phase": phase, "statistic": stat_name, "epoch": epoch, "layers": activation_stats})

    def log_weights_sparsity(self, model: nn.Module, epoch: int) -> None:
        """A line of event ``weights_sparsity``: the fraction of zeros of each weight and of all together."""
        counts = {name: (weight.numel(), count_nonzero(weight)) for name, weight in counted_weights(model)}
        total = sum(volume for volume, _ in counts.values())
        zeros = total - sum(nonzero for _, nonzero in counts.values())
        each = {name: 1 - nonzero / volume if volume else 0.0 for name, (volume, nonzero) in counts.items()}
        total_sparsity = zeros / total if total else 0.0
        self.log("weights_sparsity", {"epoch": epoch, "total_sparsity": total_sparsity, "parameters": each})

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
        """A line of event ``buffers``."""
        values = {
            f"{module}.{name}" if module else name: t for module, name, t in named_buffers_called(model, buffer_names)
        }
        where = {"group": tag_prefix.strip("/"), "epoch": epoch, "completed": completed, "total": int(total)}
        self.log("buffers", where | {"values": values})


def _plain(value: Any) -> Any:
    """Only what JSON has: tensors become numbers or lists, other objects text."""
    value = plain_number(value)
    if isinstance(value, Tensor):
        return _plain(value.tolist())
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, str | int) else str(value)
