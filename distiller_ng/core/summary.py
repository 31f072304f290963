"""What a schedule planned and what it achieved (layer 1)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from distiller_ng.names import ParameterIndex

__all__ = ["CompressionSummary", "ParameterOutcome", "RemovedEntries", "summarize"]


@dataclass(frozen=True, slots=True)
class ParameterOutcome:
    """One pruned parameter: sparsities are fractions of zeros; ``planned`` is None where it depends on the weights."""

    name: str
    shape: tuple[int, ...]
    planned: float | None
    achieved: float


@dataclass(frozen=True, slots=True)
class RemovedEntries:
    """One parameter of which thinning took filters or channels away: its shape ``before``, and now."""

    name: str
    before: tuple[int, ...]
    after: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class CompressionSummary:
    """The result of ``scheduler.finish()``; ``str()`` is an aligned table.

    ``total_sparsity`` counts the zeros of all parameters the schedule wrote, over their size. ``removed``: parameters
    that are smaller than they were; a parameter that was only made smaller is not among ``parameters``.
    """

    parameters: tuple[ParameterOutcome, ...]
    total_sparsity: float
    warnings: tuple[str, ...] = ()
    removed: tuple[RemovedEntries, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        lines = self._sparsities() if self.parameters or not self.removed else []
        lines += ["", *self._removals()][not lines :] if self.removed else []
        return "\n".join([*lines, *(f"warning: {text}" for text in self.warnings)])

    def _sparsities(self) -> list[str]:
        width = max([len(p.name) for p in self.parameters] + [len("parameter")])
        lines = [f"{'parameter':<{width}}  {'shape':<18} {'planned':>8} {'achieved':>9}"]
        for row in self.parameters:
            planned = "-" if row.planned is None else f"{row.planned:.2%}"
            lines.append(f"{row.name:<{width}}  {_shape(row.shape):<18} {planned:>8} {row.achieved:>9.2%}")
        lines.append(f"{'all of these':<{width}}  {'':<18} {'':>8} {self.total_sparsity:>9.2%}")
        return lines

    def _removals(self) -> list[str]:
        width = max([len(p.name) for p in self.removed] + [len("all of these")])
        lines = [f"{'made smaller':<{width}}  {'before':<18} {'after':<18} {'left':>8}"]
        for row in self.removed:
            left = math.prod(row.after) / math.prod(row.before)
            lines.append(f"{row.name:<{width}}  {_shape(row.before):<18} {_shape(row.after):<18} {left:>8.2%}")
        before, after = (sum(math.prod(shape) for shape in shapes) for shapes in self._shapes())
        lines.append(f"{'all of these':<{width}}  {before:<18,} {after:<18,} {after / before:>8.2%}")
        return lines

    def _shapes(self) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
        return [row.before for row in self.removed], [row.after for row in self.removed]


def summarize(
    parameters: ParameterIndex,
    planned: Mapping[str, float | None],
    masks: Mapping[str, Tensor],
    warnings: tuple[str, ...] = (),
    changes: Sequence[Mapping[str, Any]] = (),
) -> CompressionSummary:
    """Compare the plan with the zeros that are really in the weights.

    ``changes``: what was done to the structure, as :func:`~distiller_ng.graph.changes.changes_of` has it.
    """
    removed = _removed(parameters, changes)
    smaller = {row.name for row in removed}
    rows: list[ParameterOutcome] = []
    zeros = volume = 0
    for name in parameters:
        if name not in planned and name not in masks:
            continue
        weight = parameters[name].detach()
        zero = int((weight == 0).sum())
        if name in smaller and not zero and planned.get(name) is None:
            continue  # its zeros were cut out
        zeros, volume = zeros + zero, volume + weight.numel()
        rows.append(ParameterOutcome(name, tuple(weight.shape), planned.get(name), zero / max(weight.numel(), 1)))
    return CompressionSummary(tuple(rows), zeros / volume if volume else 0.0, warnings, removed)


def _removed(parameters: ParameterIndex, changes: Sequence[Mapping[str, Any]]) -> tuple[RemovedEntries, ...]:
    """The parameters that changes cut; one that is no longer there (a layer was replaced) is left out."""
    before = {name: list(parameters[name].shape) for name in parameters}
    for change in changes:
        for name, dim, removed, _ in change["config"].get("cuts", ()):
            if name in before:
                before[name][dim] += len(removed)
    found = []
    for name, shape in before.items():
        after = tuple(parameters[name].shape)
        if tuple(shape) != after:
            found.append(RemovedEntries(name, tuple(shape), after))
    return tuple(found)


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
