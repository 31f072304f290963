"""The extension that sets the weight decay once (layer 3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from distiller_ng.core.context import StepContext
from distiller_ng.core.policy import Policy
from distiller_ng.policies._optimizer_values import check_groups, write_groups
from distiller_ng.policies.extensions import EXTENSIONS
from distiller_ng.pruning._checks import check_number
from distiller_ng.registry import RecipeTag

__all__ = ["SetWeightDecay"]


@EXTENSIONS.register(
    "SetWeightDecay",
    recipe_tag=RecipeTag(
        "SetWeightDecayModifier",
        start_epoch=-1.0,
        ends="ignored",
        update_frequency=0.0,
        fixed_frequency=True,
        params=None,
        spellings={"groups": "param_groups"},
        ignored={"constant_logging": "what is logged is the loggers' business"},
    ),
)
class SetWeightDecay(Policy):
    """Sets the optimizer's weight decay to ``weight_decay`` (0 or more) when its window starts.

    ``param_groups``: numbers of the optimizer's groups to set (default: all).

    Source: SparseML's ``SetWeightDecayModifier``. A decay of 0.01 from epoch 5 on, whatever it was before::

        extensions:
          decay: {class: SetWeightDecay, weight_decay: 0.01}
        policies:
          - extension: {instance_name: decay}
            starting_epoch: 5
            ending_epoch: -1
            frequency: 0
            trigger: step

    Raises :class:`ArgumentError` for a decay below 0.
    """

    def __init__(self, weight_decay: float, *, param_groups: Sequence[int] | None = None) -> None:
        self.weight_decay = check_number(weight_decay, ("weight_decay",), low=0)
        self.param_groups = check_groups(param_groups)
        self._is_done = False

    def on_epoch_begin(self, ctx: StepContext) -> None:
        """In a window of whole epochs: once, in its first."""
        if not self._is_done:
            self.on_update(ctx)

    def on_update(self, ctx: StepContext) -> None:
        """Set it."""
        self._is_done = True
        write_groups(ctx, self.param_groups, "weight_decay", self.weight_decay, "SetWeightDecay")

    def state_dict(self) -> dict[str, Any]:
        """Whether it was set; the value itself is in the optimizer's state."""
        return {"is_done": self._is_done}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`state_dict`."""
        self._is_done = bool(state["is_done"])
