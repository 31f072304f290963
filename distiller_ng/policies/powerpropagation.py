"""The extension that makes small weights learn slowly, so that more of them can be pruned (layer 3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from distiller_ng.core.context import StepContext
from distiller_ng.errors import ArgumentError
from distiller_ng.names import ALL_PRUNABLE
from distiller_ng.policies._reparametrized import Function, ReparametrizingPolicy
from distiller_ng.policies.extensions import EXTENSIONS
from distiller_ng.registry import RecipeTag

__all__ = ["Powerpropagation"]


@dataclass(frozen=True, slots=True)
class _Power:
    alpha: float

    def __call__(self, stored: Tensor) -> Tensor:
        """``v |v|^(alpha - 1)``."""
        return stored if self.alpha == 1 else stored * stored.abs().pow(self.alpha - 1)


@EXTENSIONS.register(
    "Powerpropagation",
    recipe_tag=RecipeTag(
        "PowerpropagationModifier",
        update_frequency=0.0,
        fixed_frequency=True,
        strict="strict",
    ),
)
class Powerpropagation(ReparametrizingPolicy):
    """Layers compute with ``w = v |v|^(alpha - 1)`` and learn ``v``: rich weights get richer, poor ones stay near zero.

    When the window begins ``v`` becomes ``sign(w) |w|^(1 / alpha)``, so that outputs are the same, and when it ends
    ``w`` is put back, again without any change of outputs. Magnitude pruners rank alike by ``v`` and ``w``. ``alpha``
    is 1 (no change) or more. ``weights``: targets (linear, convolution and embedding layers).

    Source: J. Schwarz et al., "Powerpropagation: A sparsity inducing weight reparameterisation",
    https://arxiv.org/abs/2110.00296. With alpha 2 the weight -0.25 is learned as -0.5::

        extensions:
          power:
            class: Powerpropagation
            alpha: 2.0
        policies:
          - extension: {instance_name: power}
            starting_epoch: 0
            ending_epoch: 30

    Raises :class:`ArgumentError` for an alpha below 1.
    """

    def __init__(self, weights: str | Sequence[str] = ALL_PRUNABLE, *, alpha: float = 1.0) -> None:
        super().__init__(weights)
        if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 1 <= alpha < float("inf"):
            raise ArgumentError(f"alpha is a number from 1, got {alpha!r}", argument=("alpha",))
        self.alpha = float(alpha)

    def function(self, name: str) -> Function:
        """``v |v|^(alpha - 1)``."""
        return _Power(self.alpha)

    @torch.no_grad()
    def begin(self, ctx: StepContext) -> None:
        """From ``w`` to ``v``."""
        for name in self._names:
            weight = ctx.parameters[name]
            weight.copy_(weight.sign() * weight.abs().pow(1 / self.alpha))
