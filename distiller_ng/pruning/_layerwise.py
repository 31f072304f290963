"""What pruners share that prune layer after layer, each on the inputs that the pruned ones give it (layer 2)."""

from __future__ import annotations

import math
import warnings
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from distiller_ng.core.context import StepContext
from distiller_ng.core.distributed import broadcast_masks
from distiller_ng.core.window import PolicyWindow
from distiller_ng.errors import ArgumentError, CalibrationError, ScheduleWarning, TargetError, listed
from distiller_ng.names import PATTERN_PREFIX, ParameterIndex
from distiller_ng.ops.masks import lowest_k_masks
from distiller_ng.ops.patterns import NMPattern
from distiller_ng.pruning._layer_inputs import LayerInputs, Rows, Use
from distiller_ng.pruning._layer_plan import LayerPlan, LayerUse, discover
from distiller_ng.pruning._second_order import check_count
from distiller_ng.pruning.base import DEFAULT_TARGET, MaskGroup
from distiller_ng.pruning.gradual import GradualPruner

__all__ = ["LayerwisePruner", "Statistics"]

_SMALL = 1 << 22  # weights of a layer that is worked on in float64

#: What is known about the inputs of each range of rows of a layer's matrix.
Statistics = Mapping[Rows, Tensor]


class LayerwisePruner(GradualPruner):
    """Decides layers in the order they run, each on the inputs it has once those before it are pruned.

    ``num_samples`` samples are run through the model, from ``scheduler.grad_sampler`` or the loader of the loop.
    Nothing on the model changes while that happens: the pruned weights stand in for the model's own.
    ``update_weights_`` writes them.
    """

    ranks_magnitudes: ClassVar[bool] = False
    level_argument: ClassVar[str] = "sparsity"
    decides_before_step: ClassVar[bool] = True

    def __init__(self, name: str, weights: str | Sequence[str] | None, *, num_samples: int, **common: Any) -> None:
        super().__init__(name, weights, **common)
        if self.mask_type.kind not in ("unstructured", "pattern"):
            message = f"{type(self).__name__} prunes single weights or N:M patterns; mask_type: unstructured or '2:4'"
            raise ArgumentError(message, argument=("mask_type",))
        self.num_samples = check_count("num_samples", num_samples)
        self._moved: dict[str, Tensor] = {}

    @abstractmethod
    def new_statistics(self, columns: int, like: Tensor) -> Tensor:
        """Zeros in which the inputs of one range of rows are summed up, in float64."""

    @abstractmethod
    def add_inputs(self, statistics: Tensor, inputs: Tensor) -> None:
        """Sum up ``inputs [n, columns]``."""

    @abstractmethod
    def importance(self, matrix: Tensor, statistics: Tensor) -> Tensor:
        """``[rows, columns]``: what is ranked over all layers with ``scope: global``."""

    @abstractmethod
    def prune_rows(
        self, matrix: Tensor, statistics: Tensor, level: float | None, starts: list[int] | None, pruned: Tensor
    ) -> tuple[Tensor, Tensor]:
        """New weights and mask of a range of rows: to ``level``, or by the pattern in the groups from ``starts``."""

    @property
    def nm(self) -> NMPattern | None:
        """The pattern, given as ``pattern`` or as ``mask_type``."""
        return self.pattern or self.mask_type.pattern

    def rounding(self, number: float) -> int:
        """Down."""
        return int(number)

    # -- deciding ---------------------------------------------------------------------------------------------------

    def groups(self, parameters: ParameterIndex) -> Sequence[MaskGroup]:
        """All layers: which is first is seen when the model runs."""
        return [MaskGroup(tuple(self.names))] if self.names else []

    def scores(self, name: str, ctx: StepContext) -> Tensor:
        """Magnitudes, where nothing is to be pruned yet."""
        return ctx.weight(name)

    @torch.no_grad()
    def compute_masks(self, group: MaskGroup, ctx: StepContext) -> Mapping[str, Tensor]:
        """Layer after layer; layers that read the same tensor together."""
        self._moved = {}
        levels = {name: self.level(name, ctx) for name in group.names}
        if self.nm is None and all(level == 0 for level in levels.values()):
            return super().compute_masks(group, ctx)
        plan = self._planned(group.names, ctx)
        if self.scope == "global" and self.nm is None:
            levels.update(self._shares(plan, levels, ctx))
        masks: dict[str, Tensor] = {}
        weights = {name: ctx.parameters[name].detach() for name in group.names}
        for layers in plan.stages:
            for name, statistics in self._watched(layers, ctx, weights).items():
                masks[name], weights[name] = self._layer(plan.layers[name], statistics, levels[name], ctx)
                self._moved[name] = weights[name]
        return masks

    @torch.no_grad()
    def update_weights_(self, ctx: StepContext) -> None:
        """Write what :meth:`compute_masks` decided; rank 0's under data parallelism."""
        moved, self._moved = self._moved, {}
        for name, weight in broadcast_masks(moved).items():
            ctx.parameters[name].copy_(weight)

    def _layer(
        self, layer: LayerUse, statistics: Statistics, level: float | None, ctx: StepContext
    ) -> tuple[Tensor, Tensor]:
        """Mask and new weight of one layer."""
        parameter, registered = ctx.parameters[layer.name].detach(), ctx.masks[layer.name].mask
        dead = torch.zeros_like(parameter) if registered is None else (registered == 0).to(parameter.device)
        by_position = self.nm is not None
        starts = None if self.nm is None else layer.group_starts(self.nm.m)
        wide = parameter.double() if parameter.numel() <= _SMALL else parameter.float()
        matrix, gone = layer.matrix(wide, by_position).clone(), layer.matrix(dead.bool(), by_position)
        mask = torch.ones_like(matrix)
        for (first, last), summed in statistics.items():
            ordered = layer.reordered(summed, by_position)
            matrix[first:last], mask[first:last] = self.prune_rows(
                matrix[first:last], ordered, level, starts, gone[first:last]
            )
        like = parameter.dtype
        return layer.shaped(mask, by_position).to(like), layer.shaped(matrix, by_position).to(like)

    # -- looking at data --------------------------------------------------------------------------------------------

    def _planned(self, names: Sequence[str], ctx: StepContext) -> LayerPlan:
        weights = {name: ctx.parameters[name].detach() for name in names}
        plan = None
        for forward in ctx.sampler.passes(ctx.model, 1, ctx.parameters, weights):
            plan = discover(forward, weights)
        if plan is None:
            raise CalibrationError("there are no minibatches to run: the loader is empty")
        self._refuse([name for name in names if name not in plan.layers], plan.refused)
        return plan

    def _refuse(self, names: Sequence[str], refused: Iterable[str]) -> None:
        """An error for a weight that was named itself, a warning for those a pattern or token has found."""
        for name in names:
            target = self._bound[name]
            if not target.text.startswith((PATTERN_PREFIX, "__")) and target.text != DEFAULT_TARGET:
                why = "is no matrix or convolution that has inputs" if name in refused else "is never used"
                message = f"pruner {self.owner!r}: the weight {name!r} {why} in the model's forward pass"
                raise TargetError(f"{message}: name linear layers and convolutions", argument=target.argument)
        if names:
            message = f"pruner {self.owner!r} leaves {listed(names)}: no linear layers or convolutions that are used"
            warnings.warn(ScheduleWarning(message), stacklevel=2)

    def _watched(
        self, layers: Sequence[LayerUse], ctx: StepContext, weights: Mapping[str, Tensor]
    ) -> dict[str, Statistics]:
        """Statistics of these layers' inputs, in one go through the samples."""
        found: dict[str, dict[Rows, Tensor]] = {layer.name: {} for layer in layers}

        def seen(use: Use, pieces: Iterable[Tensor]) -> None:
            summed = found[use.name]
            for piece in pieces:
                if use.rows not in summed:
                    summed[use.rows] = self.new_statistics(piece.shape[1], piece)
                self.add_inputs(summed[use.rows], piece)

        watched = {layer.name: weights[layer.name] for layer in layers}
        inputs = LayerInputs(watched, seen, stop_after=sum(layer.uses for layer in layers))
        left = self.num_samples
        for forward in ctx.sampler.passes(ctx.model, None, ctx.parameters, weights):
            inputs.run(forward)
            left -= forward.samples
            if left <= 0:
                break
        return {name: summed for name, summed in found.items() if summed}

    def _shares(self, plan: LayerPlan, levels: Mapping[str, float | None], ctx: StepContext) -> dict[str, float]:
        """Levels of the layers from one ranking over all of them, on the inputs of the unpruned model."""
        weights = {name: ctx.parameters[name].detach() for name in plan.layers}
        scores: dict[str, Tensor] = {}
        for name, statistics in self._watched(list(plan.layers.values()), ctx, weights).items():
            matrix = plan.layers[name].matrix(weights[name].double(), False).clone()
            for (first, last), summed in statistics.items():
                matrix[first:last] = self.importance(matrix[first:last], summed).to(matrix.dtype)
            scores[name] = matrix
        wanted = math.fsum((levels[name] or 0) * score.numel() for name, score in scores.items())
        masks = lowest_k_masks(list(scores.values()), self.rounding(wanted))
        return {name: float((mask == 0).sum()) / mask.numel() for name, mask in zip(scores, masks, strict=True)}

    # -- checks -----------------------------------------------------------------------------------------------------

    def planned_sparsity(self, name: str, window: PolicyWindow) -> float | None:
        """A pattern's own share, whatever level is given beside it."""
        if self.nm is None or self._parameters is None:
            return super().planned_sparsity(name, window)
        size = self.structures_of(name) or 0
        return size // self.nm.m * (self.nm.m - self.nm.n) / size if size else None

    def check(self, window: PolicyWindow, parameters: ParameterIndex) -> None:
        """Warns about a level beside a pattern."""
        super().check(window, parameters)
        level = self._level_at(self.names[0], 1.0) if self.names and self.pattern is not None else None
        if level is not None and self.nm is not None and abs(level - self.nm.sparsity) > 0.01:
            message = f"pruner {self.owner!r}: the pattern {self.nm} prunes {self.nm.sparsity:g}, not {level:g}"
            warnings.warn(ScheduleWarning(message), stacklevel=2)
