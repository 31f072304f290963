"""Importance as the scale a norm gives each channel (layer 2)."""

from __future__ import annotations

from torch import nn

from distiller_ng.core.context import StepContext
from distiller_ng.errors import GraphError
from distiller_ng.graph.dependency import DependencyGraph
from distiller_ng.names import ParameterIndex, canonical_name
from distiller_ng.pruning._families import Family, FamilyMember, Floats
from distiller_ng.pruning.importance._entries import EntryImportance, along, weight_of
from distiller_ng.pruning.importance.base import IMPORTANCES

__all__ = ["BNScaleImportance"]

_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


@IMPORTANCES.register("bn_scale")
class BNScaleImportance(EntryImportance):
    """``|gamma|`` of the norms a channel passes through, aggregated over them.

    Scales of batch, group, instance, layer and RMS norms count. Train with an L1 regularizer on them first.
    Scales compare between layers as they are, so ``normalize`` is ``none`` unless given.

    Source: Z. Liu et al., "Learning Efficient Convolutional Networks through Network Slimming",
    https://arxiv.org/abs/1708.06519. A channel of two coupled norms with scales 0.5 and -0.1 scores 0.6::

        pruners:
          slimming: {class: GroupPruner, importance: bn_scale, scope: global, target: {macs: 0.5}}

    Raises :class:`GraphError` for channels that no norm scales.
    """

    default_normalize = "none"

    def problem_with(self, family: Family, graph: DependencyGraph) -> str | None:
        """There must be a norm with a scale."""
        if _scales(family, graph):
            return None
        return (
            f"importance bn_scale: no norm with a scale stands behind {family.name!r}. Leave it out of weights, or "
            "choose another importance, e.g. l1"
        )

    def family_scores(self, family: Family, graph: DependencyGraph, ctx: StepContext | None) -> Floats:
        """The scales of the group's norms."""
        problem = self.problem_with(family, graph)
        if problem is not None:
            raise GraphError(problem)
        return super().family_scores(Family(family.key, family.channels, _scales(family, graph)), graph, ctx)

    def entry_scores(
        self, name: str, member: FamilyMember, parameters: ParameterIndex, ctx: StepContext | None
    ) -> Floats | None:
        """``|gamma|``."""
        return along(weight_of(name, parameters, ctx).abs(), member.dim)


def _scales(family: Family, graph: DependencyGraph) -> tuple[FamilyMember, ...]:
    norms = {canonical_name(name) for name, module in graph.model.named_modules() if isinstance(module, _NORMS)}
    weights = {f"{name}.weight" for name in norms}
    return tuple(member for member in family.members if member.feeds and member.tensor in weights)
