"""One-shot pruning layer by layer with weight updates (layer 2)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from distiller_ng.names import ALL_PRUNABLE
from distiller_ng.ops.mask_types import MaskTypeLike
from distiller_ng.ops.sparsegpt import inverse_factor, sparsegpt
from distiller_ng.pruning._checks import check_number
from distiller_ng.pruning._layerwise import LayerwisePruner
from distiller_ng.pruning._oneshot_recipes import oneshot_from_recipe, oneshot_to_recipe
from distiller_ng.pruning._second_order import check_count
from distiller_ng.pruning.base import PRUNERS, Scope
from distiller_ng.pruning.sparsity_schedules.base import ScheduleLike
from distiller_ng.registry import RecipeTag

__all__ = ["SparseGPTPruner"]


_SMALL = 1 << 20  # inputs that are multiplied in float64


@PRUNERS.register(
    "SparseGPTPruner",
    injected=("name",),
    recipe_tag=RecipeTag(
        "SparseGPTModifier",
        start_epoch=-1.0,
        ends="open",
        end_epoch=-1.0,
        update_frequency=0.0,
        default_params=ALL_PRUNABLE,
        renamed={"dampening_frac": "damp", "mask_structure": "mask_type"},
    ),
)
class SparseGPTPruner(LayerwisePruner):
    """SparseGPT: prunes each layer so that its outputs on ``num_samples`` samples change least, without training.

    Layers are taken in the order they run, each with the inputs that the pruned layers before it give. With ``H = sum x
    x^T + damp * mean(diag) * I`` over the inputs ``x`` of a layer and ``U`` the upper Cholesky factor of ``H^-1``,
    columns are decided from left to right, ``block_size`` at a time: the weights of lowest ``w_j^2 / U_jj^2`` go, and
    ``w_i -= w_j / U_jj * U_ji`` for the columns ``i`` to the right makes up for them. Exactly ``int(s * n)`` weights go
    of each layer; ``scope: global`` divides them among the layers by one ranking of the same score. ``mask_type:
    '2:4'`` (or ``pattern``) keeps N of M neighbouring inputs. ``sparsity``, ``schedule`` and the rest: see
    :class:`~distiller_ng.pruning.gradual.GradualPruner`. Linear layers, attention's projections, convolutions (their
    patches are the inputs; grouped ones by group).

    ``damp``: what is added to the diagonal, as a fraction of its mean. Samples come from ``distiller_ng.apply(model,
    recipe, calibration_loader)``, from ``scheduler.grad_sampler``, or from the loader of the loop. Memory: 8 bytes for
    ``inputs^2`` of the layers that read one tensor. Time: one forward pass over the samples for each layer, as far as
    that layer.

    Source: E. Frantar and D. Alistarh, "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot",
    https://arxiv.org/abs/2301.00774. Two inputs that are always equal and the weights ``[1, 2]``: at 0.5 the first goes
    and the second becomes 3::

        pruners:
          one_shot:
            class: SparseGPTPruner
            weights: __ALL_PRUNABLE__
            mask_type: '2:4'

    Raises :class:`CalibrationError` without samples, :class:`TargetError` for a named weight that no product uses.
    """

    def __init__(
        self,
        name: str,
        weights: str | Sequence[str] | None = None,
        *,
        sparsity: float | None = None,
        mask_type: MaskTypeLike = "unstructured",
        damp: float = 0.01,
        block_size: int = 128,
        num_samples: int = 512,
        schedule: ScheduleLike | None = None,
        scope: Scope = "layer",
        pattern: str | int | None = None,
    ) -> None:
        self.damp = check_number(damp, ("damp",), low=0)
        self.block_size = check_count("block_size", block_size)
        super().__init__(
            name,
            weights,
            num_samples=num_samples,
            mask_type=mask_type,
            sparsity=sparsity,
            schedule=schedule,
            scope=scope,
            pattern=pattern,
        )

    def new_statistics(self, columns: int, like: Tensor) -> Tensor:
        """``[columns, columns]``."""
        return torch.zeros(columns, columns, dtype=torch.float64, device=like.device)

    def add_inputs(self, statistics: Tensor, inputs: Tensor) -> None:
        """``x x^T``."""
        wide = inputs.double() if inputs.numel() <= _SMALL else inputs.float()
        statistics += wide.t() @ wide

    def importance(self, matrix: Tensor, statistics: Tensor) -> Tensor:
        """``w^2 / U_jj^2``."""
        return matrix.square() / inverse_factor(statistics, self.damp).diagonal().square()

    def prune_rows(
        self, matrix: Tensor, statistics: Tensor, level: float | None, starts: list[int] | None, pruned: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See :func:`distiller_ng.ops.sparsegpt.sparsegpt`."""
        options = {"pruned": pruned, "damp": self.damp, "block_size": self.block_size}
        if starts is not None and self.nm is not None:
            return sparsegpt(matrix, statistics, groups=(self.nm.n, self.nm.m, starts), **options)  # type: ignore[arg-type]
        k = self.rounding((level or 0) * matrix.numel())
        return sparsegpt(matrix, statistics, k=k, **options)  # type: ignore[arg-type]

    @classmethod
    def from_recipe(cls, properties: Mapping[str, Any], note: Callable[[str], None]) -> dict[str, Any]:
        """See :class:`~distiller_ng.registry.RecipeTag`."""
        return oneshot_from_recipe(properties, note)

    @classmethod
    def to_recipe(cls, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """See :class:`~distiller_ng.registry.RecipeTag`."""
        return oneshot_to_recipe(arguments)
