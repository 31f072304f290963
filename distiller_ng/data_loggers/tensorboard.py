"""Progress, sparsity and weight histograms for TensorBoard (layer 2; needs the package ``tensorboard``)."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from distiller_ng.data_loggers.base import DataLogger, StatsGroup, named_buffers_called, plain_number
from distiller_ng.errors import ArgumentError
from distiller_ng.ops.sparsity import count_nonzero, norm_filters, sparsity, sparsity_2D
from distiller_ng.ops.weights import counted_weights

__all__ = ["TensorBoardLogger"]


class TensorBoardLogger(DataLogger):
    """Writes event files to the folder ``logdir``; look at them with ``tensorboard --logdir <logdir>``.

    Progress is drawn over steps, ``epoch * total + completed``; sparsities, in percent, over epochs. Histograms are
    drawn of parameters whose name contains one of ``logged_params``, and of their gradients if ``log_gradients``.

    Raises :class:`ArgumentError` when the package ``tensorboard`` is not installed.
    """

    def __init__(
        self,
        logdir: str | os.PathLike[str],
        *,
        logged_params: Sequence[str] = ("weight",),
        log_gradients: bool = False,
    ) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ArgumentError(
                "TensorBoardLogger needs the package tensorboard: pip install 'distiller_ng[tensorboard]'"
            ) from error
        self.logged_params = tuple(logged_params)
        self.log_gradients = log_gradients
        self.tblogger = SummaryWriter(str(logdir))

    def log_training_progress(self, stats_dict: StatsGroup, epoch: int, completed: int, total: int, freq: int) -> None:
        """One scalar a statistic, tagged ``<group><name>``; what is not a number is left out."""
        prefix, stats = stats_dict
        step = _step(epoch, completed, total)
        for name, value in stats.items():
            number = plain_number(value)
            if isinstance(number, int | float):
                self.tblogger.add_scalar(prefix + name, number, step)
        self.tblogger.flush()

    def log_activation_statistic(
        self, phase: str, stat_name: str, activation_stats: Mapping[str, Any], epoch: int
    ) -> None:
        """One scalar a layer, tagged ``<statistic>/activations/<phase>/<layer>``; of several channels their mean."""
        for layer, value in activation_stats.items():
            if isinstance(value, Mapping):
                continue  # records of single samples are no curve
            number = float(torch.as_tensor(value, dtype=torch.float32).mean())
            self.tblogger.add_scalar(f"{stat_name}/activations/{phase}/{layer}", number, epoch)
        self.tblogger.flush()

    def log_weights_sparsity(self, model: nn.Module, epoch: int) -> None:
        """Scalars ``sparsity/weights/<name>``, ``sparsity-2D/weights/<name>`` and ``sparsity/weights/total``."""
        total = nonzero = 0
        for name, weight in counted_weights(model):
            total += weight.numel()
            nonzero += count_nonzero(weight)
            self.tblogger.add_scalar(f"sparsity/weights/{name}", 100 * sparsity(weight), epoch)
            self.tblogger.add_scalar(f"sparsity-2D/weights/{name}", 100 * sparsity_2D(weight), epoch)
        self.tblogger.add_scalar("sparsity/weights/total", 100 * (1 - nonzero / total) if total else 0.0, epoch)
        self.tblogger.flush()

    def log_weights_filter_magnitude(self, model: nn.Module, epoch: int, multi_graphs: bool = False) -> None:
        """The L1 norm of each filter of convolutions, as a histogram or (``multi_graphs``) one scalar a filter."""
        for name, weight in counted_weights(model, (3, 4, 5)):
            norms = norm_filters(weight)
            if multi_graphs:
                for number, norm in enumerate(norms.tolist()):
                    self.tblogger.add_scalar(f"magnitude/filters/{name}/{number}", norm, epoch)
            else:
                self._histogram(f"magnitude/filters/{name}", norms, epoch)
        self.tblogger.flush()

    def log_weights_distribution(self, named_params: Iterable[tuple[str, Tensor]] | None, steps_completed: int) -> None:
        """Histograms of parameters (and gradients), tagged by their name with ``/`` for ``.``."""
        for name, parameter in named_params or ():
            tag = name.replace(".", "/")
            if any(wanted in tag for wanted in self.logged_params):
                self._histogram(tag, parameter, steps_completed)
            if self.log_gradients and parameter.grad is not None:
                self._histogram(f"{tag}/grad", parameter.grad, steps_completed)
        self.tblogger.flush()

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
        """One scalar an element, tagged ``<prefix>/<buffer>/<module>[/<index>]``."""
        step = _step(epoch, completed, total)
        for module, name, tensor in named_buffers_called(model, buffer_names):
            tag = "/".join(part for part in (tag_prefix.strip("/"), name, module) if part)
            for number, value in enumerate(tensor.flatten().tolist()):
                self.tblogger.add_scalar(tag if tensor.numel() == 1 else f"{tag}/{number}", value, step)
        self.tblogger.flush()

    def close(self) -> None:
        """Close the event file."""
        self.tblogger.close()

    def _histogram(self, tag: str, values: Tensor, step: int) -> None:
        finite = values.detach().float().flatten()
        finite = finite[torch.isfinite(finite)]  # a diverged run should still be logged; NaN has no bin
        if finite.numel():
            self.tblogger.add_histogram(tag, finite, step)


def _step(epoch: int, completed: int, total: int) -> int:
    return int(total) * max(epoch, 0) + completed
