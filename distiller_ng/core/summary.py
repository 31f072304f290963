"""What a schedule planned and what it achieved (layer 1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from distiller_ng.names import ParameterIndex

__all__ = ["CompressionSummary", "ParameterOutcome", "summarize"]


@dataclass(frozen=True, slots=True)
class ParameterOutcome:
    """One pruned parameter: sparsities are fractions of zeros; ``planned`` is None where it depends on the weights."""

    name: str
    shape: tuple[int, ...]
    planned: float | None
    achieved: float


@dataclass(frozen=True, slots=True)
class CompressionSummary:
    """The result of ``scheduler.finish()``; ``str()`` is an aligned table.

    ``total_sparsity`` counts the zeros of all parameters the schedule wrote, over their size.
    """

    parameters: tuple[ParameterOutcome, ...]
    total_sparsity: float
    warnings: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        width = max([len(p.name) for p in self.parameters] + [len("parameter")])
        lines = [f"{'parameter':<{width}}  {'shape':<18} {'planned':>8} {'achieved':>9}"]
        for row in self.parameters:
            shape = "x".join(map(str, row.shape))
            planned = "-" if row.planned is None else f"{row.planned:.2%}"
            lines.append(f"{row.name:<{width}}  {shape:<18} {planned:>8} {row.achieved:>9.2%}")
        lines.append(f"{'all of these':<{width}}  {'':<18} {'':>8} {self.total_sparsity:>9.2%}")
        return "\n".join([*lines, *(f"warning: {text}" for text in self.warnings)])


def summarize(
    parameters: ParameterIndex,
    planned: Mapping[str, float | None],
    masks: Mapping[str, Tensor],
    warnings: tuple[str, ...] = (),
) -> CompressionSummary:
    """Compare the plan with the zeros that are really in the weights."""
    rows: list[ParameterOutcome] = []
    zeros = volume = 0
    for name in parameters:
        if name not in planned and name not in masks:
            continue
        weight = parameters[name].detach()
        zero = int((weight == 0).sum())
        zeros, volume = zeros + zero, volume + weight.numel()
        rows.append(ParameterOutcome(name, tuple(weight.shape), planned.get(name), zero / max(weight.numel(), 1)))
    return CompressionSummary(tuple(rows), zeros / volume if volume else 0.0, warnings)
