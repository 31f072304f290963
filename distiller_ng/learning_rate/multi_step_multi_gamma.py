"""Step decay with a factor of its own for each milestone (layer 2)."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from distiller_ng.errors import ArgumentError
from distiller_ng.learning_rate.base import INJECTED, LR_SCHEDULERS

__all__ = ["MultiStepMultiGammaLR"]


@LR_SCHEDULERS.register("MultiStepMultiGammaLR", injected=INJECTED)
class MultiStepMultiGammaLR(LRScheduler):
    """At epoch ``e`` the learning rate is its base times the product of the gammas whose milestone is at most ``e``.

    Source: Distiller's scheduler of that name, used by its DoReFa schedules; torch's ``MultiStepLR`` is the case of
    equal gammas. ``multiplicative_gammas`` holds the products, starting with 1.

    ``milestones`` are epochs (or steps) in increasing order, ``gammas`` one factor for each. Raises
    :class:`ArgumentError` when they are not sorted or not as many.

    Example: milestones 30, 60, 80 and gammas 0.1, 0.1, 0.2 multiply the base by 1 to epoch 29, by 0.1 from 30, by 0.01
    from 60 and by 0.002 from 80::

        lr_schedulers:
          training_lr:
            class: MultiStepMultiGammaLR
            milestones: [30, 60, 80]
            gammas: [0.1, 0.1, 0.2]
    """

    def __init__(
        self, optimizer: Optimizer, milestones: Sequence[int], gammas: Sequence[float], last_epoch: int = -1
    ) -> None:
        if list(milestones) != sorted(milestones):
            raise ArgumentError(f"milestones must be in increasing order, got {milestones}", argument=("milestones",))
        if len(milestones) != len(gammas):
            raise ArgumentError(
                f"each milestone needs one gamma, got {len(milestones)} milestones and {len(gammas)} gammas",
                argument=("gammas",),
            )
        self.milestones = list(milestones)
        self.gammas = list(gammas)
        self.multiplicative_gammas: list[float] = [1]
        for gamma in self.gammas:
            self.multiplicative_gammas.append(self.multiplicative_gammas[-1] * gamma)
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float | Tensor]:
        """One learning rate for each parameter group."""
        return self._get_closed_form_lr()

    def _get_closed_form_lr(self) -> list[float | Tensor]:
        factor = self.multiplicative_gammas[bisect_right(self.milestones, self.last_epoch)]
        return [base * factor for base in self.base_lrs]
