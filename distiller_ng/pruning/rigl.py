"""RigL: a sparse network whose live weights move to where gradients ask for them (layer 2)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, TypeAlias, get_args

import torch
from torch import Tensor

from distiller_ng.core.context import StepContext
from distiller_ng.core.window import PolicyWindow
from distiller_ng.errors import ArgumentError
from distiller_ng.names import ALL_PRUNABLE, ParameterIndex
from distiller_ng.ops.masks import lowest_k_mask
from distiller_ng.ops.patterns import NMPattern
from distiller_ng.pruning._checks import check_number, check_weights
from distiller_ng.pruning._level import LevelPruner
from distiller_ng.pruning.base import PRUNERS, MaskGroup, Scope, Target, targets_of_list
from distiller_ng.pruning.sparsity_schedules.base import ScheduleLike
from distiller_ng.registry import RecipeTag

__all__ = ["RigLPruner", "SparsityStrategy", "layer_sparsities"]

SparsityStrategy: TypeAlias = Literal["erdos_renyi_kernel", "erdos_renyi", "uniform"]


@PRUNERS.register(
    "RigLPruner",
    injected=("name",),
    recipe_tag=RecipeTag(
        "RigLPruningModifier",
        policy_args={"leave_enabled": "leave_enabled", "momentum_buffer_reset": "reset_optimizer_state"},
        ignored={
            "global_sparsity": "the strategy says how sparse each layer is",
            "mask_type": "RigL moves single weights",
        },
    ),
)
class RigLPruner(LevelPruner):
    """Trains sparse from the start to the end: at each decision some live weights are dropped and as many others grown.

    ``init_update_fraction``: the share ``f0`` of live weights that moves at first. With
    ``f = f0 / 2 * (1 + cos(pi * progress))`` the ``(1 - s) (1 - f)`` weights of largest magnitude stay, and those of
    largest gradient fill up to ``1 - s``. ``final_sparsity`` (0..1) is that of
    all targets together; ``sparsity_strategy`` spreads it: a layer's density is proportional to
    ``sum(shape) / prod(shape)`` (erdos_renyi_kernel), ``(I + O) / (I * O)`` (erdos_renyi) or constant (uniform), at
    most 1. The gradients are the step's own, of all weights; with ``num_grads`` above 1, ``grad_sampler_kwargs`` or a
    ``scheduler.grad_sampler`` of the user's they are sampled, from that or from the training data. What is grown starts
    at 0, and so does its optimizer state (``reset_optimizer_state`` of the policy).

    Source: U. Evci et al., "Rigging the Lottery: Making All Tickets Winners", https://arxiv.org/abs/1911.11134. Of the
    weights ``[4, 3, 2, 0, 0, 0]`` at 0.5 and f = 1/3, the gradients ``[0, 0, 0, 0, 9, 1]`` take the 2 for the fifth::

        pruners:
          rigl:
            class: RigLPruner
            weights: __ALL_PRUNABLE__
            final_sparsity: 0.9
        policies:
          - pruner: {instance_name: rigl}
            starting_epoch: 0
            ending_epoch: 30
            frequency: 0.5
            trigger: step

    ``schedule`` replaces ``final_sparsity``, ``scope`` says nothing. Raises :class:`ArgumentError` for values out of
    range, :class:`CalibrationError` where there are no gradients.
    """

    level_argument: ClassVar[str] = "final_sparsity"
    decides_before_step: ClassVar[bool] = True
    resets_optimizer_state: ClassVar[bool] = True

    def __init__(
        self,
        name: str,
        weights: str | Sequence[str] = ALL_PRUNABLE,
        *,
        final_sparsity: float | None = None,
        sparsity_strategy: SparsityStrategy = "erdos_renyi_kernel",
        init_update_fraction: float = 0.3,
        num_grads: int = 1,
        grad_sampler_kwargs: Mapping[str, Any] | None = None,
        schedule: ScheduleLike | None = None,
        scope: Scope = "layer",
        pattern: str | int | None = None,
    ) -> None:
        super().__init__(name, final_sparsity, schedule=schedule, scope=scope, pattern=pattern)
        self.weights = check_weights(weights)
        if sparsity_strategy not in get_args(SparsityStrategy):
            allowed = ", ".join(get_args(SparsityStrategy))
            message = f"sparsity_strategy is one of {allowed}; got {sparsity_strategy!r}"
            raise ArgumentError(message, argument=("sparsity_strategy",))
        if isinstance(num_grads, bool) or not isinstance(num_grads, int) or num_grads < 1:
            raise ArgumentError(f"num_grads is a whole number from 1, got {num_grads!r}", argument=("num_grads",))
        self.sparsity_strategy = sparsity_strategy
        self.init_update_fraction = check_number(init_update_fraction, ("init_update_fraction",), low=0, high=1)
        self.num_grads, self.grad_sampler_kwargs = num_grads, grad_sampler_kwargs

    def targets(self) -> Sequence[Target]:
        """``weights``."""
        return targets_of_list("weights", self.weights)

    def groups(self, parameters: ParameterIndex) -> Sequence[MaskGroup]:
        """All together: the strategy spreads one sparsity over them."""
        return [MaskGroup(tuple(self.names))] if self.names else []

    def compute_masks(self, group: MaskGroup, ctx: StepContext) -> Mapping[str, Tensor]:
        """Drop and grow."""
        levels = self.sparsities(group.names, ctx)
        fraction = self.init_update_fraction / 2 * (1 + math.cos(math.pi * ctx.progress))
        gradients = self._gradients(group.names, ctx)
        masks = {}
        for name in group.names:
            weight = ctx.weight(name)
            gradient = gradients[name].to(weight.device)
            masks[name] = _moved(weight, gradient, levels[name], fraction, self.pattern)
        return masks

    def sparsities(self, names: Sequence[str], ctx: StepContext) -> dict[str, float]:
        """The sparsity of each target now."""
        level = self.level(names[0], ctx)
        if level is None:
            level = self.pattern.sparsity if self.pattern is not None else 0.0
        shapes = {name: tuple(ctx.parameters[name].shape) for name in names}
        return layer_sparsities(shapes, level, self.sparsity_strategy)

    def planned_sparsity(self, name: str, window: PolicyWindow) -> float | None:
        """What the strategy gives the parameter."""
        level = self._level_at(name, 1.0)
        if level is None or self._parameters is None:
            return level
        shapes = {other: tuple(self._parameters[other].shape) for other in self.names}
        return layer_sparsities(shapes, level, self.sparsity_strategy)[name]

    def _gradients(self, names: Sequence[str], ctx: StepContext) -> dict[str, Tensor]:
        own = {name: ctx.parameters[name].grad for name in names}
        if not self._samples(ctx) and all(gradient is not None for gradient in own.values()):
            return {name: gradient.detach() for name, gradient in own.items() if gradient is not None}
        sums: dict[str, Tensor] = {}
        for sample in ctx.gradients(names, self.num_grads, options=self.grad_sampler_kwargs):
            for name, gradient in sample.items():
                sums[name] = gradient if name not in sums else sums[name] + gradient
        return sums

    def _samples(self, ctx: StepContext) -> bool:
        """Whether the step's own gradients will not do: others were asked for, or those are masked."""
        asked = self.num_grads > 1 or self.grad_sampler_kwargs is not None or ctx.data.is_given
        return ctx.data.sampler is not None and (asked or any(ctx.masks[n].masks_gradients for n in self.names))


