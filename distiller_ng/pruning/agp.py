"""Automated gradual pruning of single weights (layer 2)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import ClassVar, Protocol, TypeAlias

from distiller_ng.core.context import StepContext
from distiller_ng.core.window import PolicyWindow
from distiller_ng.errors import ArgumentError, ScheduleWarning
from distiller_ng.names import ParameterIndex
from distiller_ng.pruning._checks import check_weights
from distiller_ng.pruning._level import ElementLevelPruner
from distiller_ng.pruning.base import PRUNERS, Scope, Target, targets_of_list
from distiller_ng.pruning.sparsity_schedules.agp import AGP
from distiller_ng.pruning.sparsity_schedules.base import ScheduleLike

__all__ = ["AgpPruningRate", "AutomatedGradualPruner", "RateScheduler", "RateSchedulerFactory", "agp_schedule"]


class RateScheduler(Protocol):
    """A sparsity by epoch, Distiller's interface."""

    def step(self, current_epoch: int, starting_epoch: int, ending_epoch: int, freq: int) -> float:
        """The sparsity 0..1 to reach in ``current_epoch`` of ``range(starting_epoch, ending_epoch, freq)``."""
        ...


#: Called with the initial and the final sparsity.
RateSchedulerFactory: TypeAlias = Callable[[float, float], RateScheduler]


class AgpPruningRate:
    """The AGP curve by epoch: ``s = sf + (si - sf) * (1 - (e - start) / span)^3``.

    ``span = ((end - start - 1) // freq) * freq`` reaches the last active epoch, so that this one gets exactly ``sf``.

    >>> AgpPruningRate(0.05, 0.85).step(2, 0, 5, 2)
    0.75

    Raises :class:`ArgumentError` unless ``0 <= initial < final <= 1``, and from :meth:`step` for a window of one epoch.
    """

    def __init__(self, initial_sparsity: float, final_sparsity: float) -> None:
        self._curve = AGP(initial_sparsity=initial_sparsity, final_sparsity=final_sparsity)

    def step(self, current_epoch: int, starting_epoch: int, ending_epoch: int, freq: int) -> float:
        """The sparsity of ``current_epoch``."""
        span = (ending_epoch - starting_epoch - 1) // freq * freq
        if span <= 0:
            raise ArgumentError(
                f"AGP needs two active epochs or more: {starting_epoch} to {ending_epoch} every {freq} has one",
                argument=("ending_epoch",),
            )
        return self._curve.target((current_epoch - starting_epoch) / span)


@PRUNERS.register("AutomatedGradualPruner", injected=("name",))
class AutomatedGradualPruner(ElementLevelPruner):
    """Prunes the weights of lowest magnitude, many at first and ever fewer, to a final sparsity (AGP).

    Between the policy's first and last active epoch the sparsity follows :class:`AGP` from ``initial_sparsity`` to
    ``final_sparsity`` (0..1, the second larger); exactly ``int(s * n)`` of a tensor's ``n`` weights are pruned.
    ``weights`` are targets: names, ``re:`` patterns, ``__ALL_PRUNABLE__``. ``schedule`` replaces the AGP curve;
    ``rate_scheduler_factory`` (Python only) is called with both sparsities and returns an object with
    ``step(current_epoch, starting_epoch, ending_epoch, freq)``. ``scope`` and ``pattern``: see :class:`LevelPruner`.

    Source: M. Zhu and S. Gupta, "To prune, or not to prune: exploring the efficacy of pruning for model compression",
    https://arxiv.org/abs/1710.01878. From 0.05 to 0.85 in epochs 0, 2 and 4 the sparsities are 0.05, 0.75, 0.85::

        pruners:
          conv_pruner:
            class: AutomatedGradualPruner
            initial_sparsity: 0.05
            final_sparsity: 0.85
            weights: [conv1.weight, 're:layer.*conv.*weight']
        policies:
          - pruner: {instance_name: conv_pruner}
            starting_epoch: 0
            ending_epoch: 5
            frequency: 2

    Raises :class:`ArgumentError` for sparsities out of range or in the wrong order.
    """

    level_argument: ClassVar[str] = "final_sparsity"

    def __init__(
        self,
        name: str,
        initial_sparsity: float | None = None,
        final_sparsity: float | None = None,
        weights: str | Sequence[str] = (),
        rate_scheduler_factory: RateSchedulerFactory | None = None,
        *,
        schedule: ScheduleLike | None = None,
        scope: Scope = "layer",
        pattern: str | int | None = None,
    ) -> None:
        curve = agp_schedule(initial_sparsity, final_sparsity, schedule)
        super().__init__(name, None, schedule=curve, scope=scope, pattern=pattern)
        self.weights = check_weights(weights)
        self._rate: RateScheduler | None = None
        if rate_scheduler_factory is not None:
            if initial_sparsity is None or final_sparsity is None:
                message = "rate_scheduler_factory needs initial_sparsity and final_sparsity"
                raise ArgumentError(message, argument=("rate_scheduler_factory",))
            self._rate = rate_scheduler_factory(initial_sparsity, final_sparsity)

    def targets(self) -> Sequence[Target]:
        """``weights``."""
        return targets_of_list("weights", self.weights)

    def check(self, window: PolicyWindow, parameters: ParameterIndex) -> None:
        """Refuses a window without an end."""
        super().check(window, parameters)
        if self._rate is not None and math.isinf(window.end):
            raise ArgumentError(
                f"pruner {self.owner!r} spreads its rate over the window: give ending_epoch", argument=("ending_epoch",)
            )

    def level(self, name: str, ctx: StepContext) -> float | None:
        """The custom rate's sparsity, or the curve's."""
        override = self._override(name)
        if self._rate is None or override is not None:
            return super().level(name, ctx)
        return _rated(self._rate, ctx.window, ctx.epoch)

    def planned_sparsity(self, name: str, window: PolicyWindow) -> float | None:
        """The custom rate's last sparsity, or the curve's."""
        last = window.last_epoch
        if self._rate is None or last is None or self.scope == "global":
            return super().planned_sparsity(name, window)
        return _rated(self._rate, window, last)


def agp_schedule(
    initial_sparsity: float | None, final_sparsity: float | None, schedule: ScheduleLike | None
) -> ScheduleLike:
    """The AGP curve between two sparsities, or ``schedule`` where that is given; with both it wins, with a warning.

    Raises :class:`ArgumentError` when one sparsity is missing or they do not make an AGP curve.
    """
    if schedule is not None and initial_sparsity is None and final_sparsity is None:
        return schedule
    if initial_sparsity is None:
        raise ArgumentError("initial_sparsity is missing; it may be 0", argument=("initial_sparsity",))
    if final_sparsity is None:
        raise ArgumentError("final_sparsity is missing", argument=("final_sparsity",))
    curve = AGP(initial_sparsity=initial_sparsity, final_sparsity=final_sparsity)
    if schedule is not None:
        message = "schedule replaces the AGP curve; leave initial_sparsity and final_sparsity out"
        warnings.warn(ScheduleWarning(message), stacklevel=3)
        return schedule
    return curve


def _rated(rate: RateScheduler, window: PolicyWindow, epoch: int) -> float:
    return rate.step(epoch, int(window.start), int(window.end), int(window.frequency or 1))
