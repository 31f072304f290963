"""Importance as the sum of absolute values over the whole group (layer 2)."""

from __future__ import annotations

from distiller_ng.core.context import StepContext
from distiller_ng.names import ParameterIndex
from distiller_ng.pruning._families import FamilyMember, Floats
from distiller_ng.pruning.importance._entries import EntryImportance, along, weight_of
from distiller_ng.pruning.importance.base import IMPORTANCES

__all__ = ["L1Importance"]


@IMPORTANCES.register("l1")
class L1Importance(EntryImportance):
    """The L1 norm of everything that goes with a channel, ``sum |w|`` over filter, bias, norm and readers' inputs.

    Source: H. Li et al., "Pruning Filters for Efficient ConvNets", https://arxiv.org/abs/1608.08710, there of the
    filter alone. ``aggregate`` and ``normalize``: see :class:`Importance`. A filter ``[1, -2]`` with bias 0.5, read by
    one layer with the weights ``[3, 0]``: ``3 + 0.5 + 3 = 6.5``::

        pruners:
          groups: {class: GroupPruner, importance: l1, sparsity: 0.5}
    """

    def entry_scores(
        self, name: str, member: FamilyMember, parameters: ParameterIndex, ctx: StepContext | None
    ) -> Floats | None:
        """``sum |w|``."""
        return along(weight_of(name, parameters, ctx).abs(), member.dim)
