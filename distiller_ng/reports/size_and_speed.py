"""What compression gained: parameters, MACs, file size and measured latency of several models (layer 4)."""

from __future__ import annotations

import io
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from distiller_ng.errors import ArgumentError
from distiller_ng.graph.inputs import ExampleInputs, ExampleInputsLike, as_example_inputs, with_batch
from distiller_ng.graph.trace import evaluating
from distiller_ng.names import unwrap
from distiller_ng.ops.table import Table
from distiller_ng.reports.compute import layer_costs

__all__ = ["ModelFigures", "size_and_speed", "size_and_speed_tbl"]

SIZE_AND_SPEED_COLUMNS = ("Model", "Parameters", "MACs", "File (KiB)")


@dataclass(frozen=True, slots=True)
class ModelFigures:
    """Of one model: number of parameters, MACs of one example, bytes of its saved state dict, and latency.

    ``latency``: ``{batch size: milliseconds of one eager eval forward pass, median}``.
    """

    name: str
    parameters: int
    macs: int
    file_bytes: int
    latency: Mapping[int, float]


def size_and_speed(
    models: Mapping[str, nn.Module],
    example_inputs: ExampleInputsLike,
    *,
    batches: Sequence[int] = (1, 64),
    rounds: int = 21,
) -> list[ModelFigures]:
    """Measure every model on the same inputs; ``example_inputs`` has a batch dimension first, of any size.

    Latencies are wall-clock medians over ``rounds`` rounds in which the models take turns, so that other load on the
    machine hits all of them; look at their ratios. Raises :class:`ArgumentError` for no models, or rounds below 1.
    """
    if not models:
        raise ArgumentError("size_and_speed compares models, got none", argument=("models",))
    if rounds < 1:
        raise ArgumentError(f"rounds is a whole number from 1, got {rounds}", argument=("rounds",))
    inputs = as_example_inputs(example_inputs)
    plain = {name: unwrap(model) for name, model in models.items()}
    latency = {batch: _latencies(plain, with_batch(inputs, batch), rounds) for batch in batches}
    one = with_batch(inputs, 1)
    return [
        ModelFigures(
            name,
            sum(p.numel() for p in model.parameters()),
            sum(cost.macs for cost in layer_costs(model, one)),
            _file_bytes(model),
            {batch: latency[batch][name] for batch in batches},
        )
        for name, model in plain.items()
    ]


def size_and_speed_tbl(figures: Sequence[ModelFigures], *, extra: Mapping[str, Mapping[str, str]] | None = None) -> str:
    """The figures as a table, with ratios to the first model; ``extra`` adds columns, ``{column: {name: text}}``."""
    first = figures[0]
    batches = list(first.latency)
    columns = [*SIZE_AND_SPEED_COLUMNS, *(f"ms, batch {batch}" for batch in batches), *(extra or {})]
    rows = []
    for one in figures:
        cells: list[Any] = [
            one.name,
            _with_ratio(f"{one.parameters:,}", one.parameters, first.parameters),
            _with_ratio(f"{one.macs:,}", one.macs, first.macs),
            _with_ratio(f"{one.file_bytes / 1024:.0f}", one.file_bytes, first.file_bytes),
        ]
        cells += [_with_ratio(f"{one.latency[b]:.3f}", one.latency[b], first.latency[b]) for b in batches]
        cells += [values.get(one.name, "") for values in (extra or {}).values()]
        rows.append(tuple(cells))
    return str(Table("Size and speed", tuple(columns), tuple(rows)))


def _with_ratio(text: str, value: float, reference: float) -> str:
    return text if value == reference else f"{text} ({value / reference:.2f}x)"


def _file_bytes(model: nn.Module) -> int:
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    return buffer.tell()


@torch.no_grad()
def _latencies(models: Mapping[str, nn.Module], inputs: ExampleInputs, rounds: int) -> dict[str, float]:
    samples: dict[str, list[float]] = {name: [] for name in models}
    for round_number in range(rounds + 2):  # the first two only warm up
        for name, model in models.items():
            with evaluating(model):
                start = time.perf_counter()
                inputs.call(model)
                seconds = time.perf_counter() - start
            if round_number >= 2:
                samples[name].append(1000 * seconds)
    return {name: statistics.median(values) for name, values in samples.items()}
