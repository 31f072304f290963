"""One number, or one a channel, for the activations of each module, averaged over a run (layer 2)."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from distiller_ng.data_loggers._watching import input_tensors, main_output
from distiller_ng.data_loggers.activation_stats import ActivationStatsCollector, CollectorDirection
from distiller_ng.errors import ArgumentError
from distiller_ng.ops.table import Cell, Table

__all__ = ["DEFAULT_ACTIVATIONS", "SummaryActivationStatsCollector"]

DEFAULT_ACTIVATIONS: tuple[type[nn.Module], ...] = (nn.ReLU, nn.ReLU6, nn.LeakyReLU)


class SummaryActivationStatsCollector(ActivationStatsCollector):
    """Averages ``summary_fn`` of a module's output (or inputs) over all batches, weighted by their number of elements.

    ``summary_fn`` maps a tensor to a number or a tensor whose shape does not change from batch to batch; ``stat_name``
    is what loggers call it. With ``collector_direction`` IN it is given the inputs, joined by
    ``inputs_consolidate_func`` where there are several. :meth:`value` has a float or a list of floats for each module.
    Averages are kept in float64 on the device of what ``summary_fn`` returns. Example::

        collector = SummaryActivationStatsCollector(model, "sparsity", lambda t: 100 * float((t == 0).float().mean()))
        with collector_context(collector):
            evaluate(model)
        collector.value()        # {"relu1": 43.1, "relu2": 60.7}

    A batch of 2 elements with summary 1.0 and one of 6 with summary 5.0 average to 4.0. Raises :class:`ArgumentError`
    for a ``summary_fn`` that cannot be called, and when it returns another shape than before.
    """

    def __init__(
        self,
        model: nn.Module,
        stat_name: str,
        summary_fn: Callable[[Tensor], Any],
        classes: Sequence[type[nn.Module]] | None = DEFAULT_ACTIVATIONS,
        collector_direction: CollectorDirection = CollectorDirection.OUT,
        inputs_consolidate_func: Callable[[list[Tensor]], Tensor] = torch.cat,
    ) -> None:
        super().__init__(model, stat_name, classes)
        for argument, function in (("summary_fn", summary_fn), ("inputs_consolidate_func", inputs_consolidate_func)):
            if not callable(function):
                raise ArgumentError(f"{argument} must be a function, got {function!r}", argument=(argument,))
        self.summary_fn = summary_fn
        self.collector_direction = CollectorDirection(collector_direction)
        self.inputs_func = inputs_consolidate_func
        self._sums: dict[str, tuple[Tensor, int]] = {}  # sum of summary * elements, elements

    def before(self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Summarize the inputs, if they are what is wanted."""
        if self.collector_direction is not CollectorDirection.IN:
            return
        tensors = [tensor for _, tensor in input_tensors(args, kwargs)]
        if tensors:
            self._add(name, tensors[0] if len(tensors) == 1 else self.inputs_func(tensors))

    def after(self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Summarize the output, if it is what is wanted."""
        tensor = main_output(module, output)
        if self.collector_direction is CollectorDirection.OUT and tensor is not None:
            self._add(name, tensor)

    def _add(self, name: str, tensor: Tensor) -> None:
        summary = torch.as_tensor(self.summary_fn(tensor.detach()))
        wide = summary.detach().to(torch.float32 if summary.device.type == "mps" else torch.float64)
        total, count = self._sums.get(name, (torch.zeros_like(wide), 0))
        if total.shape != wide.shape:
            raise ArgumentError(
                f"{self.stat_name} of {name!r} has the shape {tuple(wide.shape)} in one batch and {tuple(total.shape)} "
                "in those before: a statistic must not depend on the size of a batch",
                argument=("summary_fn",),
            )
        elements = tensor.numel()
        self._sums[name] = (total.to(wide.device) + wide * elements, count + elements)

    def value(self) -> dict[str, float | list[float]]:
        """The averages."""
        return self.in_model_order({name: (total / count).tolist() for name, (total, count) in self._sums.items()})

    def reset(self) -> None:
        """Forget what was collected."""
        self._sums.clear()

    def table(self) -> Table:
        """One row a module, or one a module and channel."""
        rows: list[tuple[Cell, ...]] = []
        for name, value in self.value().items():
            numbers = torch.as_tensor(value).flatten().tolist()
            scalar = isinstance(value, float)
            rows += [(name, None if scalar else channel, number) for channel, number in enumerate(numbers)]
        return Table(f"Activations: {self.stat_name}", ("Layer", "Channel", self.stat_name), tuple(rows))

    def save(self, fname: str | os.PathLike[str]) -> str:
        """Write :meth:`table` as comma-separated values, with the ending ``.csv``; the file's name."""
        return save_csv(self.table(), fname)


def save_csv(table: Table, fname: str | os.PathLike[str]) -> str:
    """Write a table, adding ``.csv`` where it is missing; the file's name."""
    name = os.fspath(fname)
    name = name if name.endswith(".csv") else f"{name}.csv"
    table.to_csv(name)
    return name
