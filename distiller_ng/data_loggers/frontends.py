"""Tell several loggers the same thing, under Distiller's function names (layer 2)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, nn

from distiller_ng.data_loggers.base import DataLogger, StatsGroup

__all__ = ["log_activation_statistics", "log_model_buffers", "log_training_progress", "log_weights_sparsity"]


def log_training_progress(
    stats_dict: StatsGroup,
    params_dict: Iterable[tuple[str, Tensor]] | None,
    epoch: int,
    steps_completed: int,
    total_steps: int,
    log_freq: int,
    loggers: Iterable[DataLogger],
) -> None:
    """Log a group of statistics, and the distribution of ``params_dict`` (as ``model.named_parameters()``) if given.

    Example of ``stats_dict``: ``("Performance/Validation/", {"Loss": 0.31, "Top1": 91.2})``.
    """
    params = None if params_dict is None else list(params_dict)  # an iterator would be empty for the second logger
    for logger in loggers:
        logger.log_training_progress(stats_dict, epoch, steps_completed, total_steps, freq=log_freq)
        logger.log_weights_distribution(params, steps_completed)


def log_activation_statistics(epoch: int, phase: str, loggers: Iterable[DataLogger], collector: Any) -> None:
    """Log the statistic of an activations collector (``stat_name`` and ``value()``); None logs nothing."""
    if collector is None:
        return
    for logger in loggers:
        logger.log_activation_statistic(phase, collector.stat_name, collector.value(), epoch)


def log_weights_sparsity(model: nn.Module, epoch: int, loggers: Iterable[DataLogger]) -> None:
    """Log how sparse the model's weights are."""
    for logger in loggers:
        logger.log_weights_sparsity(model, epoch)


def log_model_buffers(
    model: nn.Module,
    buffer_names: Sequence[str],
    tag_prefix: str,
    epoch: int,
    steps_completed: int,
    total_steps: int,
    log_freq: int,
    loggers: Iterable[DataLogger],
) -> None:
    """Log the values of all buffers with these names, wherever in the model they are."""
    for logger in loggers:
        logger.log_model_buffers(model, buffer_names, tag_prefix, epoch, steps_completed, total_steps, log_freq)
