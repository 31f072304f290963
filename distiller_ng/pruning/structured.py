"""Gradual pruning of whole filters or channels (layer 2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from distiller_ng.core.context import StepContext
from distiller_ng.errors import ArgumentError, TargetError
from distiller_ng.names import ParameterIndex
from distiller_ng.ops.mask_types import MaskTypeLike
from distiller_ng.ops.masks import lowest_k_mask
from distiller_ng.pruning.base import PRUNERS, MaskGroup, Scope, Target
from distiller_ng.pruning.gradual import FinalSparsity, GradualPruner, InitSparsity
from distiller_ng.pruning.sparsity_schedules.base import ScheduleLike
from distiller_ng.pruning.sparsity_schedules.curves import Curve
from distiller_ng.registry import RecipeTag

__all__ = ["StructuredPruner"]


@PRUNERS.register(
    "StructuredPruner",
    injected=("name",),
    recipe_tag=RecipeTag(
        "StructuredPruningModifier",
        default_params="__ALL_PRUNABLE__",
        fixed_policy_args={"mask_group": False},
    ),
)
class StructuredPruner(GradualPruner):
    """Prunes the filters (or input channels) of lowest L2 norm, gradually: exactly ``round(s * filters)`` of a tensor.

    ``mask_type``: ``filter`` (dimension 0) or ``channel`` (dimension 1). ``param_groups``: lists of parameter names
    that lose the same indices, those of the lowest sum of norms over the group; where one has a multiple of another's
    channels (a linear layer behind a flattened convolution), each channel stands for as many neighbours, by their mean.
    A tensor with one filter or channel (depthwise) is left alone. ``scope: global`` makes one ranking over all targets.
    The other arguments are those of :class:`~distiller_ng.pruning.gradual.GradualPruner`.

    Weights are zeroed and shapes stay; with the policy's ``mask_group`` what belongs to a filter goes with it, and
    thinning removes it. Source: SparseML's ``StructuredPruningModifier``. Filters of norms 3, 1, 2 and 4 at 0.5 leave
    the first and the last::

        pruners:
          filters:
            class: StructuredPruner
            weights: ['re:layer1.*conv.*weight']
            init_sparsity: 0.0
            final_sparsity: 0.5
            mask_type: filter
            param_groups: [[layer1.0.conv2.weight, layer1.1.conv2.weight]]

    Raises :class:`ArgumentError` for another ``mask_type``, and for groups whose sizes do not fit.
    """

    refuses_mask_types: ClassVar[tuple[str, ...]] = ("unstructured", "block", "pattern")
    resets_optimizer_state: ClassVar[bool] = True

    def __init__(
        self,
        name: str,
        weights: str | Sequence[str] | None = None,
        *,
        init_sparsity: InitSparsity | None = None,
        final_sparsity: FinalSparsity | None = None,
        inter_func: Curve = "cubic",
        mask_type: MaskTypeLike = "filter",
        param_groups: Sequence[Sequence[str]] = (),
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
        self.param_groups = _check_groups(param_groups)
        self._members: list[list[str]] = []

    def structure_dim(self, name: str) -> int | None:
        """0 for filters, 1 for channels."""
        return self.mask_type.structure_dim

    def bind(self, parameters: ParameterIndex, *, strict: bool = True) -> list[str]:
        """As every pruner's; also the groups, each on its names that are targets."""
        names = super().bind(parameters, strict=strict)
        self._members = []
        for position, group in enumerate(self.param_groups):
            where = ("param_groups", position)
            found = parameters.select(group, argument=where) if strict else _known(parameters, group)
            members = [name for name in found if name in names]
            sizes = [self._size(parameters[name]) for name in members]
            if any(max(sizes) % size for size in sizes):
                message = f"param_groups: {dict(zip(members, sizes, strict=True))} have sizes that do not fit together"
                raise ArgumentError(message, argument=where)
            self._members.append(members)
        return names

    def check_parameter(self, name: str, parameter: Tensor, target: Target) -> None:
        """Only tensors that have such a dimension."""
        if parameter.dim() < 2:
            message = f"{name!r} of shape {list(parameter.shape)} has no {self.mask_type.kind}s to prune"
            raise TargetError(message, argument=target.argument)

    def compute_masks(self, group: MaskGroup, ctx: StepContext) -> Mapping[str, Tensor]:
        """Alone, together, or by the groups."""
        super_masks = dict(super().compute_masks(group, ctx))
        for members in self._members:
            if members and members[0] in group.names:
                super_masks.update(self._group_masks(members, ctx))
        return super_masks

    def _layer_mask(self, name: str, level: float | None, ctx: StepContext) -> Tensor | None:
        weight = ctx.weight(name)
        if self.pattern is None:
            return None if level is None else self._create([weight], [level])[0]
        norms = self.mask_type.group_scores(weight)
        k = norms.numel() // self.pattern.m * (self.pattern.m - self.pattern.n)
        k = k if level is None else self.rounding(level * norms.numel())
        return self.mask_type.expand(lowest_k_mask(norms, k, pattern=self.pattern), weight)

    def _global_masks(self, levels: Mapping[str, float | None], ctx: StepContext) -> dict[str, Tensor | None] | None:
        if self.pattern is not None:
            return None  # patterns are each layer's own
        wanted = {name: level for name, level in levels.items() if level}
        found = self._create([ctx.weight(name) for name in wanted], list(wanted.values()))
        return {**{name: self.dense_mask(name, ctx) for name in levels}, **dict(zip(wanted, found, strict=True))}

    def _group_masks(self, members: Sequence[str], ctx: StepContext) -> dict[str, Tensor]:
        """One choice for all members, from the sum of their norms; the level is the first one's."""
        size = min(self._size(ctx.parameters[name]) for name in members)
        level = self.level(members[0], ctx) or 0.0
        total = torch.zeros(size)
        for name in members:
            norms = self.mask_type.group_scores(ctx.weight(name)).float().cpu()
            total += norms.reshape(size, -1).mean(dim=1)
        kept = lowest_k_mask(total, self.rounding(level * size))
        masks = {}
        for name in members:
            weight = ctx.parameters[name].detach()
            spread = kept.repeat_interleave(self._size(weight) // size)
            masks[name] = self.mask_type.expand(spread.to(weight.device), weight)
        return masks

    def _size(self, weight: Tensor) -> int:
        return weight.shape[self.mask_type.structure_dim or 0]


def _known(parameters: ParameterIndex, names: Sequence[str]) -> list[str]:
    return [found for name in names if (found := parameters.find(name)) is not None]


def _check_groups(groups: Any) -> list[list[str]]:
    if isinstance(groups, str) or not isinstance(groups, Sequence):
        raise ArgumentError(f"param_groups is a list of lists of names, got {groups!r}", argument=("param_groups",))
    for position, group in enumerate(groups):
        if isinstance(group, str) or not isinstance(group, Sequence) or not all(isinstance(n, str) for n in group):
            message = f"param_groups is a list of lists of names: [[conv1.weight, conv2.weight]], got {group!r}"
            raise ArgumentError(message, argument=("param_groups", position))
    return [list(group) for group in groups]
