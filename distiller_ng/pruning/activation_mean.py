"""Pruning of filters whose activations are smallest (layer 2)."""

from __future__ import annotations

from torch import Tensor

from distiller_ng.ops.statistics import activation_channels_means
from distiller_ng.pruning._activation_ranked import ActivationRankedFilterPruner
from distiller_ng.pruning.base import PRUNERS

__all__ = ["ActivationMeanRankedFilterPruner"]


@PRUNERS.register("ActivationMeanRankedFilterPruner", injected=("name",))
class ActivationMeanRankedFilterPruner(ActivationRankedFilterPruner):
    """Prunes the filters with the lowest mean activation.

    Exactly ``int(desired_sparsity * filters)`` filters of each target go. The activations of the epoch before each
    active one are collected by the policy itself, from validation if there is any; see
    :class:`ActivationRankedFilterPruner` for where. So the policy must begin at epoch 1 or later. ``group_dependency``,
    ``schedule``, ``scope``, ``pattern``: see :class:`StructurePruner`.

    Source: P. Molchanov et al., "Pruning Convolutional Neural Networks for Resource Efficient Inference",
    https://arxiv.org/abs/1611.06440. Filters with mean activations 0.1, 0.2, 0.3 and 0.4 keep the last two at 0.5::

        pruners:
          trimming:
            class: ActivationMeanRankedFilterPruner
            group_type: Filters
            desired_sparsity: 0.5
            weights: [layer1.0.conv1.weight]
        policies:
          - pruner: {instance_name: trimming}
            epochs: [1]

    Raises :class:`CalibrationError` when it must decide without having seen anything.
    """

    def statistic(self, activation: Tensor) -> Tensor:
        """Mean over batch and positions."""
        return activation_channels_means(activation)

    def score(self, statistic: Tensor) -> Tensor:
        """The mean itself."""
        return statistic
