"""Importance drawn at random: the baseline (layer 2)."""

from __future__ import annotations

import torch

from distiller_ng.core.context import StepContext
from distiller_ng.graph.dependency import DependencyGraph
from distiller_ng.pruning._families import Family, Floats
from distiller_ng.pruning.importance.base import IMPORTANCES, Importance, Normalize

__all__ = ["RandomImportance"]


@IMPORTANCES.register("random")
class RandomImportance(Importance):
    """A number drawn uniformly from 0 to 1 for each channel, anew each time, from torch's global generator.

    The baseline any importance has to beat. ``normalize``: see :class:`Importance`; drawn numbers compare as they are.
    Two channels may draw 0.50 and 0.77: the first goes at a sparsity of 0.5::

        pruners:
          groups: {class: GroupPruner, importance: random, sparsity: 0.5}
    """

    default_normalize = "none"

    def __init__(self, *, normalize: Normalize | None = None) -> None:
        super().__init__(normalize=normalize)

    def family_scores(self, family: Family, graph: DependencyGraph, ctx: StepContext | None) -> Floats:
        """Draws."""
        drawn: Floats = torch.rand(len(family), dtype=torch.float64).numpy()
        return drawn