def layer_sparsities(
    shapes: Mapping[str, Sequence[int]], sparsity: float, strategy: SparsityStrategy
) -> dict[str, float]:
    """How sparse each tensor is, so that all of them together have ``sparsity``: more, where one cannot be denser.

    >>> layer_sparsities({"a": (2, 4), "b": (4, 8)}, 0.5, "erdos_renyi")
    {'a': 0.16666666666666663, 'b': 0.5833333333333333}
    """
    raw = {name: _raw_density(shape, strategy) for name, shape in shapes.items()}
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    budget = math.fsum(raw[name] * sizes[name] for name in shapes)
    scale = (1 - sparsity) * sum(sizes.values()) / budget if budget else 0.0
    return {name: 1 - min(scale * raw[name], 1.0) for name in shapes}


def _raw_density(shape: Sequence[int], strategy: SparsityStrategy) -> float:
    if strategy == "uniform" or len(shape) < 2:
        return 1.0
    used = shape if strategy == "erdos_renyi_kernel" else shape[:2]
    return sum(used) / math.prod(used)


def _moved(
    weight: Tensor, gradient: Tensor, sparsity: float, fraction: float, pattern: NMPattern | None = None
) -> Tensor:
    """A mask with ``round((1 - sparsity) * n)`` live weights: the largest, and those of the largest gradients."""
    total = weight.numel()
    live = total - round(sparsity * total)
    kept = lowest_k_mask(weight.abs(), total - round(live * (1 - fraction))) != 0
    scores = torch.where(kept, 1.0 + _share(weight), 0.5 * _share(gradient))
    return lowest_k_mask(scores, total - live, pattern=pattern).to(weight.dtype)


def _share(values: Tensor) -> Tensor:
    """Magnitudes from 0 to 1."""
    wide = values.abs().double()
    return wide / wide.max().clamp_min(torch.finfo(torch.float64).tiny)
