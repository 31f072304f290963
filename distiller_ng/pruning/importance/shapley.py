"""Importance as a channel's fair share of what the model achieves (layer 2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from distiller_ng.core.context import StepContext
from distiller_ng.errors import ArgumentError, CalibrationError
from distiller_ng.graph.dependency import DependencyGraph
from distiller_ng.graph.inputs import flat_tensors
from distiller_ng.graph.trace import evaluating
from distiller_ng.pruning._families import Family, FamilyMember, Floats
from distiller_ng.pruning.importance.base import IMPORTANCES, Importance, Normalize, parameters_of

__all__ = ["LossFunction", "ShapleyImportance"]

#: The loss of a model on data of the user's choice; smaller is better.
LossFunction: TypeAlias = Callable[[nn.Module], float]


@IMPORTANCES.register("shapley")
class ShapleyImportance(Importance):
    """The Shapley value of each channel in the game whose players are the channels of its layers.

    A channel is worth what the loss rises by when its whole group is zeroed, averaged over the orders in which the
    channels could be removed; ``permutations`` of them are drawn from torch's global generator. One forward pass of
    ``loss`` for each channel and permutation. ``loss(model) -> float`` (Python only) is called without gradients, in
    eval mode; without it the loss is how far the outputs on the example inputs move from the full model's (mean square
    error over mean square), which needs no data. ``normalize`` is ``none`` unless given.

    Source: M. Ancona et al., "Shapley Value as Principled Metric for Structured Network Pruning",
    https://arxiv.org/abs/2006.01795. Two channels that do the same work: removing the first changes nothing, then the
    second costs 1; over both orders each is worth 0.5::

        pruners:
          shapley: {class: GroupPruner, importance: {class: shapley, permutations: 8}, target: {macs: 0.5}}

    Raises :class:`ArgumentError` unless ``permutations`` is 1 or more, :class:`CalibrationError` for a loss that is not
    finite.
    """

    default_normalize = "none"

    def __init__(
        self, *, permutations: int = 4, loss: LossFunction | None = None, normalize: Normalize | None = None
    ) -> None:
        super().__init__(normalize=normalize)
        if isinstance(permutations, bool) or not isinstance(permutations, int) or permutations < 1:
            message = f"permutations is a whole number from 1, got {permutations!r}"
            raise ArgumentError(message, argument=("permutations",))
        self.permutations = permutations
        self.loss = loss

    def family_scores(self, family: Family, graph: DependencyGraph, ctx: StepContext | None) -> Floats:
        """Mean marginal losses; the model is as before afterwards."""
        parameters = parameters_of(graph, ctx)
        shares = [(m, parameters[name]) for m in family.members if (name := parameters.find(m.tensor)) is not None]
        # .data: a decision must not count as a change of the weights for autograd.
        before = [(parameter.data, parameter.data.clone()) for _, parameter in shares]
        worth = np.zeros(len(family))
        with torch.no_grad(), evaluating(graph.model):
            loss = self.loss or _deviation(graph)
            full = _checked(loss(graph.model))
            for _ in range(self.permutations):
                try:
                    worth += self._one_order(family, shares, graph.model, loss, full)
                finally:
                    for data, saved in before:
                        data.copy_(saved)
        return worth / self.permutations

    def _one_order(
        self,
        family: Family,
        shares: Sequence[tuple[FamilyMember, Tensor]],
        model: nn.Module,
        loss: LossFunction,
        full: float,
    ) -> Floats:
        worth = np.zeros(len(family))
        last = full
        places = [(m.dim, m.places(len(family)), parameter.data) for m, parameter in shares]
        for channel in torch.randperm(len(family)).tolist():
            for dim, where, data in places:
                data.index_fill_(dim, torch.from_numpy(where[channel]).to(data.device), 0)
            now = _checked(loss(model))
            worth[channel] = now - last
            last = now
        return worth


def _checked(loss: float) -> float:
    value = float(loss)
    if not np.isfinite(value):
        raise CalibrationError(f"importance shapley: the loss is {value}; it must be a finite number")
    return value


def _deviation(graph: DependencyGraph) -> LossFunction:
    """How far the floating-point outputs on the example inputs are from what they are now."""

    def outputs(model: nn.Module) -> list[Tensor]:
        found = flat_tensors(graph.inputs.call(model))
        return [tensor.double() for tensor in found if tensor.is_floating_point()]

    reference = outputs(graph.model)
    scales = [max(float(tensor.square().mean()), 1e-30) for tensor in reference]

    def loss(model: nn.Module) -> float:
        moved = [float((a - b).square().mean()) / s for a, b, s in zip(outputs(model), reference, scales, strict=True)]
        return float(sum(moved))

    return loss
