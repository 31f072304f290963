"""Base of the importances that are sums over a channel's parameters (layer 2)."""

from __future__ import annotations

from abc import abstractmethod

import numpy as np
import torch
from torch import Tensor

from distiller_ng.core.context import StepContext
from distiller_ng.errors import CalibrationError
from distiller_ng.graph.dependency import DependencyGraph
from distiller_ng.names import ParameterIndex
from distiller_ng.pruning._families import Family, FamilyMember, Floats
from distiller_ng.pruning.importance.base import Importance, parameters_of

__all__ = ["EntryImportance", "along", "weight_of", "wide"]


class EntryImportance(Importance):
    """A score for each entry of each parameter of the group, summed over the entries of a channel."""

    def family_scores(self, family: Family, graph: DependencyGraph, ctx: StepContext | None) -> Floats:
        """The scores of all parameters of the group, aggregated."""
        parameters = parameters_of(graph, ctx)
        scores = []
        for member in family.members:
            name = parameters.find(member.tensor)
            values = None if name is None else self.entry_scores(name, member, parameters, ctx)
            if values is not None:
                scores.append(self.finish(member.totals(values, len(family))))
        if not scores:
            raise CalibrationError(
                f"{type(self).__name__} knows nothing of the channels of {family.name!r}: its parameters had no "
                "gradients. Leave it out of weights, or let it train (requires_grad)"
            )
        return self.aggregated(scores, len(family))

    @abstractmethod
    def entry_scores(
        self, name: str, member: FamilyMember, parameters: ParameterIndex, ctx: StepContext | None
    ) -> Floats | None:
        """``[entries along the member's dimension]``, summed over all others; None: the parameter has no say."""

    def finish(self, totals: Floats) -> Floats:
        """A channel's score within one tensor, from the sum over its entries."""
        return totals


def wide(tensor: Tensor) -> Tensor:
    """In float32 at least: half types lose too much in long sums."""
    return tensor.float() if tensor.element_size() < 4 else tensor


def along(values: Tensor, dim: int) -> Floats:
    """Sums over every dimension but ``dim``, in float64: ``[[1, 2], [3, 4]]`` along 0 gives ``[3, 7]``."""
    others = [d for d in range(values.dim()) if d != dim]
    summed = values.sum(dim=others, dtype=torch.float64) if others else values.double()
    return np.asarray(summed.detach().cpu().numpy(), np.float64)


def weight_of(name: str, parameters: ParameterIndex, ctx: StepContext | None) -> Tensor:
    """The tensor to score for a parameter."""
    return wide(parameters[name].detach() if ctx is None else ctx.weight(name))
