"""The extension that learns which weights to prune (layer 3)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from distiller_ng.core.context import StepContext
from distiller_ng.core.policy import LossComponent, PolicyLoss
from distiller_ng.core.window import PolicyWindow
from distiller_ng.names import ALL_PRUNABLE, ParameterIndex
from distiller_ng.policies._reparametrized import Function, ReparametrizingPolicy, check_flag
from distiller_ng.policies._trained_beside import join_optimizer
from distiller_ng.policies.extensions import EXTENSIONS
from distiller_ng.pruning._checks import check_number
from distiller_ng.pruning.sparsity_schedules.curves import Curve, check_curve, interpolate
from distiller_ng.quantization._late_parameters import average_gradients
from distiller_ng.registry import RecipeTag

__all__ = ["SoftMovement"]

_SCORES = "mask_scores"


class _StraightThrough(torch.autograd.Function):
    """``w * (sigmoid(S) > threshold)``; the scores get the gradient of the mask itself."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, scores: Tensor, threshold: float) -> Tensor:
        mask = (torch.sigmoid(scores) > threshold).to(weight.dtype)
        ctx.save_for_backward(weight, mask)
        return weight * mask

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        weight, mask = ctx.saved_tensors
        (gradient,) = gradients
        return gradient * mask, gradient * weight, None


@dataclass(frozen=True, slots=True, eq=False)
class _Masked:
    scores: nn.Parameter
    threshold: float

    def __call__(self, stored: Tensor) -> Tensor:
        """Weights whose score is too low count as 0."""
        masked: Tensor = _StraightThrough.apply(stored, self.scores, self.threshold)  # type: ignore[no-untyped-call]
        return masked


@EXTENSIONS.register(
    "SoftMovement",
    recipe_tag=RecipeTag(
        "SoftMovementPruningModifier", start_epoch=-1.0, end_epoch=-1.0, update_frequency=0.0, fixed_frequency=True
    ),
)
class SoftMovement(ReparametrizingPolicy):
    """Soft movement pruning: a weight is used where ``sigmoid(S) > threshold``, and ``S`` is learned beside it.

    ``threshold``: what ``sigmoid(S)`` must exceed (0..1). ``S``, one for each weight, starts at ``init_score`` and gets
    the gradient ``dL/dw' * w`` straight through the mask; what moves away from zero resists. ``regularization``: how
    strongly the loss presses all scores down, ``regularization * mean(sigmoid(S))``; it rises to its full value along
    ``inter_func``. ``warmup``: over which share (0..1) of a window that ends it does. Scores are parameters of their
    layer (``conv1.mask_scores``) and learn without weight decay. ``score_lr``: their learning rate (default: that of
    the first group). They leave with the window, when weights become what layers computed with. ``leave_enabled``: what
    is zero then stays zero.

    Source: V. Sanh et al., "Movement Pruning: Adaptive Sparsity by Fine-Tuning", https://arxiv.org/abs/2005.07683,
    section 4. The scores ``[1, -3]`` pass the threshold 0.1 with 0.73 and fail it with 0.047::

        extensions:
          soft_movement:
            class: SoftMovement
            regularization: 5.0
            score_lr: 0.01
        policies:
          - extension: {instance_name: soft_movement}
            starting_epoch: 0
            ending_epoch: 10

    Raises :class:`ArgumentError` for values out of range, :class:`TargetError` for other parameters.
    """

    def __init__(
        self,
        weights: str | Sequence[str] = ALL_PRUNABLE,
        *,
        threshold: float = 0.1,
        regularization: float = 1.0,
        warmup: float = 1.0,
        inter_func: Curve = "cubic",
        init_score: float = 0.0,
        score_lr: float | None = None,
        leave_enabled: bool = True,
    ) -> None:
        super().__init__(weights)
        self.threshold = check_number(threshold, ("threshold",), low=0, high=1)
        self.regularization = check_number(regularization, ("regularization",), low=0)
        self.warmup = check_number(warmup, ("warmup",), low=0, high=1)
        self.inter_func = check_curve(inter_func)
        self.init_score = check_number(init_score, ("init_score",))
        self.score_lr = None if score_lr is None else check_number(score_lr, ("score_lr",), low=0)
        self.leave_enabled = check_flag("leave_enabled", leave_enabled)
        self._scores: dict[str, nn.Parameter] = {}

    def function(self, name: str) -> Function:
        """``w * (sigmoid(S) > threshold)``."""
        return _Masked(self._scores[name], self.threshold)

    def on_added(self, ctx: StepContext) -> None:
        """The scores join the layers and the optimizer, so that checkpoints have them."""
        for name, module in self._layers():
            weight = ctx.parameters[name]
            if name not in self._scores:
                self._scores[name] = nn.Parameter(torch.full_like(weight, self.init_score))
                module.register_parameter(_SCORES, self._scores[name])
                average_gradients([self._scores[name]])
        join_optimizer(ctx, self._named(), lr=self.score_lr, weight_decay=0.0)

    def on_minibatch_begin(self, ctx: StepContext) -> None:
        """As every such policy; an optimizer that came late learns the scores too."""
        if not self._is_over:
            join_optimizer(ctx, self._named(), lr=self.score_lr, weight_decay=0.0)
        super().on_minibatch_begin(ctx)

    def before_backward_pass(self, ctx: StepContext) -> PolicyLoss | None:
        """Press the scores down."""
        if not self._is_active or ctx.loss is None or not self._scores:
            return None
        strength = interpolate(0.0, self.regularization, self._progress(ctx), self.inter_func)
        total = sum(scores.numel() for scores in self._scores.values())
        summed = torch.stack([torch.sigmoid(scores).sum().to(ctx.loss.device) for scores in self._scores.values()])
        term = strength * summed.sum() / total
        return PolicyLoss(ctx.loss + term, LossComponent("soft_movement", term))

    def _progress(self, ctx: StepContext) -> float:
        """How much of the warmup has passed; all of it in a window that never ends."""
        if self.warmup == 0 or math.isinf(ctx.window.end):
            return 1.0
        return min(ctx.progress / self.warmup, 1.0)

    def finish(self, ctx: StepContext, name: str) -> None:
        """Hold the zeros; the scores learn no longer."""
        weight = ctx.parameters[name]
        if self.leave_enabled:
            ctx.masks.set(name, (weight != 0).to(weight.dtype), owner=type(self).__name__, binary=True)
        self._scores[name].requires_grad_(False)
        self._scores[name].grad = None

    def on_finish(self, ctx: StepContext) -> None:
        """Training is over: the layers are as they were before, but for their zeros."""
        super().on_finish(ctx)
        for _, module in self._layers() if self._is_over else ():
            module._parameters.pop(_SCORES, None)

    def planned_sparsity(self, window: PolicyWindow, parameters: ParameterIndex) -> Mapping[str, float | None]:
        """Learned."""
        return dict.fromkeys(self._names)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`state_dict`."""
        super().load_state_dict(state)
        for scores in self._scores.values():
            scores.requires_grad_(not self._is_over)

    def _named(self) -> list[tuple[str, nn.Parameter]]:
        return [(f"{name.rpartition('.')[0]}.{_SCORES}", parameter) for name, parameter in self._scores.items()]
