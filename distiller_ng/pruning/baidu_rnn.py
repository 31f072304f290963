"""Gradual pruning of recurrent networks by a rising threshold (layer 2)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from distiller_ng.core.context import StepContext
from distiller_ng.core.window import PolicyWindow
from distiller_ng.errors import ArgumentError
from distiller_ng.names import ParameterIndex
from distiller_ng.pruning._checks import check_number, check_weights
from distiller_ng.pruning._threshold import ThresholdPruner, elapsed_epochs
from distiller_ng.pruning.base import PRUNERS, MaskGroup, Scope, Target, targets_of_list
from distiller_ng.pruning.sparsity_schedules.base import ScheduleLike

__all__ = ["BaiduRNNPruner"]


@PRUNERS.register("BaiduRNNPruner", injected=("name",))
class BaiduRNNPruner(ThresholdPruner):
    """A threshold that rises slowly at first and faster from the ramp epoch on: ``mask = |w| > eps``.

    In epoch ``e`` of a window ``start .. end`` with frequency ``f``, and ``ramp = start + ramp_epoch_offset``::

        theta = 2 * q * f / (2 * (ramp - start) + 3 * (end - ramp))       phi = theta * ramp_slope_mult
        eps = theta * (e - start + 1) / f                                            for e < ramp
        eps = (theta * (ramp - start + 1) + phi * (e - ramp + 1)) / f                from then on

    ``q`` is a typical magnitude of the weights to prune, in their units (the source takes the 90th percentile of a
    dense model's); ``ramp_epoch_offset`` is in epochs. A list of ``epochs`` counts as frequency 1. ``schedule``
    multiplies eps; ``scope`` changes nothing; ``pattern``: see :class:`ThresholdPruner`.

    Source: S. Narang et al., "Exploring Sparsity in Recurrent Neural Networks", https://arxiv.org/abs/1704.05119. With
    ``q = 0.15``, offset 3, multiplier 2, epochs 4 to 21 every 3: theta = 0.9 / 48 = 0.01875; epoch 4 has
    eps = 0.00625, epoch 7 (the ramp) 0.0375::

        pruners:
          lstm:
            class: BaiduRNNPruner
            q: 0.15
            ramp_epoch_offset: 3
            ramp_slope_mult: 2
            weights: [rnn.weight_ih_l0, rnn.weight_hh_l0]

    Raises :class:`ArgumentError` for negative arguments, an open window, or one that ends so long before the ramp that
    no slope fits.
    """

    def __init__(
        self,
        name: str,
        q: float,
        ramp_epoch_offset: float,
        ramp_slope_mult: float,
        weights: str | Sequence[str],
        *,
        schedule: ScheduleLike | None = None,
        scope: Scope = "layer",
        pattern: str | int | None = None,
    ) -> None:
        super().__init__(name, schedule=schedule, scope=scope, pattern=pattern)
        self.q = check_number(q, ("q",), low=0)
        self.ramp_epoch_offset = check_number(ramp_epoch_offset, ("ramp_epoch_offset",), low=0)
        self.ramp_slope_mult = check_number(ramp_slope_mult, ("ramp_slope_mult",), low=0)
        self.weights = check_weights(weights)

    def targets(self) -> Sequence[Target]:
        """``weights``."""
        return targets_of_list("weights", self.weights)

    def check(self, window: PolicyWindow, parameters: ParameterIndex) -> None:
        """Refuses windows without an end, or with one too early for the ramp."""
        super().check(window, parameters)
        if math.isinf(window.end):
            raise ArgumentError(
                f"pruner {self.owner!r} spreads its threshold over the window: give ending_epoch",
                argument=("ending_epoch",),
            )
        self._slope(window)

    def threshold(self, name: str, group: MaskGroup, ctx: StepContext) -> float:
        """``eps`` of the context's epoch."""
        theta = self._slope(ctx.window)
        frequency = ctx.window.frequency or 1
        elapsed = elapsed_epochs(ctx)
        if elapsed < self.ramp_epoch_offset:
            return theta * (elapsed + 1) / frequency
        ramped = self.ramp_slope_mult * (elapsed - self.ramp_epoch_offset + 1)
        return theta * (self.ramp_epoch_offset + 1 + ramped) / frequency

    def _slope(self, window: PolicyWindow) -> float:
        """``theta``; a function of the window alone, so it needs no saving."""
        until_ramp = self.ramp_epoch_offset
        after_ramp = window.end - window.start - until_ramp
        span = 2 * until_ramp + 3 * after_ramp
        if span <= 0:
            raise ArgumentError(
                f"ramp_epoch_offset ({until_ramp:g}) lies too far behind the window's {window.end - window.start:g} "
                "epochs",
                argument=("ramp_epoch_offset",),
            )
        return 2 * self.q * (window.frequency or 1) / span
