"""Magnitude pruning to a level, for new schedules and for recipes (layer 2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from distiller_ng.ops.mask_types import MaskTypeLike
from distiller_ng.pruning.base import PRUNERS, Scope
from distiller_ng.pruning.gradual import FinalSparsity, GradualPruner, InitSparsity
from distiller_ng.pruning.sparsity_schedules.base import ScheduleLike
from distiller_ng.pruning.sparsity_schedules.curves import Curve
from distiller_ng.registry import RecipeTag

__all__ = ["MagnitudePruner"]


@PRUNERS.register(
    "MagnitudePruner",
    injected=("name",),
    recipe_tag=(
        RecipeTag("GMPruningModifier"),
        RecipeTag("MagnitudePruningModifier", aliases=("MagnutidePruningModifier",)),
        RecipeTag("GlobalMagnitudePruningModifier", fixed={"scope": "global"}),
    ),
)
class MagnitudePruner(GradualPruner):
    """Prunes the weights of lowest magnitude; the level is fixed, follows a curve or schedule, or is an N:M pattern's.

    ``weights`` are targets: names, ``re:`` patterns, ``__ALL_PRUNABLE__`` (the default). Of ``sparsity`` (0..1),
    ``final_sparsity``, ``schedule`` and ``pattern`` at least one says how much: exactly ``int(s * n)`` of ``n``
    weights, in each tensor (``scope: layer``) or over all of them (``scope: global``). With a pattern and a level, what
    the pattern drops goes first, so a level rising to ``1 - N / M`` ends in exactly the pattern. Optimizer state of
    weights that are pruned or come back is zeroed.

    As recipes write it: ``final_sparsity``: where the curve ends, 0..1, or ``{0.6: [conv1.weight], 0.8: [...]}``, with
    exactly ``round(s * n)`` weights pruned. ``init_sparsity``: where it starts, 0..1, or ``__FROM_PARAM__`` for the
    zeros that are there. ``inter_func``: linear, cubic or inverse_cubic. ``mask_type``: what is pruned together:
    unstructured, block4, a block such as ``[2, 2]``, or '2:4'.

    Source: S. Han et al., "Learning both Weights and Connections for Efficient Neural Networks",
    https://arxiv.org/abs/1506.02626. ``[1, 4]`` and ``[2, 3]`` at 0.5 keep 4 and 3 by layer as well as globally; at
    0.25 nothing is pruned by layer (``int(0.25 * 2) = 0``) and only the 1 globally::

        pruners:
          gradual:
            class: MagnitudePruner
            weights: __ALL_PRUNABLE__
            schedule: {class: AGP, initial_sparsity: 0.05, final_sparsity: 0.9}
            scope: global
          blocks:
            class: MagnitudePruner
            init_sparsity: 0.05
            final_sparsity: {0.6: [conv1.weight], 0.8: ['re:layer.*conv.*weight']}
            mask_type: block4

    Raises :class:`ArgumentError` when nothing says how much to prune.
    """

    resets_optimizer_state: ClassVar[bool] = True
    level_argument: ClassVar[str] = "sparsity"

    def __init__(
        self,
        name: str,
        weights: str | Sequence[str] | None = None,
        *,
        sparsity: float | None = None,
        init_sparsity: InitSparsity | None = None,
        final_sparsity: FinalSparsity | None = None,
        inter_func: Curve = "cubic",
        mask_type: MaskTypeLike = "unstructured",
        schedule: ScheduleLike | None = None,
        scope: Scope = "layer",
        pattern: str | int | None = None,
    ) -> None:
        super().__init__(
            name,
            weights,
            init_sparsity=init_sparsity,
            final_sparsity=final_sparsity,
            inter_func=inter_func,
            mask_type=mask_type,
            sparsity=sparsity,
            schedule=schedule,
            scope=scope,
            pattern=pattern,
        )

    def rounding(self, number: float) -> int:
        """To the nearest whole number on a recipe's curve, else down."""
        return super().rounding(number) if self._finals else int(number)
