"""The policy that adds a regularizer's penalties to the loss and applies its thresholds (layer 3)."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from distiller_ng.core.context import StepContext
from distiller_ng.core.policy import LossComponent, Policy, PolicyLoss
from distiller_ng.core.window import PolicyWindow
from distiller_ng.errors import ArgumentError, CheckpointError, LifecycleError, ScheduleWarning
from distiller_ng.names import ParameterIndex
from distiller_ng.regularization.base import Regularizer

__all__ = ["RegularizationPolicy"]


class RegularizationPolicy(Policy):
    """Adds the penalties of ``regularizer`` to the loss in its window, and zeroes small groups after every step.

    The added term is the loss component ``<class name>_loss``. With a ``threshold_criteria`` the regularizer's
    threshold masks multiply the weights once after each optimizer step: what fell to zero may come back in the next.
    ``keep_mask=True`` keeps the masks of the window's very last step for good, under the regularizer's name as owner;
    when training stops inside the window, those of the last step there was.

    Example, 0.1 * sum |w| on one weight::

        policy = RegularizationPolicy(L1Regularizer("l1", model, {"fc.weight": 0.1}))
        scheduler.add_policy(policy, starting_epoch=0, ending_epoch=60)

    In a schedule::

        policies:
          - regularizer:
              instance_name: my_l1
              args: {keep_mask: true}
            starting_epoch: 0
            ending_epoch: 60
            frequency: 1
    """

    def __init__(self, regularizer: Regularizer, keep_mask: bool = False) -> None:
        if not isinstance(regularizer, Regularizer):
            raise ArgumentError(f"expected a regularizer, got {type(regularizer).__name__}", argument=("regularizer",))
        if not isinstance(keep_mask, bool):
            raise ArgumentError(f"keep_mask is true or false, got {keep_mask!r}", argument=("keep_mask",))
        if keep_mask and regularizer.threshold_criteria is None:
            warnings.warn(
                f"keep_mask has no effect: regularizer {regularizer.name!r} has no threshold_criteria, so no masks",
                ScheduleWarning,
                stacklevel=2,
            )
        self.regularizer = regularizer
        self.keep_mask = keep_mask
        self._kept = False  # whether the masks of the last step so far were kept

    def check(self, window: PolicyWindow, parameters: ParameterIndex) -> None:
        """Every target of ``reg_regims`` must match; raises :class:`TargetError`."""
        self.regularizer.bind(parameters)

    def listens_to(self, hook: str) -> bool:
        """Steps are of interest only with a threshold."""
        if hook in ("on_minibatch_end", "on_window_end") and self.regularizer.threshold_criteria is None:
            return False
        return super().listens_to(hook)

    def describe(self) -> str:
        """``RegularizationPolicy(my_l1: L1Regularizer)``."""
        return f"RegularizationPolicy({self.regularizer.name}: {type(self.regularizer).__name__})"

    def before_backward_pass(self, ctx: StepContext) -> PolicyLoss:
        """The loss plus the sum of penalties, computed in float32 (float64 parameters: float64) even under autocast.

        ``ctx.loss`` is not changed. Raises :class:`LifecycleError` without one.
        """
        if ctx.loss is None:
            raise LifecycleError("before_backward_pass was called without a loss to add the penalty to")
        total = self._penalty(ctx.parameters, ctx.loss)
        return PolicyLoss(ctx.loss + total, [LossComponent(f"{type(self.regularizer).__name__}_loss", total)])

    def on_minibatch_end(self, ctx: StepContext) -> None:
        """After a real optimizer step: soft-threshold the weights, and keep the masks if this was the last one."""
        if not ctx.is_step or self.regularizer.threshold_criteria is None:
            return
        masks = self._apply_thresholds_(ctx)
        self._kept = self.keep_mask and ctx.is_last_minibatch and ctx.window.is_last(ctx.epoch)
        if self._kept:
            self._keep(ctx, masks)

    def on_window_end(self, ctx: StepContext) -> None:
        """A window that closed without its last step (training stopped, fractions of epochs) keeps its masks now."""
        if self.keep_mask and not self._kept and self.regularizer.threshold_criteria is not None:
            self._keep(ctx, self._apply_thresholds_(ctx))
            self._kept = True

    def state_dict(self) -> dict[str, Any]:
        """The regularizer's state, and whether the masks were kept."""
        return {"kept": self._kept, "regularizer": self.regularizer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`state_dict`; raises :class:`CheckpointError` when it has other keys."""
        if set(state) != {"kept", "regularizer"}:
            raise CheckpointError(f"{self.describe()} expects the keys kept and regularizer, got {sorted(state)}")
        self.regularizer.load_state_dict(state["regularizer"])
        self._kept = bool(state["kept"])

    # -- internals --------------------------------------------------------------------------------------------------

    def _names(self, parameters: ParameterIndex) -> list[str]:
        return self.regularizer.names or self.regularizer.bind(parameters)

    def _penalty(self, parameters: ParameterIndex, loss: Tensor) -> Tensor:
        total = torch.zeros((), device=loss.device)
        with _without_autocast(loss.device.type):
            for name in self._names(parameters):
                param: Tensor = parameters[name]
                if param.dtype in (torch.float16, torch.bfloat16):
                    param = param.float()
                penalty = self.regularizer.penalty(name, param)
                if penalty is not None:
                    total = total + penalty.to(loss.device)
        return total

    @torch.no_grad()
    def _apply_thresholds_(self, ctx: StepContext) -> dict[str, Tensor]:
        """Zero, in place and once, what the masks drop; pruners' masks are left alone. Returns the masks."""
        masks: dict[str, Tensor] = {}
        for name in self._names(ctx.parameters):
            mask = self.regularizer.threshold_mask(name, ctx.parameters[name].detach())
            if mask is not None:
                masks[name] = mask
        if masks:
            torch._foreach_mul_([ctx.parameters[name] for name in masks], list(masks.values()))
        return masks

    def _keep(self, ctx: StepContext, masks: Mapping[str, Tensor]) -> None:
        for name, mask in masks.items():
            ctx.masks.set(name, mask, owner=self.regularizer.name, binary=True)


def _without_autocast(device_type: str) -> contextlib.AbstractContextManager[Any]:
    if torch.is_autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return contextlib.nullcontext()
