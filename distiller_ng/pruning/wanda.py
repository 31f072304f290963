"""One-shot pruning by weights and activations (layer 2)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from distiller_ng.names import ALL_PRUNABLE
from distiller_ng.ops.mask_types import MaskTypeLike
from distiller_ng.pruning._layerwise import LayerwisePruner
from distiller_ng.pruning._oneshot_recipes import oneshot_from_recipe, oneshot_to_recipe
from distiller_ng.pruning.base import PRUNERS, Scope
from distiller_ng.pruning.sparsity_schedules.base import ScheduleLike
from distiller_ng.registry import RecipeTag

__all__ = ["WandaPruner"]


@PRUNERS.register(
    "WandaPruner",
    injected=("name",),
    recipe_tag=RecipeTag(
        "WandaPruningModifier",
        start_epoch=-1.0,
        ends="open",
        end_epoch=-1.0,
        update_frequency=0.0,
        default_params=ALL_PRUNABLE,
        renamed={"mask_structure": "mask_type"},
    ),
)
class WandaPruner(LayerwisePruner):
    """Wanda: prunes, in each output of each layer, the weights of lowest ``|w_ij| * ||x_j||``; without training.

    ``||x_j||`` is the L2 norm of input ``j`` over ``num_samples`` samples, in a model whose layers before are pruned
    already. Exactly ``int(s * inputs)`` weights of each output go; ``scope: global`` divides them among the layers by
    one ranking of the same score. ``mask_type: '2:4'`` (or ``pattern``) keeps the best N of M neighbouring inputs.
    Other weights stay as they are. Layers and samples: see :class:`~distiller_ng.pruning.sparsegpt.SparseGPTPruner`,
    which also updates weights, and takes longer.

    Source: M. Sun et al., "A Simple and Effective Pruning Approach for Large Language Models",
    https://arxiv.org/abs/2306.11695. The weights ``[4, 0, 1, -1]`` on inputs of the norms ``[1, 2, 8, 3]`` score ``[4,
    0, 8, 3]``: at 0.5 what is left is ``[4, 0, 1, 0]``, where magnitudes would choose between 1 and -1::

        pruners:
          one_shot:
            class: WandaPruner
            weights: __ALL_PRUNABLE__
            sparsity: 0.5

    Raises :class:`CalibrationError` without samples, :class:`TargetError` for a named weight that no product uses.
    """

    def __init__(
        self,
        name: str,
        weights: str | Sequence[str] | None = None,
        *,
        sparsity: float | None = None,
        mask_type: MaskTypeLike = "unstructured",
        num_samples: int = 512,
        schedule: ScheduleLike | None = None,
        scope: Scope = "layer",
        pattern: str | int | None = None,
    ) -> None:
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
        """``[columns]``."""
        return torch.zeros(columns, dtype=torch.float64, device=like.device)

    def add_inputs(self, statistics: Tensor, inputs: Tensor) -> None:
        """Squares."""
        wide = inputs.float() if inputs.element_size() < 4 else inputs
        statistics += torch.linalg.vector_norm(wide, dim=0, dtype=torch.float64).square()

    def importance(self, matrix: Tensor, statistics: Tensor) -> Tensor:
        """``|w_ij| * ||x_j||``."""
        return matrix.abs() * statistics.sqrt().to(matrix.dtype)

    def prune_rows(
        self, matrix: Tensor, statistics: Tensor, level: float | None, starts: list[int] | None, pruned: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The lowest of each row, or of each group."""
        scores = self.importance(matrix, statistics).masked_fill(pruned, -1)
        mask = torch.ones_like(matrix)
        if starts is None or self.nm is None:
            k = self.rounding((level or 0) * matrix.shape[1])
            mask.scatter_(1, scores.argsort(dim=1, stable=True)[:, :k], 0)
        elif starts:
            columns = torch.tensor(starts, device=matrix.device).unsqueeze(1)
            columns = columns + torch.arange(self.nm.m, device=matrix.device)
            order = scores[:, columns].argsort(dim=2, stable=True)[:, :, : self.nm.m - self.nm.n]
            gone = columns.expand(len(matrix), -1, -1).gather(2, order)
            mask.scatter_(1, gone.flatten(1), 0)
        return matrix * mask, mask

    @classmethod
    def from_recipe(cls, properties: Mapping[str, Any], note: Callable[[str], None]) -> dict[str, Any]:
        """See :class:`~distiller_ng.registry.RecipeTag`."""
        return oneshot_from_recipe(properties, note)

    @classmethod
    def to_recipe(cls, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """See :class:`~distiller_ng.registry.RecipeTag`."""
        return oneshot_to_recipe(arguments)
