"""Learning rates when a schedule is loaded to continue a run (layer 4)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch.optim import Optimizer

from distiller_ng.config.policies import PlannedPolicy
from distiller_ng.core.window import PolicyWindow
from distiller_ng.learning_rate.base import LRDriver

__all__ = ["continue_learning_rates_"]


def continue_learning_rates_(policies: Sequence[PlannedPolicy], optimizer: Optimizer, resumed_epoch: int) -> None:
    """Give a fresh optimizer, in place, the learning rates the run had after ``resumed_epoch`` (its last full epoch).

    An optimizer that was restored from a checkpoint (its groups have an ``initial_lr``) already has them and is left
    alone. The last policy that acted by then decides; what ReduceLROnPlateau did is in the checkpoint only.

    Example: ExponentialLR with gamma 0.5 from epoch 0, base 0.8 and ``resumed_epoch=2`` sets 0.1, the value of epoch 3.
    """
    if all("initial_lr" in group for group in optimizer.param_groups):
        return
    acted = [
        (last, planned) for planned in policies if (last := _last_active(planned.window, resumed_epoch)) is not None
    ]
    for last, planned in sorted(acted, key=lambda pair: pair[0]):
        driver = planned.component
        if isinstance(driver, LRDriver) and driver.metric is None and driver.unit == "epoch":
            driver.set_(optimizer, last + 1)


def _last_active(window: PolicyWindow, until: int) -> int | None:
    """The last epoch up to ``until`` in which the window is active."""
    if window.epochs is not None:
        return max((epoch for epoch in window.epochs if epoch <= until), default=None)
    latest = min(until, math.ceil(window.end) - 1) if math.isfinite(window.end) else until
    period = math.ceil(window.frequency or 1)
    return next((e for e in range(latest, max(latest - period, -1), -1) if window.is_active(e)), None)
