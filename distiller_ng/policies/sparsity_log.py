"""The extension that logs how sparse the model is while it trains (layer 3)."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from distiller_ng.core.context import StepContext
from distiller_ng.core.policy import Policy
from distiller_ng.core.window import PolicyWindow
from distiller_ng.names import ALL_PRUNABLE, ParameterIndex
from distiller_ng.policies.extensions import EXTENSIONS
from distiller_ng.registry import RecipeTag

__all__ = ["SparsityLog"]

logger = logging.getLogger(__name__)


@EXTENSIONS.register(
    "SparsityLog",
    recipe_tag=RecipeTag("SparsificationLoggingModifier", end_epoch=-1.0, update_frequency=1.0, params=None),
)
class SparsityLog(Policy):
    """Logs, at every update of its window, the share of zeros in each of the ``weights`` (targets) and in all of them.

    Through :mod:`logging`, level INFO, one line an update. Nothing is changed.

    Source: SparseML's ``SparsificationLoggingModifier``. ``epoch 2.5: sparsity 0.7500 (conv1.weight 0.5000, fc.weight
    0.8000)`` every half epoch::

        extensions:
          log: {class: SparsityLog}
        policies:
          - extension: {instance_name: log}
            starting_epoch: 0
            ending_epoch: -1
            frequency: 0.5
            trigger: step
    """

    def __init__(self, weights: str | Sequence[str] = ALL_PRUNABLE) -> None:
        self.weights = weights

    def on_epoch_begin(self, ctx: StepContext) -> None:
        """Log."""
        self.on_update(ctx)

    def on_update(self, ctx: StepContext) -> None:
        """Log."""
        names = ctx.parameters.select(self.weights, argument=("weights",))
        zeros = {name: int((ctx.parameters[name].detach() == 0).sum()) for name in names}
        sizes = {name: max(ctx.parameters[name].numel(), 1) for name in names}
        total = sum(zeros.values()) / sum(sizes.values())
        parts = ", ".join(f"{name} {zeros[name] / sizes[name]:.4f}" for name in names)
        logger.info("epoch %g: sparsity %.4f (%s)", ctx.position.fraction, total, parts)

    def on_window_end(self, ctx: StepContext) -> None:
        """Log once more."""
        self.on_update(ctx)

    def check(self, window: PolicyWindow, parameters: ParameterIndex) -> None:
        """The names must exist."""
        parameters.select(self.weights, argument=("weights",))
