"""The extension that sets learning rates once (layer 3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from distiller_ng.core.context import StepContext
from distiller_ng.core.policy import Policy
from distiller_ng.policies._optimizer_values import check_groups, check_rate, write_groups
from distiller_ng.policies.extensions import EXTENSIONS
from distiller_ng.registry import RecipeTag

__all__ = ["SetLearningRate"]


@EXTENSIONS.register(
    "SetLearningRate",
    recipe_tag=RecipeTag(
        "SetLearningRateModifier",
        start_epoch=-1.0,
        ends="ignored",
        update_frequency=0.0,
        fixed_frequency=True,
        params=None,
        spellings={"groups": "param_groups"},
        ignored={"constant_logging": "what is logged is the loggers' business"},
    ),
)
class SetLearningRate(Policy):
    """Sets the learning rate to ``learning_rate`` when its window starts.

    ``param_groups``: numbers of the optimizer's groups to set (default: all). Later policies may change it again.

    Source: SparseML's ``SetLearningRateModifier``. A rate of 0.1 from epoch 5 on, whatever it was before::

        extensions:
          lr: {class: SetLearningRate, learning_rate: 0.1}
        policies:
          - extension: {instance_name: lr}
            starting_epoch: 5
            ending_epoch: -1
            frequency: 0
            trigger: step

    Raises :class:`ArgumentError` unless ``0 < learning_rate <= 1``.
    """

    def __init__(self, learning_rate: float, *, param_groups: Sequence[int] | None = None) -> None:
        self.learning_rate = check_rate("learning_rate", learning_rate, low_is_allowed=False)
        self.param_groups = check_groups(param_groups)
        self._is_done = False

    def on_epoch_begin(self, ctx: StepContext) -> None:
        """In a window of whole epochs: once, in its first."""
        if not self._is_done:
            self.on_update(ctx)

    def on_update(self, ctx: StepContext) -> None:
        """Set it."""
        self._is_done = True
        write_groups(ctx, self.param_groups, "lr", self.learning_rate, "SetLearningRate")

    def state_dict(self) -> dict[str, Any]:
        """Whether it was set."""
        return {"is_done": self._is_done}

    def load_state_dict(self, state: Any) -> None:
        """Restore :meth:`state_dict`."""
        self._is_done = bool(state["is_done"])
