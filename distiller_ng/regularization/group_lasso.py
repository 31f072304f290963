"""Group lasso: pushes whole kernels, channels, filters, rows, columns or layers to zero (layer 2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from torch import Tensor, nn

from distiller_ng.regularization._group_terms import (
    GroupRegim,
    check_group_regim,
    check_groups,
    group_mask,
    group_penalty,
)
from distiller_ng.regularization.base import REGULARIZERS, Regularizer

__all__ = ["GroupLassoRegularizer"]


@REGULARIZERS.register("GroupLassoRegularizer", injected=("name", "model"))
class GroupLassoRegularizer(Regularizer):
    """Adds ``strength * sum over groups of ||W_g||_2`` for each parameter (no factor for the size of a group).

    Source: Ming Yuan and Yi Lin, "Model Selection and Estimation in Regression with Grouped Variables" (2006); for
    networks Wei Wen et al., "Learning Structured Sparsity in Deep Neural Networks", https://arxiv.org/abs/1608.03665

    Group types, for weights ``[C_o, C_i, *kernel]`` (convolution) or ``[C_o, C_i]`` (Linear):

    - ``2D``: kernels. ``3D`` or ``Filters``: output channels. ``Channels``: input channels, ``sqrt(sum w^2 + 1e-8)``.
    - ``Rows``, ``Cols``: of a matrix as it is stored. ``4D``: the whole weight is one group, so that layers vanish.
    - ``Rows+Cols``, ``Cols+Rows``, ``Channels+4D``, ``4D+Channels``: the sum of the two.

    ``threshold_criteria`` (``Max`` or ``Mean_Abs``): after every optimizer step, groups whose largest or mean |w| is at
    most the strength are set to zero. With two types a weight stays if both of its groups do. Without it nothing
    becomes exactly zero.

    Example: ``[[3, 4], [0, 0]]`` with ``[0.5, 'Rows']`` adds ``0.5 * (5 + 0) = 2.5``::

        regularizers:
          filters_regularizer:
            class: GroupLassoRegularizer
            reg_regims:
              layer1.0.conv1.weight: [0.0008, Filters]
              're:layer2\\..*conv.*weight': [0.0005, 2D]
            threshold_criteria: Mean_Abs
    """

    def __init__(
        self,
        name: str,
        model: nn.Module | None,
        reg_regims: Mapping[str, GroupRegim],
        threshold_criteria: Literal["Max", "Mean_Abs"] | None = None,
    ) -> None:
        super().__init__(name, model, reg_regims, threshold_criteria)

    def check_regim(self, target: str, regim: object) -> None:
        """``[strength, group type]`` with a known type and a strength from 0."""
        check_group_regim(target, regim)

    def check_parameter(self, name: str, parameter: Tensor, target: str) -> None:
        """The weight must have groups of the type asked for."""
        check_groups(name, parameter, target, self.reg_regims[target][1])

    def penalty(self, name: str, param: Tensor) -> Tensor:
        """``strength * sum of group norms``, a scalar."""
        strength, group_type = self.regim(name)
        return group_penalty(param, group_type, strength)

    def threshold_mask(self, name: str, param: Tensor) -> Tensor | None:
        """Drops the groups whose magnitude does not exceed the strength; None without a criterion."""
        if self.threshold_criteria is None:
            return None
        strength, group_type = self.regim(name)
        return group_mask(param, group_type, strength, self.threshold_criteria)
