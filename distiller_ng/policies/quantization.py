"""The quantization policy: when a model computes with quantized weights and activations (layer 3)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from numbers import Real
from typing import Any

from distiller_ng.core.context import StepContext
from distiller_ng.core.policy import Policy
from distiller_ng.core.window import PolicyWindow
from distiller_ng.errors import ArgumentError, ScheduleWarning
from distiller_ng.names import ParameterIndex, unwrap
from distiller_ng.quantization.base import Quantizer, quantization_of

__all__ = ["QuantizationPolicy"]


class QuantizationPolicy(Policy):
    """Runs one quantizer: the model is prepared when the policy joins a schedule, and computes quantized in the window.

    With ``starting_epoch: 0`` quantization acts from the start; with a later one the model trains in floating point
    until then (a warm start), although everything the quantizer adds (learned ranges, steps) is in the model and the
    optimizer from the beginning. After the window the model stays quantized.

    ``disable_observer_epoch``: from this epoch on the ranges of activations no longer follow the data.
    ``freeze_bn_epoch``: from this epoch on batch norms keep their running statistics and use them in training too
    (their scale and shift go on learning). Both are in epochs, absolute and 0-based.

    Source of the two freezes: R. Krishnamoorthi, "Quantizing deep convolutional networks for efficient inference",
    https://arxiv.org/abs/1806.08342. In a schedule::

        policies:
          - quantizer:
              instance_name: low_bits
              args: {freeze_bn_epoch: 60}
            starting_epoch: 10
            ending_epoch: 90
            frequency: 1
    """

    def __init__(
        self,
        quantizer: Quantizer,
        *,
        disable_observer_epoch: float | None = None,
        freeze_bn_epoch: float | None = None,
    ) -> None:
        if not isinstance(quantizer, Quantizer):
            raise ArgumentError(f"expected a Quantizer, got {type(quantizer).__name__}", argument=("quantizer",))
        self.quantizer = quantizer
        self.disable_observer_epoch = _epoch("disable_observer_epoch", disable_observer_epoch)
        self.freeze_bn_epoch = _epoch("freeze_bn_epoch", freeze_bn_epoch)
        if disable_observer_epoch is not None and not quantizer.has_observers:
            raise ArgumentError(
                f"{type(quantizer).__name__} does not follow the ranges of activations: leave disable_observer_epoch "
                "out",
                argument=("disable_observer_epoch",),
            )

    # -- hooks ------------------------------------------------------------------------------------------------------

    def on_added(self, ctx: StepContext) -> None:
        """Prepare the model; it waits in floating point if the window begins later."""
        quantizer, first = self.quantizer, not self.quantizer.is_scheduled
        quantizer.is_scheduled = True
        # A model that a checkpoint's record quantized goes on as it was.
        goes_on = not quantizer.is_prepared and quantization_of(quantizer.model) is not None
        if not quantizer.is_prepared:
            quantizer.prepare_model(ctx.example_inputs)
        if ctx.window.start <= 0:
            quantizer.enable()
            self._freeze(ctx)
            self._overwrite(ctx)
        elif first and not goes_on:
            quantizer.wait()

    def on_epoch_begin(self, ctx: StepContext) -> None:
        """Quantize from now on, and freeze what is due."""
        self._act(ctx)

    def on_update(self, ctx: StepContext) -> None:
        """Quantize from now on: the start of a fractional window."""
        self._act(ctx)

    def on_minibatch_begin(self, ctx: StepContext) -> None:
        """Freeze what is due inside an epoch."""
        self._freeze(ctx)

    def on_minibatch_end(self, ctx: StepContext) -> None:
        """Quantize the updated parameters, where the quantizer overwrites them."""
        if ctx.is_step and self.quantizer.is_enabled:
            self._overwrite(ctx)

    def listens_to(self, hook: str) -> bool:
        """Nothing in a minibatch, for most quantizers: every forward pass quantizes by itself."""
        if hook == "on_minibatch_begin":
            return self.disable_observer_epoch is not None or self.freeze_bn_epoch is not None
        if hook == "on_minibatch_end":
            return not self.quantizer.train_with_fp_copy and self.quantizer.quantizes_parameters
        return super().listens_to(hook)

    # -- checks and state -------------------------------------------------------------------------------------------

    def check(self, window: PolicyWindow, parameters: ParameterIndex) -> None:
        """Plan the quantization; raises what the quantizer's plan does, and for freezes without anything to freeze."""
        if unwrap(self.quantizer.model) is not unwrap(parameters.model):
            raise ArgumentError("the quantizer belongs to another model than the schedule", argument=("quantizer",))
        plan = self.quantizer.plan()
        if not self.quantizer.is_prepared:
            for text in plan.warnings:
                warnings.warn(text, ScheduleWarning, stacklevel=3)
        if self.freeze_bn_epoch is not None and not self.quantizer.batch_norms():
            message = "the model has no batch norm with running statistics: leave freeze_bn_epoch out"
            if not self.quantizer.tolerates_missing_norms:
                raise ArgumentError(message, argument=("freeze_bn_epoch",))
            warnings.warn(message, ScheduleWarning, stacklevel=3)

    def describe(self) -> str:
        """The quantizer's class."""
        return f"quantizer ({type(self.quantizer).__name__})"

    def state_dict(self) -> dict[str, Any]:
        """Whether the quantization acts, and what is frozen."""
        return self.quantizer.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`state_dict`; the model's own values (ranges, steps) are in its state dict."""
        self.quantizer.load_state_dict(state)

    # -- internals --------------------------------------------------------------------------------------------------

    def _act(self, ctx: StepContext) -> None:
        starts = not self.quantizer.is_enabled
        self.quantizer.enable()
        self._freeze(ctx)
        if starts:
            self._overwrite(ctx)

    def _overwrite(self, ctx: StepContext) -> None:
        """Quantize in place; masked weights go back to zero, for not every function keeps it."""
        if self.listens_to("on_minibatch_end"):  # else forward passes quantize by themselves
            self.quantizer.quantize_params()
            ctx.masks.project_()

    def _freeze(self, ctx: StepContext) -> None:
        now = ctx.position.fraction
        if self.disable_observer_epoch is not None and now >= self.disable_observer_epoch and self.quantizer.observes:
            self.quantizer.freeze_observers()
        if self.freeze_bn_epoch is not None and now >= self.freeze_bn_epoch and not self.quantizer.bn_is_frozen:
            self.quantizer.freeze_batch_norms()


def _epoch(name: str, value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value) or value < 0:
        raise ArgumentError(f"{name} is an epoch from 0, got {value!r}", argument=(name,))
    return float(value)
