"""L1 regularization (lasso): pushes single weights to zero (layer 2)."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Literal

from torch import Tensor, nn

from distiller_ng.errors import ScheduleWarning, listed
from distiller_ng.ops.thresholding import threshold_mask
from distiller_ng.regularization._group_terms import (
    GroupRegim,
    check_group_regim,
    check_groups,
    group_mask,
    group_penalty,
)
from distiller_ng.regularization.base import REGULARIZERS, Regularizer, check_strength

__all__ = ["L1Regularizer"]


@REGULARIZERS.register("L1Regularizer", injected=("name", "model"))
class L1Regularizer(Regularizer):
    """Adds ``strength * sum |w|`` for each parameter.

    Source: Robert Tibshirani, "Regression Shrinkage and Selection via the Lasso" (1996),
    https://www.jstor.org/stable/2346178

    ``threshold_criteria``: with any criterion, weights of magnitude ``|w| <= strength`` are set to zero after every
    optimizer step (a single weight's largest and mean magnitude are the same). Without it nothing becomes exactly zero.

    An entry ``[strength, group type]`` is taken as group lasso (:class:`GroupLassoRegularizer`), with a warning.

    Example: ``[1, -2, 0]`` with strength ``0.1`` adds ``0.1 * (1 + 2 + 0) = 0.3``::

        regularizers:
          my_L1_reg:
            class: L1Regularizer
            reg_regims:
              layer3.1.conv1.weight: 0.000002
              're:layer3.2.conv..weight': 0.000001
            threshold_criteria: Mean_Abs
    """

    def __init__(
        self,
        name: str,
        model: nn.Module | None,
        reg_regims: Mapping[str, float | GroupRegim],
        threshold_criteria: Literal["Max", "Mean_Abs"] | None = None,
    ) -> None:
        super().__init__(name, model, reg_regims, threshold_criteria)
        groups = [target for target, regim in self.reg_regims.items() if _is_group(regim)]
        if groups:
            warnings.warn(
                f"L1Regularizer {name!r} has [strength, group type] for {listed(groups, limit=3)}: taken as group "
                "lasso. Write class: GroupLassoRegularizer",
                ScheduleWarning,
                stacklevel=2,
            )

    def check_regim(self, target: str, regim: object) -> None:
        """A strength from 0, or ``[strength, group type]``."""
        if _is_group(regim):
            check_group_regim(target, regim)
        else:
            check_strength(regim, ("reg_regims", target))

    def check_parameter(self, name: str, parameter: Tensor, target: str) -> None:
        """Any weight will do, unless groups are asked for."""
        regim = self.reg_regims[target]
        if _is_group(regim):
            check_groups(name, parameter, target, regim[1])

    def penalty(self, name: str, param: Tensor) -> Tensor:
        """``strength * sum |w|``, a scalar."""
        regim = self.regim(name)
        if _is_group(regim):
            return group_penalty(param, regim[1], regim[0])
        return float(regim) * param.abs().sum()

    def threshold_mask(self, name: str, param: Tensor) -> Tensor | None:
        """Keeps ``|w| > strength``; None without a criterion."""
        if self.threshold_criteria is None:
            return None
        regim = self.regim(name)
        if _is_group(regim):
            return group_mask(param, regim[1], regim[0], self.threshold_criteria)
        return threshold_mask(param, regim)


def _is_group(regim: object) -> bool:
    return isinstance(regim, list | tuple)
