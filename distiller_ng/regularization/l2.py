"""L2 regularization (ridge): keeps weights small (layer 2)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from distiller_ng.regularization.base import REGULARIZERS, Regularizer, check_strength

__all__ = ["L2Regularizer"]


@REGULARIZERS.register("L2Regularizer", injected=("name", "model"))
class L2Regularizer(Regularizer):
    """Adds ``strength * sum w^2`` for each parameter. There is no factor 1/2: the gradient is ``2 * strength * w``.

    Source: Arthur E. Hoerl and Robert W. Kennard, "Ridge Regression: Biased Estimation for Nonorthogonal Problems"
    (1970), https://doi.org/10.1080/00401706.1970.10488634

    With SGD, ``strength`` acts as an optimizer's ``weight_decay`` of ``2 * strength``, but only on the named parameters
    and only in the policy's epochs. It makes no weight zero, so there is no threshold.

    Example: ``[1, -2, 0]`` with strength ``0.1`` adds ``0.1 * (1 + 4 + 0) = 0.5``::

        regularizers:
          my_L2_reg:
            class: L2Regularizer
            reg_regims:
              fc.weight: 0.0001
    """

    def __init__(self, name: str, model: nn.Module | None, reg_regims: Mapping[str, float]) -> None:
        super().__init__(name, model, reg_regims)

    def check_regim(self, target: str, regim: object) -> None:
        """A strength from 0."""
        check_strength(regim, ("reg_regims", target))

    def penalty(self, name: str, param: Tensor) -> Tensor:
        """``strength * sum w^2``, a scalar."""
        return float(self.regim(name)) * param.square().sum()
