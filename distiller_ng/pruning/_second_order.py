"""What pruners share that weigh weights by the inverse Fisher matrix of sampled gradients (layer 2)."""

from __future__ import annotations

import logging
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
from distiller_ng.errors import ArgumentError, ScheduleWarning
from distiller_ng.names import ParameterIndex
from distiller_ng.ops.fisher import InverseFisher, inverse_fisher
from distiller_ng.pruning._checks import check_number
from distiller_ng.pruning._flat_layout import FlatLayout
from distiller_ng.pruning._gradient_buffer import GradientBuffer
from distiller_ng.pruning.base import MaskGroup
from distiller_ng.pruning.gradual import FROM_PARAM, GradualPruner

__all__ = ["SecondOrderPruner", "check_count"]

logger = logging.getLogger(__name__)

_LEAST_STEPS = 16


class SecondOrderPruner(GradualPruner):
    """Prunes the weights whose loss the quadratic model of the loss says is least, and moves the others to make up.

    With ``F = damp I + (1 / m) sum g g^T`` by block, over ``m`` gradients of minibatches, and already pruned weights
    kept at 0::

        score  w_i^2 / (2 [F^-1]_ii + eps)                  a block Q of inputs: w_Q^T ([F^-1]_QQ)^-1 w_Q / 2
        then   w -= F^-1 u,  u_i = w_i / ([F^-1]_ii + eps)  at newly pruned i    u_Q = ([F^-1]_QQ)^-1 w_Q

    ``compute_masks`` decides masks and remembers the moved weights, ``update_weights_`` writes them: no other pruner's
    weights are touched, and the masks reach the weights as always. All targets are decided together, so that gradients
    are sampled once; ``scope`` says what is ranked together.
    """

    ranks_magnitudes: ClassVar[bool] = False
    level_argument: ClassVar[str] = "sparsity"
    decides_before_step: ClassVar[bool] = True
    #: Added to diagonals, against division by zero.
    epsilon: ClassVar[float] = torch.finfo(torch.float32).eps

    def __init__(
        self,
        name: str,
        weights: str | Sequence[str] | None,
        *,
        damp: float,
        fisher_block_size: int | None,
        num_recomputations: int,
        grad_sampler_kwargs: Mapping[str, Any] | None,
        **common: Any,
    ) -> None:
        super().__init__(name, weights, **common)
        self.damp = check_number(damp, ("damp",), low=0)
        if self.damp == 0:
            message = "damp must be above 0: without it the Fisher matrix of few gradients has no inverse"
            raise ArgumentError(message, argument=("damp",))
        if fisher_block_size is not None:
            check_count("fisher_block_size", fisher_block_size)
        if grad_sampler_kwargs is not None and not isinstance(grad_sampler_kwargs, Mapping):
            message = f"grad_sampler_kwargs maps arguments of the sampler's builder, got {grad_sampler_kwargs!r}"
            raise ArgumentError(message, argument=("grad_sampler_kwargs",))
        self.fisher_block_size = fisher_block_size
        self.num_recomputations = check_count("num_recomputations", num_recomputations)
        self.grad_sampler_kwargs = grad_sampler_kwargs
        self.buffer: GradientBuffer | None = None
        self._scores: dict[str, Tensor] = {}
        self._moved: dict[str, Tensor] = {}
        self._present: dict[str, float] = {}
        self._share = 1.0

    @abstractmethod
    def gradients_wanted(self, sparsity: float) -> int:
        """How many gradients a decision takes, at the share of zeros there is now."""

    @abstractmethod
    def gradients_most(self) -> int:
        """The most that any decision takes."""

    #: How many bytes of training steps' gradients are kept at most (16 steps in any case); None: as many as wanted.
    buffer_bytes: ClassVar[int | None] = None
    #: Parts in which the columns of an unblocked matrix are worked on, and where.
    num_pages: int = 1
    device: torch.device | None = None
    #: Whether the training steps' own gradients are used even where others could be sampled.
    prefers_buffer: bool = False

    # -- deciding ---------------------------------------------------------------------------------------------------

    def groups(self, parameters: ParameterIndex) -> Sequence[MaskGroup]:
        """Everything at once, for one sampling of gradients."""
        return [MaskGroup(tuple(self.names))] if self.names else []

    def level(self, name: str, ctx: StepContext) -> float | None:
        """Of the recomputation at hand: that share of the way from the present sparsity to the wanted one."""
        goal = super().level(name, ctx)
        if goal is None or self._share == 1:
            return goal
        return self._present[name] + self._share * (goal - self._present[name])

    def scores(self, name: str, ctx: StepContext) -> Tensor:
        """Of the recomputation at hand."""
        return self._scores[name]

    @torch.no_grad()
    def compute_masks(self, group: MaskGroup, ctx: StepContext) -> Mapping[str, Tensor]:
        """In as many rounds as recomputations, each between the present sparsity and the wanted one."""
        self._share, self._moved = 1.0, {}
        weights = {name: ctx.parameters[name].detach() for name in group.names}
        if self.init_sparsity != FROM_PARAM and all(self.level(name, ctx) == 0 for name in group.names):
            self._scores = weights
            return super().compute_masks(group, ctx)  # no gradients are needed to prune nothing
        self._present = self._zeros(group.names, ctx)
        masks: Mapping[str, Tensor] = {}
        for done in range(1, self.num_recomputations + 1):
            self._share = done / self.num_recomputations
            dead = {name: self._dead(name, ctx, masks) for name in group.names}
            fishers = self._measure(ctx, {**weights, **self._moved}, dead)
            masks = self._round(group, ctx, {**weights, **self._moved}, dead, fishers)
        self._scores = {}
        return masks

    @torch.no_grad()
    def update_weights_(self, ctx: StepContext) -> None:
        """Write what :meth:`compute_masks` moved; rank 0's under data parallelism."""
        moved, self._moved = self._moved, {}
        for name, weight in broadcast_masks(moved).items():
            ctx.parameters[name].copy_(weight)

    def _round(
        self,
        group: MaskGroup,
        ctx: StepContext,
        weights: Mapping[str, Tensor],
        dead: Mapping[str, Tensor],
        fishers: dict[str, InverseFisher],
    ) -> Mapping[str, Tensor]:
        """Masks; the weights that they move are in ``_moved``."""
        single = self.mask_type.is_unstructured or self.mask_type.pattern is not None
        for name, fisher in fishers.items():
            scores = self._score(fisher, weights[name].masked_fill(dead[name], 0))
            # What is pruned comes before what is worth nothing; in a block it may have neighbours that live.
            self._scores[name] = scores.masked_fill(dead[name], -math.inf) if single else scores
        decided = super().compute_masks(group, ctx)
        masks = {name: mask.to(weights[name].dtype) for name, mask in decided.items()}
        for name in group.names:
            fisher = fishers.pop(name)  # freed as soon as it is used
            if name not in masks:
                continue
            newly = (masks[name] == 0) & ~dead[name]
            if bool(newly.any()):
                step = self._step(fisher, weights[name], newly).to(weights[name].dtype)
                self._moved[name] = (weights[name] - step).masked_fill_(newly, 0)
        return masks

    def _score(self, fisher: InverseFisher, weight: Tensor) -> Tensor:
        """In the weight's shape."""
        layout = FlatLayout.of(weight.shape, self.mask_type)
        flat = layout.flat(weight).to(fisher.dtype)
        if layout.width == 1:
            return layout.shaped(flat.square() / (2 * fisher.diagonal().to(flat.device) + self.epsilon))
        rows = flat.view(-1, layout.width)
        whole = 0.5 * (rows * self._solved(fisher, rows)).sum(dim=1, keepdim=True)
        return layout.shaped(whole.expand_as(rows).reshape(-1))

    def _step(self, fisher: InverseFisher, weight: Tensor, newly: Tensor) -> Tensor:
        """``F^-1 u``, in the weight's shape."""
        layout = FlatLayout.of(weight.shape, self.mask_type)
        flat = layout.flat(weight * newly).to(fisher.dtype)
        if layout.width == 1:
            force = flat / (fisher.diagonal().to(flat.device) + self.epsilon)
        else:
            force = self._solved(fisher, flat.view(-1, layout.width)).reshape(-1) * layout.flat(newly)
        return layout.shaped(fisher.multiply(force).to(weight.device))

    @staticmethod
    def _solved(fisher: InverseFisher, rows: Tensor) -> Tensor:
        """``([F^-1]_QQ)^-1 w_Q`` for each group."""
        blocks = fisher.groups(rows.shape[1]).double().to(rows.device)
        solution: Tensor = torch.linalg.solve(blocks, rows.double().unsqueeze(2)).squeeze(2)
        return solution.to(rows.dtype)

    # -- gradients --------------------------------------------------------------------------------------------------

    def before_step(self, ctx: StepContext) -> None:
        """Without anything to sample from, the training steps' gradients are what there is: keep the last ones."""
        if ctx.data.is_known and not self.prefers_buffer:
            self.buffer = None
            return
        if self.buffer is None:
            self.buffer = GradientBuffer()
        self.buffer.add(ctx, self.names, self._buffer_limit(ctx))

    def stop_observing(self) -> None:
        """Training is over: free the training steps' gradients."""
        self.buffer = None

    def _buffer_limit(self, ctx: StepContext) -> int:
        wanted = self.gradients_most()
        if self.buffer_bytes is None:
            return wanted
        step = sum(ctx.parameters[name].numel() * ctx.parameters[name].element_size() for name in self.names)
        return min(wanted, max(_LEAST_STEPS, self.buffer_bytes // max(step, 1)))

    def _measure(
        self, ctx: StepContext, weights: Mapping[str, Tensor], dead: Mapping[str, Tensor]
    ) -> dict[str, InverseFisher]:
        """Inverse Fisher blocks by name, of gradients at ``weights``, those of pruned weights left out."""
        sparsity = sum(int(d.sum()) for d in dead.values()) / max(sum(d.numel() for d in dead.values()), 1)
        count = self.gradients_wanted(sparsity)
        fishers = {name: self._fisher(weight, count) for name, weight in weights.items()}
        for name, fisher in fishers.items():
            if bool(dead[name].any()):
                keep = FlatLayout.of(weights[name].shape, self.mask_type).flat(~dead[name])
                fisher.keep = keep.to(device=fisher.device, dtype=fisher.dtype)
        for gradients in self._gradients(ctx, count, weights):
            for name, fisher in fishers.items():
                fisher.add(FlatLayout.of(weights[name].shape, self.mask_type).flat(gradients[name]))
        for fisher in fishers.values():
            fisher.invert()
        return fishers

    def _gradients(self, ctx: StepContext, count: int, weights: Mapping[str, Tensor]) -> Iterable[Mapping[str, Tensor]]:
        buffer = self.buffer
        if buffer is not None and buffer.count:
            if buffer.count < count:
                message = "pruner %r decides on %d gradients of training steps; it asks for %d"
                logger.warning(message, self.owner, buffer.count, count)
            return buffer.last(count)
        instead = weights if self._moved else None
        return ctx.gradients(list(weights), count, options=self.grad_sampler_kwargs, weights=instead)

    def _fisher(self, weight: Tensor, count: int) -> InverseFisher:
        layout, block = FlatLayout.of(weight.shape, self.mask_type), self.fisher_block_size
        if block is not None:
            block = -(-block // layout.width) * layout.width
        device = weight.device if self.device is None else self.device
        return inverse_fisher(layout.size, count, damp=self.damp, block_size=block, pages=self.num_pages, device=device)

    # -- what there is ----------------------------------------------------------------------------------------------

    def _dead(self, name: str, ctx: StepContext, before: Mapping[str, Tensor]) -> Tensor:
        """Where the weight is pruned already, by anybody."""
        mask, decided = ctx.masks[name].mask, before.get(name)
        parameter = ctx.parameters[name]
        dead = torch.zeros_like(parameter, dtype=torch.bool) if mask is None else mask.to(parameter.device) == 0
        return dead if decided is None else dead | (decided == 0)

    def _zeros(self, names: Sequence[str], ctx: StepContext) -> dict[str, float]:
        """The share of zeros of this pruner's masks: of each, or of all together."""
        zeros, sizes = {}, {name: ctx.parameters[name].numel() for name in names}
        for name in names:
            mask = ctx.masks[name].owners.get(self.owner)
            zeros[name] = 0 if mask is None else int((mask == 0).sum())
        if self.scope == "global":
            return dict.fromkeys(names, sum(zeros.values()) / max(sum(sizes.values()), 1))
        return {name: zeros[name] / max(sizes[name], 1) for name in names}

    def check(self, window: PolicyWindow, parameters: ParameterIndex) -> None:
        """Warns about Fisher blocks that would cut groups of weights."""
        super().check(window, parameters)
        block = self.fisher_block_size
        width = FlatLayout.of(parameters[self.names[0]].shape, self.mask_type).width if self.names else 1
        if block is not None and block % width:
            whole = -(-block // width) * width
            message = f"fisher_block_size {block} cuts blocks of {width} weights: {whole} is used"
            warnings.warn(ScheduleWarning(f"pruner {self.owner!r}: {message}"), stacklevel=2)

    # -- state ------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Also the gradients of training steps, where those are used."""
        buffer = None if self.buffer is None else self.buffer.state_dict()
        return {**super().state_dict(), "buffer": buffer}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`state_dict`."""
        super().load_state_dict({key: value for key, value in state.items() if key != "buffer"})
        self.buffer = None if state["buffer"] is None else GradientBuffer.restored(state["buffer"])


def check_count(argument: str, value: Any) -> int:
    """``value`` if it is a whole number from 1; raises :class:`ArgumentError` at ``argument``."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ArgumentError(f"{argument} is a whole number from 1, got {value!r}", argument=(argument,))
    return value
