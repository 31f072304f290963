"""Polynomial decay with Distiller's arguments (layer 2)."""

from __future__ import annotations

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from distiller_ng.errors import ArgumentError
from distiller_ng.learning_rate.base import INJECTED, LR_SCHEDULERS

__all__ = ["PolynomialLR"]


@LR_SCHEDULERS.register("PolynomialLR", injected=INJECTED)
class PolynomialLR(LRScheduler):
    """At epoch ``e`` the learning rate is ``base * (1 - e / T_max) ** power``, and 0 from ``T_max`` on.

    Source: Distiller's scheduler of that name, and the "poly" policy of Wei Liu et al., "ParseNet: Looking Wider to See
    Better", https://arxiv.org/abs/1506.04579. torch has a class of the same name with the argument ``total_iters``
    instead of ``T_max``: in a schedule the arguments decide which of the two is meant.

    ``T_max`` is a number of epochs (or steps) above 0. Raises :class:`ArgumentError` otherwise.

    Example: with ``T_max`` 10 and ``power`` 2, epoch 5 has ``0.25 * base``::

        lr_schedulers:
          training_lr:
            class: PolynomialLR
            T_max: 90
            power: 0.9
    """

    def __init__(self, optimizer: Optimizer, T_max: int, power: float, last_epoch: int = -1) -> None:
        if T_max <= 0:
            raise ArgumentError(f"T_max must be above 0, got {T_max}", argument=("T_max",))
        self.T_max = T_max
        self.power = power
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float | Tensor]:
        """One learning rate for each parameter group."""
        return self._get_closed_form_lr()

    def _get_closed_form_lr(self) -> list[float | Tensor]:
        factor = (1 - min(self.last_epoch, self.T_max) / self.T_max) ** self.power
        return [base * factor for base in self.base_lrs]
