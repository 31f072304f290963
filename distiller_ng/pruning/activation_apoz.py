"""Pruning of filters whose activations are zero most often (layer 2)."""

from __future__ import annotations

from torch import Tensor

from distiller_ng.ops.statistics import activation_channels_apoz
from distiller_ng.pruning._activation_ranked import ActivationRankedFilterPruner
from distiller_ng.pruning.base import PRUNERS

__all__ = ["ActivationAPoZRankedFilterPruner"]


@PRUNERS.register("ActivationAPoZRankedFilterPruner", injected=("name",))
class ActivationAPoZRankedFilterPruner(ActivationRankedFilterPruner):
    """Prunes the filters with the highest average percentage of zeros (APoZ) in their activations.

    Exactly ``int(desired_sparsity * filters)`` filters of each target go. The activations of the epoch before each
    active one are collected by the policy itself, from validation if there is any; see
    :class:`ActivationRankedFilterPruner` for where. So the policy must begin at epoch 1 or later. ``group_dependency``,
    ``schedule``, ``scope``, ``pattern``: see :class:`StructurePruner`.

    Source: H. Hu et al., "Network Trimming: A Data-Driven Neuron Pruning Approach towards Efficient Deep
    Architectures", https://arxiv.org/abs/1607.03250. Filters whose activations are zero in 10, 90, 50 and 60 % of all
    positions keep the first and the third at 0.5::

        pruners:
          trimming:
            class: ActivationAPoZRankedFilterPruner
            group_type: Filters
            desired_sparsity: 0.5
            weights: [layer1.0.conv1.weight]
        policies:
          - pruner: {instance_name: trimming}
            epochs: [1]

    Raises :class:`CalibrationError` when it must decide without having seen anything.
    """

    def statistic(self, activation: Tensor) -> Tensor:
        """Percentage of zeros, 0 to 100."""
        return activation_channels_apoz(activation)

    def score(self, statistic: Tensor) -> Tensor:
        """The share of positions that are not zero."""
        return 100.0 - statistic
