"""Group variance: spreads the norms of input channels apart, so that weak ones can be removed (layer 2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from distiller_ng.errors import ArgumentError, TargetError, did_you_mean
from distiller_ng.regularization._group_terms import channel_norms
from distiller_ng.regularization.base import REGULARIZERS, Regularizer, check_strength

__all__ = ["GroupVarianceRegularizer"]

# Channels of equal norm (all zeroed by a threshold) have no variance: below this the penalty is flat, not infinite.
_LEAST_VARIANCE = 1e-12


@REGULARIZERS.register("GroupVarianceRegularizer", injected=("name", "model"))
class GroupVarianceRegularizer(Regularizer):
    """Adds ``strength / var(n)`` for each parameter, ``n[C_i]`` the L2 norms of its input channels (unbiased variance).

    Used beside group lasso: the variance grows when some channels keep the energy and the others lose it.

    Source: Amirsina Torfi and Rouzbeh A. Shirvani, "Attention-Based Guided Structured Sparsity of Deep Neural
    Networks", https://arxiv.org/abs/1802.09902

    A norm is ``sqrt(sum w^2 + 1e-8)``; a variance below 1e-12 counts as 1e-12 and has no gradient, so that a weight
    whose channels were all zeroed does not make the loss infinite. There is no threshold.

    Example: channel norms 1 and 3 have the variance 2, so ``[0.5, 'Channels']`` adds ``0.25``::

        regularizers:
          spread_channels:
            class: GroupVarianceRegularizer
            reg_regims:
              layer1.0.conv1.weight: [0.000008, Channels]
    """

    def __init__(
        self, name: str, model: nn.Module | None, reg_regims: Mapping[str, tuple[float, Literal["Channels"]]]
    ) -> None:
        super().__init__(name, model, reg_regims)

    def check_regim(self, target: str, regim: object) -> None:
        """``[strength, 'Channels']`` with a strength from 0."""
        path = ("reg_regims", target)
        if not isinstance(regim, list | tuple) or len(regim) != 2:
            raise ArgumentError(f"expected [strength, 'Channels'], got {regim!r}", argument=path)
        check_strength(regim[0], (*path, 0))
        if regim[1] != "Channels":
            raise ArgumentError(
                f"unknown group type {regim[1]!r}. {did_you_mean(str(regim[1]), ('Channels',))}", argument=(*path, 1)
            )

    def check_parameter(self, name: str, parameter: Tensor, target: str) -> None:
        """The weight must have two or more input channels, or there is no variance."""
        if parameter.dim() < 2 or parameter.size(1) < 2:
            raise TargetError(
                f"{name!r} of shape {list(parameter.shape)} has no variance over input channels: it needs two or more",
                argument=("reg_regims", target),
            )

    def penalty(self, name: str, param: Tensor) -> Tensor:
        """``strength / var(channel norms)``, a scalar."""
        return float(self.regim(name)[0]) / torch.var(channel_norms(param)).clamp_min(_LEAST_VARIANCE)
