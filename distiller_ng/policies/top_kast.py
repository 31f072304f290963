"""The extension for Top-KAST: sparse forward and backward passes over weights that stay dense in store (layer 3)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from distiller_ng.core.context import StepContext
from distiller_ng.core.distributed import broadcast_masks
from distiller_ng.core.window import PolicyWindow
from distiller_ng.errors import ArgumentError
from distiller_ng.names import ALL_PRUNABLE, ParameterIndex
from distiller_ng.ops.mask_types import MaskType, MaskTypeLike, create_masks
from distiller_ng.policies._reparametrized import Function, ReparametrizingPolicy, check_flag
from distiller_ng.policies._step_hooks import StepHooks
from distiller_ng.policies.extensions import EXTENSIONS
from distiller_ng.pruning._checks import check_number
from distiller_ng.pruning._recipes import gradual_from_recipe, gradual_to_recipe
from distiller_ng.pruning.base import Scope
from distiller_ng.registry import RecipeTag

__all__ = ["TopKAST"]


class _SparseWeight(torch.autograd.Function):
    """``w * forward_mask``, whose gradient reaches the weights of the backward mask."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, forward_mask: Tensor, backward_mask: Tensor) -> Tensor:
        ctx.save_for_backward(backward_mask)
        return weight * forward_mask

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (mask,) = ctx.saved_tensors
        return gradients[0] * mask, None, None


@dataclass(slots=True, eq=False)
class _Masks:
    """The masks of one weight; those who compute with them see each new decision."""

    forward: Tensor
    backward: Tensor
    before: Tensor | None = field(default=None)  # the weight before the step that is being made

    def __call__(self, stored: Tensor) -> Tensor:
        """The weight that a layer computes with."""
        forward, backward = (
            mask.to(device=stored.device, dtype=stored.dtype) for mask in (self.forward, self.backward)
        )
        sparse: Tensor = _SparseWeight.apply(stored, forward, backward)  # type: ignore[no-untyped-call]
        return sparse


