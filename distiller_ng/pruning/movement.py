"""Movement pruning: what moves away from zero stays (layer 2)."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from distiller_ng.core.context import StepContext
from distiller_ng.ops.mask_types import MaskTypeLike
from distiller_ng.pruning.base import PRUNERS, MaskGroup, Scope
from distiller_ng.pruning.gradual import FinalSparsity, GradualPruner, InitSparsity
from distiller_ng.pruning.sparsity_schedules.base import ScheduleLike
from distiller_ng.pruning.sparsity_schedules.curves import Curve
from distiller_ng.registry import RecipeTag

__all__ = ["MovementPruner"]

logger = logging.getLogger(__name__)

_RATE = 0.01  # of the scores; with one rate for all weights their order does not depend on it


@PRUNERS.register(
    "MovementPruner",
    injected=("name",),
    recipe_tag=RecipeTag("MovementPruningModifier", aliases=("MovementPruning",)),
)
class MovementPruner(GradualPruner):
    """Prunes the weights that move towards zero: those of lowest ``S``, where ``S -= 0.01 * grad * w`` in each step.

    ``S`` starts at 0 with the policy's window and is never reset; a pruned weight, being 0, keeps its ``S`` and returns
    (at 0, with fresh optimizer state) when others fall below it. Decisions are made in an optimizer step, after its
    gradients were counted. In a window of whole epochs with a frequency above 1 only active epochs count. The curve's
    and the other arguments are those of :class:`~distiller_ng.pruning.gradual.GradualPruner`.

    Source: V. Sanh et al., "Movement Pruning: Adaptive Sparsity by Fine-Tuning", https://arxiv.org/abs/2005.07683.
    Weights ``[1, 1]`` with gradients ``[2, -2]`` score -0.02 and 0.02: at 0.5 the first goes, as it shrinks::

        pruners:
          movement:
            class: MovementPruner
            weights: __ALL_PRUNABLE__
            init_sparsity: 0.05
            final_sparsity: 0.85
        policies:
          - pruner: {instance_name: movement}
            starting_epoch: 0
            ending_epoch: 10
            frequency: 1
            trigger: step

    Raises :class:`ArgumentError` when nothing says how much to prune.
    """

    ranks_magnitudes: ClassVar[bool] = False
    resets_optimizer_state: ClassVar[bool] = True
    decides_before_step: ClassVar[bool] = True

    def __init__(
        self,
        name: str,
        weights: str | Sequence[str] | None = None,
        *,
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
            schedule=schedule,
            scope=scope,
            pattern=pattern,
        )
        self._scores: dict[str, Tensor] = {}

    def before_step(self, ctx: StepContext) -> None:
        """Count this step's gradients."""
        counted = [(name, p, p.grad) for name, p in self._stepped(ctx) if p.grad is not None]
        if counted:
            scores = [self._score_of(name, p) for name, p, _ in counted]
            weights = [p.detach().to(s.dtype) for (_, p, _), s in zip(counted, scores, strict=True)]
            gradients = [_dense(g).to(s.dtype) for (_, _, g), s in zip(counted, scores, strict=True)]
            torch._foreach_addcmul_(scores, gradients, weights, -_RATE)

    def scores(self, name: str, ctx: StepContext) -> Tensor:
        """``S``; where no step was counted yet, that of the gradients which are there."""
        parameter = ctx.parameters[name]
        known = self._scores.get(name)
        if known is not None and known.shape == parameter.shape:
            return known
        gradient = torch.zeros_like(parameter) if parameter.grad is None else _dense(parameter.grad)
        return -_RATE * gradient * parameter.detach()

    def compute_masks(self, group: MaskGroup, ctx: StepContext) -> Mapping[str, Tensor]:
        """By ``S``; a parameter that never had a gradient is left alone."""
        ready = tuple(n for n in group.names if n in self._scores or ctx.parameters[n].grad is not None)
        for name in group.names:
            if name not in ready:
                logger.warning("pruner %r: %r has no gradient and is not pruned", self.owner, name)
        return super().compute_masks(MaskGroup(ready), ctx) if ready else {}

    def state_dict(self) -> dict[str, Any]:
        """The scores."""
        return {**super().state_dict(), "scores": dict(self._scores)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`state_dict`."""
        super().load_state_dict({key: value for key, value in state.items() if key != "scores"})
        self._scores = {name: scores.clone() for name, scores in state["scores"].items()}

    def _stepped(self, ctx: StepContext) -> list[tuple[str, nn.Parameter]]:
        """The targets that ``ctx.optimizer`` is about to step."""
        found = [(name, ctx.parameters[name]) for name in self.names]
        if len(ctx.masks.optimizers) <= 1 or ctx.optimizer is None:
            return found
        mine = {id(p) for group in ctx.optimizer.param_groups for p in group["params"]}
        return [(name, parameter) for name, parameter in found if id(parameter) in mine]

    def _score_of(self, name: str, parameter: Tensor) -> Tensor:
        known = self._scores.get(name)
        if known is None or known.shape != parameter.shape:  # or thinning removed some: count again
            wide = torch.float64 if parameter.dtype == torch.float64 else torch.float32
            known = torch.zeros_like(parameter, dtype=wide, requires_grad=False)
        self._scores[name] = known = known.to(parameter.device)
        return known


def _dense(gradient: Tensor) -> Tensor:
    return gradient.to_dense() if gradient.is_sparse else gradient
