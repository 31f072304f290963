"""The interface of every data logger (layer 2).

A logger is told what happened and writes it where it wants; it decides nothing about training. Statistics arrive as
``(group, {name: value})``, for example ``("Performance/Training/", {"Loss": 0.3, "LR": 0.1})``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from torch import Tensor, nn

__all__ = ["DataLogger", "NullLogger", "StatsGroup", "named_buffers_called", "plain_number"]

StatsGroup: TypeAlias = tuple[str, Mapping[str, Any]]


class DataLogger:
    """What a logger may be told. Every method does nothing unless a subclass overrides it.

    ``epoch`` is absolute and 0-based, -1 outside training (a test run); ``completed`` of ``total`` steps of the epoch
    are done and ``freq`` is how often, in steps, the caller logs.
    """

    def log_training_progress(self, stats_dict: StatsGroup, epoch: int, completed: int, total: int, freq: int) -> None:
        """A group of statistics at a step."""

    def log_activation_statistic(
        self, phase: str, stat_name: str, activation_stats: Mapping[str, Any], epoch: int
    ) -> None:
        """One statistic of the activations of several layers, ``{layer: value}``, in a phase such as ``"train"``."""

    def log_weights_sparsity(self, model: nn.Module, epoch: int) -> None:
        """How sparse each weight of the model is now."""

    def log_weights_distribution(self, named_params: Iterable[tuple[str, Tensor]] | None, steps_completed: int) -> None:
        """The values of parameters, to be drawn as histograms."""

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
        """The values of all buffers (or parameters) with these names, wherever in the model they are."""

    def close(self) -> None:
        """Finish writing; the logger is not used afterwards."""


class NullLogger(DataLogger):
    """Writes nothing."""


def named_buffers_called(model: nn.Module, names: Sequence[str]) -> Iterator[tuple[str, str, Tensor]]:
    """``(module name, tensor name, tensor)`` of every buffer or parameter whose own name is among ``names``."""
    for module_name, module in model.named_modules():
        own = dict(module.named_buffers(recurse=False)) | dict(module.named_parameters(recurse=False))
        for name in names:
            if name in own:
                yield module_name, name, own[name].detach()


def plain_number(value: Any) -> Any:
    """A one-element tensor or numpy number as a Python number; everything else as it is."""
    item = getattr(value, "item", None)
    size = value.numel() if isinstance(value, Tensor) else getattr(value, "size", None)
    return item() if callable(item) and size == 1 else value
