"""In which order a model uses its weights, and how each is a matrix (layer 2)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from distiller_ng.pruning._layer_inputs import LayerInputs, Use

__all__ = ["LayerPlan", "LayerUse", "discover"]


@dataclass(slots=True)
class LayerUse:
    """A weight as a matrix ``[outputs, inputs]``.

    A convolution's columns are ``(channel, position)``, as its weight is stored; ``by_position`` makes them
    ``(position, channel)``, so that neighbours along the channels are neighbours.
    """

    name: str
    shape: torch.Size
    is_transposed: bool
    is_convolution: bool
    uses: int = 0

    def matrix(self, weight: Tensor, by_position: bool) -> Tensor:
        """``[outputs, columns]``."""
        if self.is_transposed:
            return weight.t()
        if not self.is_convolution:
            return weight
        return (weight.movedim(1, -1) if by_position else weight).flatten(1)

    def shaped(self, matrix: Tensor, by_position: bool) -> Tensor:
        """The weight from :meth:`matrix`."""
        if self.is_transposed:
            return matrix.t().contiguous()
        if not self.is_convolution or not by_position:
            return matrix.reshape(self.shape)
        return matrix.reshape(self.shape[0], *self.shape[2:], self.shape[1]).movedim(-1, 1).contiguous()

    def reordered(self, statistics: Tensor, by_position: bool) -> Tensor:
        """Statistics of columns ``[columns]`` or ``[columns, columns]`` in the order of :meth:`matrix`."""
        if not self.is_convolution or not by_position:
            return statistics
        positions = math.prod(self.shape[2:])
        order = torch.arange(self.shape[1] * positions, device=statistics.device)
        order = order.view(self.shape[1], positions).t().reshape(-1)
        for dim in range(statistics.dim()):
            statistics = statistics.index_select(dim, order)
        return statistics

    def group_starts(self, size: int) -> list[int]:
        """The first columns of groups of so many neighbouring inputs, at one position; a rest belongs to no group."""
        inputs = self.shape[0] if self.is_transposed else self.shape[1]
        positions = math.prod(self.shape[2:])
        return [p * inputs + g * size for p in range(positions) for g in range(inputs // size)]


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """Layers in the order they run; those of one stage read the same tensor. ``refused``: used in another way."""

    layers: Mapping[str, LayerUse]
    stages: list[list[LayerUse]]
    refused: frozenset[str]


def discover(forward: Callable[[], Any], weights: Mapping[str, Tensor]) -> LayerPlan:
    """Run the model once and see which of ``weights`` it uses when."""
    layers: dict[str, LayerUse] = {}
    stages: list[list[LayerUse]] = []
    last: list[Tensor] = []  # holds the memory, so that its address means one tensor

    def seen(use: Use, pieces: Iterable[Tensor]) -> None:
        if use.name not in layers:
            layers[use.name] = LayerUse(use.name, weights[use.name].shape, use.is_transposed, use.is_convolution)
            if last and _same(last[0], use.inputs):
                stages[-1].append(layers[use.name])
            else:
                stages.append([layers[use.name]])
        if not use.is_convolution or use.rows[0] == 0:
            layers[use.name].uses += 1
        last[:] = [use.inputs]

    inputs = LayerInputs(weights, seen)
    inputs.run(forward)
    refused = frozenset(inputs.refused)
    kept = {name: layer for name, layer in layers.items() if name not in refused}
    stages = [[layer for layer in stage if layer.name in kept] for stage in stages]
    return LayerPlan(kept, [stage for stage in stages if stage], refused)


def _same(one: Tensor, other: Tensor) -> bool:
    return one.data_ptr() == other.data_ptr() and one.shape == other.shape
