"""The collectors that the application's ``--act-stats`` asks for (layer 2)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from distiller_ng.data_loggers.activation_stats import ActivationStatsCollector
from distiller_ng.data_loggers.records_stats import RecordsActivationStatsCollector
from distiller_ng.data_loggers.summary_stats import SummaryActivationStatsCollector
from distiller_ng.errors import ArgumentError, did_you_mean
from distiller_ng.ops.statistics import (
    activation_channels_apoz,
    activation_channels_l1,
    activation_channels_means,
)

__all__ = ["PHASES", "CollectorSet", "create_activation_stats_collectors", "save_collectors_data"]

PHASES = ("train", "valid", "test")


class CollectorSet(dict[str, ActivationStatsCollector]):
    """Collectors by name; a name that is missing is None, so that code need not know which were asked for."""

    def __missing__(self, key: str) -> None:
        return None


def create_activation_stats_collectors(model: nn.Module, *phases: str) -> dict[str, CollectorSet]:
    """``{"train": {...}, "valid": {...}, "test": {...}}``, with collectors only in the phases that are named.

    They are, by name: ``sparsity_ofm`` (percentage of zeros in each ReLU's output), ``l1_channels``, ``apoz_channels``
    and ``mean_channels`` (one value a channel, see :mod:`distiller_ng.ops.statistics`) and ``records`` (each sample of
    each convolution's output). ``create_activation_stats_collectors(model, "valid")["train"]["sparsity_ofm"]`` is None.

    Raises :class:`ArgumentError` for another phase.
    """
    for phase in phases:
        if phase not in PHASES:
            raise ArgumentError(f"unknown phase {phase!r}. {did_you_mean(str(phase), PHASES)}", argument=("phases",))
    return {phase: _collectors(model) if phase in phases else CollectorSet() for phase in PHASES}


def save_collectors_data(
    collectors: Mapping[str, ActivationStatsCollector], directory: str | os.PathLike[str]
) -> list[str]:
    """Write what each collector has into ``directory``, under its name, and reset it; the files' names."""
    written = []
    for name, collector in collectors.items():
        if collector.value():
            written.append(collector.save(Path(directory) / name))
        collector.reset()
    return written


def _collectors(model: nn.Module) -> CollectorSet:
    found = CollectorSet()
    found["sparsity_ofm"] = SummaryActivationStatsCollector(model, "sparsity_ofm", _percentage_of_zeros)
    found["l1_channels"] = SummaryActivationStatsCollector(model, "l1_channels", activation_channels_l1)
    found["apoz_channels"] = SummaryActivationStatsCollector(model, "apoz_channels", activation_channels_apoz)
    found["mean_channels"] = SummaryActivationStatsCollector(model, "mean_channels", activation_channels_means)
    found["records"] = RecordsActivationStatsCollector(model, [nn.Conv2d])
    return found


def _percentage_of_zeros(activation: Tensor) -> Tensor:
    return 100 * (activation == 0).to(torch.float32).mean()
