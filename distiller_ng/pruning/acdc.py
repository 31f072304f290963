"""AC/DC: sparse and dense phases in turn, sparse at last (layer 2)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor

from distiller_ng.core.context import StepContext
from distiller_ng.core.position import TrainPosition
from distiller_ng.core.window import PolicyWindow
from distiller_ng.errors import ArgumentError
from distiller_ng.names import ParameterIndex
from distiller_ng.ops.mask_types import MaskTypeLike
from distiller_ng.pruning._recipes import gradual_from_recipe
from distiller_ng.pruning.base import PRUNERS, MaskGroup, Scope
from distiller_ng.pruning.gradual import GradualPruner
from distiller_ng.pruning.sparsity_schedules.base import ScheduleLike
from distiller_ng.registry import RecipeTag

__all__ = ["ACDCPruner"]

_TOLERANCE = 1e-9  # epochs


@PRUNERS.register("ACDCPruner", injected=("name",), recipe_tag=RecipeTag("ACDCPruningModifier"))
class ACDCPruner(GradualPruner):
    """Trains dense and compressed in turn, each phase one ``frequency`` of the policy long, and ends compressed.

    The first phase is dense, the last one, of at least one frequency, compressed: then the weights of lowest magnitude
    are pruned, ``compression_sparsity`` of them (0..1) over all targets (``scope: global``, the default) or in each. In
    a dense phase all weights learn, those that were pruned from 0. ``momentum_buffer_reset``: SGD's momentum is zeroed
    after the first step of a dense phase. ``mask_type``: what is pruned together. Start, end and frequency of the
    policy are whole epochs.

    Source: A. Peste et al., "AC/DC: Alternating Compressed/DeCompressed Training of Deep Neural Networks",
    https://arxiv.org/abs/2106.12379. From epoch 1 to 9 with frequency 2: dense in epochs 1, 2, compressed in 3, 4,
    dense in 5, 6, compressed from 7 on::

        pruners:
          acdc:
            class: ACDCPruner
            weights: __ALL_PRUNABLE__
            compression_sparsity: 0.9
        policies:
          - pruner: {instance_name: acdc}
            starting_epoch: 1
            ending_epoch: 9
            frequency: 2

    Raises :class:`ArgumentError` for a sparsity outside 0..1, and for a window with fractions.
    """

    level_argument: ClassVar[str] = "compression_sparsity"
    resets_optimizer_state: ClassVar[bool] = True

    def __init__(
        self,
        name: str,
        weights: str | Sequence[str] | None = None,
        *,
        compression_sparsity: float | None = None,
        momentum_buffer_reset: bool = True,
        mask_type: MaskTypeLike = "unstructured",
        schedule: ScheduleLike | None = None,
        scope: Scope = "global",
        pattern: str | int | None = None,
    ) -> None:
        if not isinstance(momentum_buffer_reset, bool):
            message = f"momentum_buffer_reset is true or false, got {momentum_buffer_reset!r}"
            raise ArgumentError(message, argument=("momentum_buffer_reset",))
        self.momentum_buffer_reset = momentum_buffer_reset
        self._is_compressed: bool | None = None
        self._reset_is_due = False
        super().__init__(
            name,
            weights,
            mask_type=mask_type,
            sparsity=compression_sparsity,
            schedule=schedule,
            scope=scope,
            pattern=pattern,
        )

    def is_compressed(self, window: PolicyWindow, position: TrainPosition) -> bool:
        """Whether the phase that a decision at ``position`` begins is a compressed one."""
        length, now = float(window.frequency or 1), position.fraction
        phase = math.floor((now - window.first) / length + _TOLERANCE) if math.isfinite(now) else 1
        return phase % 2 == 1 or now >= window.end - length - _TOLERANCE

    def compute_masks(self, group: MaskGroup, ctx: StepContext) -> Mapping[str, Tensor]:
        """Prune, or give all weights back."""
        compressed = self.is_compressed(ctx.window, ctx.position)
        if self._is_compressed and not compressed:
            self._reset_is_due = self.momentum_buffer_reset
        if group.names[-1] == self.names[-1]:  # the last group of this decision
            self._is_compressed = compressed
        if compressed:
            return super().compute_masks(group, ctx)
        ctx.masks.release(self.owner, group.names)
        return {}

    def after_step(self, ctx: StepContext) -> None:
        """Zero the momentum, once, in a dense phase."""
        if not self._reset_is_due or ctx.optimizer is None:
            return
        self._reset_is_due = False
        for optimizer in ctx.masks.optimizers:
            for state in optimizer.state.values():
                momentum = state.get("momentum_buffer")
                if isinstance(momentum, Tensor):
                    momentum.zero_()

    def planned_sparsity(self, name: str, window: PolicyWindow) -> float | None:
        """``compression_sparsity``, wherever the window ends."""
        return super().planned_sparsity(name, PolicyWindow.from_range(0, 1))

    def check(self, window: PolicyWindow, parameters: ParameterIndex) -> None:
        """Refuses fractions of epochs, and a list of epochs."""
        super().check(window, parameters)
        named = {"starting_epoch": window.start, "ending_epoch": window.end, "frequency": window.frequency}
        for argument, value in named.items():
            if value is None:
                message = (
                    f"pruner {self.owner!r} needs starting_epoch, ending_epoch and frequency, not a list of epochs"
                )
                raise ArgumentError(message, argument=("epochs",))
            if math.isfinite(value) and float(value) != int(value):
                message = f"pruner {self.owner!r}: AC/DC's phases are whole epochs, got {argument} {value:g}"
                raise ArgumentError(message, argument=(argument,))
        if (window.frequency or 0) < 1:
            message = f"pruner {self.owner!r}: frequency is the length of a phase, 1 epoch or more"
            raise ArgumentError(message, argument=("frequency",))

    def state_dict(self) -> dict[str, Any]:
        """The phase, and whether momentum is still to be zeroed."""
        own = {"is_compressed": self._is_compressed, "reset_is_due": self._reset_is_due}
        return {**super().state_dict(), **own}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`state_dict`."""
        own = ("is_compressed", "reset_is_due")
        super().load_state_dict({key: value for key, value in state.items() if key not in own})
        self._is_compressed, self._reset_is_due = state["is_compressed"], bool(state["reset_is_due"])

    @classmethod
    def from_recipe(cls, properties: Mapping[str, Any], note: Callable[[str], None]) -> dict[str, Any]:
        """See :class:`~distiller_ng.registry.RecipeTag`."""
        arguments = gradual_from_recipe(properties, note)
        if arguments.get("compression_sparsity") is None:
            message = "ACDCPruningModifier needs compression_sparsity, the sparsity of its compressed phases"
            raise ArgumentError(message, argument=("compression_sparsity",))
        return arguments
