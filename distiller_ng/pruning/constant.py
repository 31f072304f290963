"""Keeping a sparse model as sparse as it is (layer 2)."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor

from distiller_ng.core.context import StepContext
from distiller_ng.core.window import PolicyWindow
from distiller_ng.errors import CheckpointError
from distiller_ng.names import ALL, ALL_PRUNABLE, ParameterIndex
from distiller_ng.ops.patterns import nm_mask
from distiller_ng.pruning._checks import check_number, check_weights
from distiller_ng.pruning.base import PRUNERS, MaskGroup, Pruner, Scope, Target, targets_of_list
from distiller_ng.pruning.sparsity_schedules.base import ScheduleLike
from distiller_ng.registry import RecipeTag

__all__ = ["ConstantPruner"]

logger = logging.getLogger(__name__)


@PRUNERS.register(
    "ConstantPruner",
    injected=("name",),
    recipe_tag=RecipeTag(
        "ConstantPruningModifier",
        start_epoch=-1.0,
        end_epoch=-1.0,
        update_frequency=0.0,
        fixed_frequency=True,
        fixed_policy_args={"leave_enabled": False},
    ),
)
class ConstantPruner(Pruner):
    """Holds the zeros that weights have when the policy's window starts, for transfer learning with a sparse model.

    The mask ``w != 0`` is taken once; after the window the weights may move again only where the policy says
    ``leave_enabled: false`` (as recipes do) and the window ends before training does. ``weights`` are targets. What
    ``__ALL__`` names is held only where it is sparse: at least ``min_sparsity`` of it zeros, but not all of it, so that
    biases that start at zero go on learning; a message says which parameters are left dense.

    Source: SparseML's ``ConstantPruningModifier``. ``[0, 0.5, 0, 2]`` stays zero where it is zero::

        pruners:
          hold:
            class: ConstantPruner
            weights: __ALL__
        policies:
          - pruner: {instance_name: hold}
            starting_epoch: 0
            ending_epoch: -1
            frequency: 1

    ``schedule`` and ``scope`` say nothing to it; a ``pattern`` is made sure of: what exceeds N of M is zeroed too.
    Raises :class:`ArgumentError` for a ``min_sparsity`` outside 0..1.
    """

    resets_optimizer_state: ClassVar[bool] = True

    def __init__(
        self,
        name: str,
        weights: str | Sequence[str] = ALL_PRUNABLE,
        *,
        min_sparsity: float = 0.05,
        schedule: ScheduleLike | None = None,
        scope: Scope = "layer",
        pattern: str | int | None = None,
    ) -> None:
        super().__init__(name, schedule=schedule, scope=scope, pattern=pattern)
        self.weights = check_weights(weights)
        self.min_sparsity = check_number(min_sparsity, ("min_sparsity",), low=0, high=1)
        self._held: dict[str, bool] = {}
        self._found: dict[str, float] = {}  # sparsity of each target when it joined its schedule, then when it was held

    def targets(self) -> Sequence[Target]:
        """``weights``."""
        return targets_of_list("weights", self.weights)

    def compute_masks(self, group: MaskGroup, ctx: StepContext) -> Mapping[str, Tensor]:
        """The first time only."""
        masks: dict[str, Tensor] = {}
        left: list[str] = []
        for name in group.names:
            if name in self._held:
                continue
            weight = ctx.parameters[name].detach()
            self._held[name] = self._is_held(name, weight)
            if self._held[name]:
                masks[name] = (weight != 0).to(weight.dtype)
                self._found[name] = _zeros(weight)
                if self.pattern is not None:
                    masks[name] *= nm_mask(weight.abs(), self.pattern)
            elif self.target_of(name) == ALL:
                left.append(name)
        if left:
            logger.info("pruner %r holds no zeros of %s: not sparse", self.owner, ", ".join(left))
        return masks

    def groups(self, parameters: ParameterIndex) -> Sequence[MaskGroup]:
        """All at once: each is decided alone anyway."""
        return [MaskGroup(tuple(self.names))] if self.names else []

    def check(self, window: PolicyWindow, parameters: ParameterIndex) -> None:
        """Says what a model that is not sparse means."""
        super().check(window, parameters)
        self._found |= {name: _zeros(parameters[name]) for name in self.names if name not in self._held}
        if not any(self._found.values()) and self.pattern is None:
            logger.warning("pruner %r has nothing to hold: none of its weights has zeros yet", self.owner)

    def planned_sparsity(self, name: str, window: PolicyWindow) -> float | None:
        """What it is when holding begins; None for what is not held."""
        if self.pattern is not None or not self._held.get(name, True):
            return None
        return self._found.get(name)

    def state_dict(self) -> dict[str, Any]:
        """What is held; the masks themselves are the scheduler's."""
        return {**super().state_dict(), "held": dict(self._held), "found": dict(self._found)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`state_dict`; raises :class:`CheckpointError` for one without ``held``."""
        if "held" not in state:
            raise CheckpointError(f"pruner {self.owner!r}: the checkpoint does not say what is held")
        super().load_state_dict({key: value for key, value in state.items() if key not in ("held", "found")})
        self._held = {name: bool(held) for name, held in state["held"].items()}
        self._found |= {name: float(found) for name, found in state.get("found", {}).items()}

    def _is_held(self, name: str, weight: Tensor) -> bool:
        sparsity = _zeros(weight)
        if self.target_of(name) != ALL:
            return sparsity > 0 or self.pattern is not None
        return max(self.min_sparsity, sys.float_info.min) <= sparsity < 1


def _zeros(weight: Tensor) -> float:
    return float((weight.detach() == 0).sum()) / max(weight.numel(), 1)
