"""Collecting for the length of a ``with`` block (layer 2)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

from torch import nn

from distiller_ng.data_loggers.activation_stats import ActivationStatsCollector

__all__ = ["collector_context", "collectors_context"]

C = TypeVar("C", bound="ActivationStatsCollector | None")
D = TypeVar("D", bound="Mapping[str, ActivationStatsCollector | None]")


@contextmanager
def collector_context(collector: C, modules_list: Iterable[str | nn.Module] | None = None) -> Iterator[C]:
    """Collect while the block runs the model, from all modules or those of ``modules_list``; None collects nothing.

    The model is left as it was even when the block raises. Raises what the collector's ``start`` and ``stop`` raise::

        with collector_context(QuantCalibrationStatsCollector(model)) as collector:
            evaluate(model)
        collector.save("quantization_stats.yaml")
    """
    if collector is None:
        yield collector
        return
    try:
        collector.start(modules_list)
        yield collector
        collector.stop()
    finally:
        collector.detach()


@contextmanager
def collectors_context(collectors_dict: D) -> Iterator[D]:
    """:func:`collector_context` for all collectors of a dictionary, which the block gets back."""
    active = [collector for collector in collectors_dict.values() if collector is not None]
    try:
        for collector in active:
            collector.start()
        yield collectors_dict
        for collector in active:
            collector.stop()
    finally:
        for collector in active:
            collector.detach()