@EXTENSIONS.register("TopKAST", recipe_tag=RecipeTag("TopKASTPruningModifier"))
class TopKAST(ReparametrizingPolicy):
    """Always sparse training: layers compute with the largest weights only, gradients reach some more of them.

    ``forward_sparsity``: the share (0..1) of weights that forward passes leave out, those of lowest magnitude.
    ``backward_sparsity``: at most as much, what gradients do not reach. Weights that neither pass touches keep their
    exact value, whatever the optimizer does. ``scope``: one ranking over all targets (``global``, the default) or one
    for each. ``active_weight_decay``: before each step ``lr`` times it times ``w`` is taken from weights of the forward
    pass, and that over ``1 - forward_sparsity`` from the others that gradients reach. ``mask_type``: what is chosen
    together. The policy's frequency says when the choice is made again. When the window ends weights become what layers
    computed with. ``leave_enabled``: what is zero then stays zero.

    Source: S. Jayakumar et al., "Top-KAST: Top-K Always Sparse Training", https://arxiv.org/abs/2106.03517. The weights
    ``[4, 3, 2, 1]`` with sparsities 0.75 and 0.5 act as ``[4, 0, 0, 0]``; the 4 and the 3 learn::

        extensions:
          topkast:
            class: TopKAST
            forward_sparsity: 0.9
            backward_sparsity: 0.8
        policies:
          - extension: {instance_name: topkast}
            starting_epoch: 0
            ending_epoch: 30
            frequency: 0.1

    Raises :class:`ArgumentError` for sparsities out of range or in the wrong order.
    """

    def __init__(
        self,
        weights: str | Sequence[str] = ALL_PRUNABLE,
        *,
        forward_sparsity: float,
        backward_sparsity: float,
        active_weight_decay: float = 1e-4,
        mask_type: MaskTypeLike = "unstructured",
        scope: Scope = "global",
        leave_enabled: bool = True,
    ) -> None:
        super().__init__(weights)
        self.forward_sparsity = check_number(forward_sparsity, ("forward_sparsity",), low=0, high=1)
        self.backward_sparsity = check_number(backward_sparsity, ("backward_sparsity",), low=0, high=1)
        if self.backward_sparsity > self.forward_sparsity:
            message = "backward_sparsity is at most forward_sparsity: what forward passes use must learn"
            raise ArgumentError(message, argument=("backward_sparsity",))
        if scope not in ("global", "layer"):
            raise ArgumentError(f"scope is 'layer' or 'global', got {scope!r}", argument=("scope",))
        self.active_weight_decay = check_number(active_weight_decay, ("active_weight_decay",), low=0)
        self.mask_type, self.scope = MaskType.parse(mask_type), scope
        self.leave_enabled = check_flag("leave_enabled", leave_enabled)
        self._masks: dict[str, _Masks] = {}
        self._steps = StepHooks(self._before_step, self._after_step)

    def function(self, name: str) -> Function:
        """The largest weights."""
        return self._masks[name]

    def begin(self, ctx: StepContext) -> None:
        """Choose."""
        self._choose(ctx)

    def on_epoch_begin(self, ctx: StepContext) -> None:
        """Choose anew."""
        super().on_epoch_begin(ctx)
        self._choose(ctx)

    def on_update(self, ctx: StepContext) -> None:
        """Choose anew."""
        if not self._is_over:
            self._choose(ctx)

    def on_minibatch_begin(self, ctx: StepContext) -> None:
        """As every such policy; and look at the next step."""
        super().on_minibatch_begin(ctx)
        if self._is_active and ctx.is_step:
            self._steps.arm(ctx)

    def on_finish(self, ctx: StepContext) -> None:
        """Leave nothing on the optimizers."""
        super().on_finish(ctx)
        self._steps.remove()

    def finish(self, ctx: StepContext, name: str) -> None:
        """Hold the zeros."""
        self._steps.disarm()
        weight = ctx.parameters[name]
        if self.leave_enabled:
            ctx.masks.set(name, (weight != 0).to(weight.dtype), owner=type(self).__name__, binary=True)

    def planned_sparsity(self, window: PolicyWindow, parameters: ParameterIndex) -> Mapping[str, float | None]:
        """``forward_sparsity``."""
        return dict.fromkeys(self._names, self.forward_sparsity if self.scope == "layer" else None)

    def state_dict(self) -> dict[str, Any]:
        """The two masks of each weight."""
        masks = {name: {"forward": m.forward, "backward": m.backward} for name, m in self._masks.items()}
        return {**super().state_dict(), "masks": masks}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`state_dict`."""
        for name, saved in state["masks"].items():
            self._keep(name, saved["forward"].clone(), saved["backward"].clone())
        super().load_state_dict(state)

    @classmethod
    def from_recipe(cls, properties: Mapping[str, Any], note: Callable[[str], None]) -> dict[str, Any]:
        """See :class:`~distiller_ng.registry.RecipeTag`."""
        return gradual_from_recipe(properties, note)

    @classmethod
    def to_recipe(cls, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """See :class:`~distiller_ng.registry.RecipeTag`."""
        return gradual_to_recipe(arguments)

    # -- internals --------------------------------------------------------------------------------------------------

    def _choose(self, ctx: StepContext) -> None:
        weights = [ctx.parameters[name].detach() for name in self._names]
        for key, level in (("forward", self.forward_sparsity), ("backward", self.backward_sparsity)):
            levels, together = [level] * len(weights), self.scope == "global"
            found = create_masks(weights, levels, self.mask_type, together=together, absolute=True)
            for name, mask in broadcast_masks(dict(zip(self._names, found, strict=True))).items():
                if name not in self._masks:
                    self._masks[name] = _Masks(mask, mask)
                setattr(self._masks[name], key, mask)

    def _keep(self, name: str, forward: Tensor, backward: Tensor) -> None:
        known = self._masks.setdefault(name, _Masks(forward, backward))
        known.forward, known.backward = forward, backward

    def _stepped(self, ctx: StepContext) -> list[tuple[Tensor, _Masks, float]]:
        """Weights that ``ctx.optimizer`` steps, with their masks and learning rate."""
        groups = [] if ctx.optimizer is None else ctx.optimizer.param_groups
        rates = {id(p): float(group["lr"]) for group in groups for p in group["params"]}
        found = [(ctx.parameters[name], self._masks[name]) for name in self._names]
        return [(weight, masks, rates[id(weight)]) for weight, masks in found if id(weight) in rates]

    def _before_step(self, ctx: StepContext) -> None:
        for weight, masks, rate in self._stepped(ctx):
            strength = self.active_weight_decay * rate
            if strength:
                inactive = 1.0 / max(1.0 - self.forward_sparsity, 1e-12)
                share = masks.forward + (masks.backward - masks.forward) * inactive
                weight.mul_(1.0 - strength * share.to(device=weight.device, dtype=weight.dtype))
            masks.before = weight.detach().clone()

    def _after_step(self, ctx: StepContext) -> None:
        for weight, masks, _ in self._stepped(ctx):
            if masks.before is not None:
                weight.copy_(torch.where(masks.backward.to(weight.device) != 0, weight, masks.before))
                masks.before = None
