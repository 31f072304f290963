"""Importance as the Euclidean norm over the whole group (layer 2)."""

from __future__ import annotations

import numpy as np

from distiller_ng.core.context import StepContext
from distiller_ng.names import ParameterIndex
from distiller_ng.pruning._families import FamilyMember, Floats
from distiller_ng.pruning.importance._entries import EntryImportance, along, weight_of
from distiller_ng.pruning.importance.base import IMPORTANCES

__all__ = ["L2Importance"]


@IMPORTANCES.register("l2")
class L2Importance(EntryImportance):
    """The Euclidean norm of a channel's share of each tensor of its group, ``sqrt(sum w^2)``, aggregated.

    Source: G. Fang et al., "DepGraph: Towards Any Structural Pruning", https://arxiv.org/abs/2301.12900 (norms over
    whole groups). ``aggregate`` and ``normalize``: see :class:`Importance`. A filter ``[3, 4]`` with bias 1, read by
    one layer with the weights ``[0, 2]``: ``5 + 1 + 2 = 8``::

        pruners:
          groups: {class: GroupPruner, importance: {class: l2, aggregate: max}, sparsity: 0.5}
    """

    def entry_scores(
        self, name: str, member: FamilyMember, parameters: ParameterIndex, ctx: StepContext | None
    ) -> Floats | None:
        """``sum w^2``; the root is taken of each channel's sum."""
        return along(weight_of(name, parameters, ctx).square(), member.dim)

    def finish(self, totals: Floats) -> Floats:
        """``sqrt``."""
        return np.sqrt(totals)
