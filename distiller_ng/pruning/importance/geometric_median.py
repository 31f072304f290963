"""Importance as the distance to the other channels of the same layers (layer 2)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from distiller_ng.core.context import StepContext
from distiller_ng.graph.dependency import DependencyGraph
from distiller_ng.names import ParameterIndex
from distiller_ng.pruning._families import Family, FamilyMember, Floats
from distiller_ng.pruning.importance._entries import weight_of
from distiller_ng.pruning.importance.base import IMPORTANCES, Importance, parameters_of

__all__ = ["GeometricMedianImportance"]


@IMPORTANCES.register("geometric_median")
class GeometricMedianImportance(Importance):
    """How far a channel's filters lie from all others: ``sum_j ||F_i - F_j||``; what the others can replace goes.

    Filters of every weight (two dimensions or more) that makes the channel count, each tensor's distances aggregated
    by ``aggregate``. ``normalize``: see :class:`Importance`.

    Source: Y. He et al., "Filter Pruning via Geometric Median for Deep Convolutional Neural Networks Acceleration"
    (FPGM), https://arxiv.org/abs/1811.00250. Filters ``[0, 0]``, ``[3, 4]`` and ``[6, 8]`` have distances ``5 + 10``,
    ``5 + 5`` and ``10 + 5``: the second goes first, though the first is smaller::

        pruners:
          fpgm: {class: GroupPruner, importance: geometric_median, sparsity: 0.4}
    """

    def family_scores(self, family: Family, graph: DependencyGraph, ctx: StepContext | None) -> Floats:
        """Sums of distances; channels that no weight makes (only norms) are compared by those."""
        parameters = parameters_of(graph, ctx)
        feeding = [(m, name) for m in family.members if m.feeds and (name := parameters.find(m.tensor)) is not None]
        weights = [(m, name) for m, name in feeding if parameters[name].dim() > 1] or feeding
        scores = [_distances(_vectors(m, name, family, parameters, ctx)) for m, name in weights]
        return self.aggregated(scores, len(family))


def _vectors(
    member: FamilyMember, name: str, family: Family, parameters: ParameterIndex, ctx: StepContext | None
) -> Tensor:
    """``[channels, entries]``: each channel's entries of one tensor, in one row."""
    weight = weight_of(name, parameters, ctx).movedim(member.dim, 0)
    rows = [weight[torch.from_numpy(where).to(weight.device)].flatten() for where in member.places(len(family))]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)  # the same length for nearly every model


def _distances(vectors: Tensor) -> Floats:
    # Differences, not the expanded square: equal filters must be at distance 0 exactly.
    distances = torch.cdist(vectors, vectors, compute_mode="donot_use_mm_for_euclid_dist")
    return np.asarray(distances.double().sum(dim=1).cpu().numpy(), np.float64)
