"""The pruning policy: when a pruner decides, and how its masks act (layer 3)."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor

from distiller_ng.core.context import StepContext
from distiller_ng.core.distributed import broadcast_masks
from distiller_ng.core.policy import Policy
from distiller_ng.core.position import TrainPosition
from distiller_ng.core.window import PolicyWindow
from distiller_ng.graph.module_flow import batch_norm_pairs, fold_batch_norm_weights
from distiller_ng.names import ParameterIndex
from distiller_ng.policies._group_masks import GroupMasks
from distiller_ng.policies._step_hooks import StepHooks
from distiller_ng.policies.pruning_args import PruningArgs
from distiller_ng.pruning.base import DEFAULT_TARGET, Pruner
from distiller_ng.pruning.legacy import as_pruner

__all__ = ["PruningArgs", "PruningPolicy"]


class PruningPolicy(Policy):
    """Runs one pruner: new masks at every active epoch (or optimizer step), applied by the scheduler.

    ``pruner`` is a :class:`Pruner`, or an object with Distiller's ``set_param_mask``. ``pruner_args`` are documented at
    :class:`PruningArgs`; ``classes`` and ``layers`` are Distiller's, accepted and unused there and here. Masks outlive
    the window: what was pruned stays pruned. Under data parallelism rank 0 decides for all ranks.
    """

    def __init__(
        self,
        pruner: Any,
        pruner_args: Mapping[str, Any] | PruningArgs | None = None,
        classes: Any = None,
        layers: Any = None,
    ) -> None:
        self.pruner: Pruner = as_pruner(pruner)
        self.args = PruningArgs.of(pruner_args)
        self.classes, self.layers = classes, layers
        self._initialized = False
        self._norms: dict[str, str] | None = None  # batch norm behind each layer, with fold_batchnorm
        self._grouping = GroupMasks(self.pruner, self.args.mask_group is True)
        self._decides_at: int | None = None  # optimizer step of the first epoch, with skip_first_minibatch
        self._decided_at: TrainPosition | None = None
        self._decision_waits = False  # for the next optimizer step, with decides_before_step
        self._steps = StepHooks(self._before_step, self.pruner.after_step)
        own = [getattr(type(self.pruner), hook) is not getattr(Pruner, hook) for hook in ("before_step", "after_step")]
        self._watches_steps = self.pruner.decides_before_step or any(own)

    # -- hooks ------------------------------------------------------------------------------------------------------

    def on_epoch_begin(self, ctx: StepContext) -> None:
        """Decide the masks of this epoch."""
        if self.args.skip_first_minibatch and not self._initialized:
            self._decides_at = 1
            self._initialize(ctx)
            return
        self.on_update(ctx)

    def on_update(self, ctx: StepContext) -> None:
        """Decide now."""
        self._initialize(ctx)
        if self.pruner.decides_before_step and ctx.masks.optimizers:
            self._decision_waits = True
            return
        self._update(ctx)

    def _update(self, ctx: StepContext) -> None:
        self._decision_waits, self._decided_at = False, ctx.position
        self._mask_gradients(ctx, True)
        with self.own_levels():
            self._decide(ctx)

    def _before_step(self, ctx: StepContext) -> None:
        self.pruner.before_step(ctx)
        if self._decision_waits:
            self._update(ctx)
            ctx.masks.apply_changes_()

    def _decide(self, ctx: StepContext) -> None:
        pruner = self.pruner
        if self.args.fold_batchnorm:
            ctx = replace(ctx, ranking_weights=self._folded(ctx))
        masks: dict[str, Tensor] = {}
        for group in pruner.groups(ctx.parameters):
            masks.update(pruner.compute_masks(group, ctx))
        masks = broadcast_masks(masks)
        self._set(ctx, self._grouping.extend(ctx, masks) if self._masks_groups(ctx) else masks)
        pruner.update_weights_(ctx)

    def _set(self, ctx: StepContext, masks: Mapping[str, Tensor]) -> None:
        pruner, reset = self.pruner, self.args.reset_optimizer_state
        for name, mask in masks.items():
            ctx.masks.set(
                name,
                mask,
                owner=pruner.owner,
                binary=pruner.binary_masks,
                reset_state=pruner.resets_optimizer_state if reset is None else reset,
            )

    def _masks_groups(self, ctx: StepContext) -> bool:
        """Whether masks extend to whole groups: by the ancestor's rules if asked, never where masks come and go."""
        asked = self.args.mask_group
        if asked is False or (asked is None and ctx.compat == "distiller"):
            return False
        passing = self._is_forward_only or self.args.discard_masks_at_minibatch_end or not self.pruner.binary_masks
        return self._grouping.is_structural and not passing

    def _extend_late(self, ctx: StepContext) -> None:
        """Extend masks, or decide them, where it was not known what the model is called with: now, or when it is."""
        if ctx.graph is None or not (self._grouping.is_waiting or self.pruner.waits_for_inputs):
            return
        if ctx.graph.is_ready:
            if self.pruner.waits_for_inputs:
                self.on_update(ctx)
            self._set(ctx, self._grouping.late(ctx))
            ctx.masks.apply_changes_()
        else:
            ctx.graph.watch(partial(self._extend_late, ctx))

    def on_minibatch_begin(self, ctx: StepContext) -> None:
        """Decide again where that is due, and mask the forward-only backends."""
        step = ctx.position.minibatch_id
        frequency = self.args.mini_batch_pruning_frequency
        periodic = step > 0 and frequency > 0 and ctx.position.step % frequency == 0
        first = self._decides_at is not None and step >= self._decides_at
        if ctx.is_step and (periodic or first):
            self._decides_at = None
            self.on_update(ctx)
        if self._watches_steps and ctx.is_step:
            self._steps.arm(ctx)
        self._extend_late(ctx)
        # Between the micro-batches of one step only double copies can have been put back.
        if self._is_forward_only and (ctx.is_step or self.args.use_double_copies):
            ctx.masks.apply_changes_()
            ctx.masks.apply_forward_(self.pruner.names)

    def before_parameter_optimization(self, ctx: StepContext) -> None:
        """Put the unmasked copies back for the optimizer to update."""
        ctx.masks.revert_(self.pruner.names)

    def on_minibatch_end(self, ctx: StepContext) -> None:
        """Forget the masks of this minibatch, where they last no longer."""
        if ctx.is_step:
            ctx.masks.release(self.pruner.owner, self.pruner.names)

    def on_window_end(self, ctx: StepContext) -> None:
        """Finish the last ramp, make masks permanent or release them, and remove the gradient hooks."""
        is_decided = self._decided_at == ctx.position
        if ctx.window.is_fractional and not (self.pruner.releases_at_window_end or is_decided):
            self._initialize(ctx)
            self._update(ctx)  # the due steps stop short of the end, the planned level must be reached
        self._steps.disarm()
        for name in self.pruner.names:
            masker = ctx.masks[name]
            if self.args.keep_mask and masker.is_forward_only:
                masker.revert_weights(ctx.parameters[name])
                masker.use_double_copies = masker.mask_on_forward_only = False
        ctx.masks.apply_changes_()
        dropped = not (self.args.leave_enabled or math.isinf(ctx.window.end))  # an open window ends with training
        if self.pruner.releases_at_window_end or dropped:
            ctx.masks.release(self.pruner.owner)
            for name in self.pruner.names if dropped else ():
                ctx.masks[name].masks_gradients = False
        self._mask_gradients(ctx, False)
        ctx.masks.apply_changes_()

    def on_finish(self, ctx: StepContext) -> None:
        """Leave nothing on the optimizers, and free what was collected on the way."""
        self._steps.remove()
        self.pruner.stop_observing()

    def on_epoch_end(self, ctx: StepContext) -> None:
        """Outside active epochs the forward-only backends do not mask, so they leave gradients alone too."""
        self._mask_gradients(ctx, False)

    @property
    def observes_preceding_epoch(self) -> bool:
        """Whether the pruner wants to see the epoch before it decides (activation pruners)."""
        return self.pruner.observes

    def on_preceding_epoch_begin(self, ctx: StepContext) -> None:
        """Let the pruner collect."""
        if not self.pruner.names:
            self.pruner.bind(ctx.parameters)
        self.pruner.start_observing(ctx)

    def on_preceding_epoch_end(self, ctx: StepContext) -> None:
        """Stop collecting."""
        self.pruner.stop_observing()

    def listens_to(self, hook: str) -> bool:
        """Only what the arguments call for: a plain policy costs nothing in a minibatch."""
        args = self.args
        if hook == "on_minibatch_begin":
            per_step = args.mini_batch_pruning_frequency > 0 or args.skip_first_minibatch
            return self._is_forward_only or per_step or self._may_mask_groups or self._watches_steps
        if hook == "before_parameter_optimization":
            return args.use_double_copies
        if hook == "on_minibatch_end":
            return args.discard_masks_at_minibatch_end
        if hook == "on_epoch_end":
            return args.mask_gradients
        return super().listens_to(hook)

    # -- checks and state -------------------------------------------------------------------------------------------

    def check(self, window: PolicyWindow, parameters: ParameterIndex) -> None:
        """Resolve the pruner's targets on the model; raises :class:`TargetError` for one that matches nothing."""
        if self.args.levels is not None:
            levels = self.pruner.accept_levels(self.args.levels)
            for key in levels if isinstance(levels, Mapping) else ():
                if key != DEFAULT_TARGET:
                    parameters.match(key, argument=("levels", key))
        self.pruner.bind(parameters)
        self.pruner.check(window, parameters)

    def planned_sparsity(self, window: PolicyWindow, parameters: ParameterIndex) -> Mapping[str, float | None]:
        """The sparsity each targeted parameter should end with."""
        with self.own_levels():
            return {name: self.pruner.planned_sparsity(name, window) for name in self.pruner.names}

    def describe(self) -> str:
        """The pruner's name and class."""
        return f"pruner {self.pruner.owner!r} ({type(self.pruner).__name__})"

    def state_dict(self) -> dict[str, Any]:
        """The pruner's state and what was already set up."""
        return {
            "initialized": self._initialized,
            "decides_at": self._decides_at,
            "decision_waits": self._decision_waits,
            "pruner": self.pruner.state_dict(),
            "group_masks": self._grouping.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`state_dict`."""
        self._initialized = bool(state["initialized"])
        self._decides_at = state["decides_at"]
        self._decision_waits = bool(state.get("decision_waits", False))
        self.pruner.load_state_dict(state["pruner"])
        self._grouping.load_state_dict(state.get("group_masks", {}))

    # -- internals --------------------------------------------------------------------------------------------------

    @property
    def _may_mask_groups(self) -> bool:
        return self.pruner.follows_channels or (self.args.mask_group is not False and self._grouping.is_structural)

    @property
    def _is_forward_only(self) -> bool:
        return self.args.mask_on_forward_only or self.args.use_double_copies

    @contextlib.contextmanager
    def own_levels(self) -> Iterator[None]:
        """This policy's ``levels`` are the pruner's while this policy asks it, and no longer."""
        before = self.pruner.levels
        if self.args.levels is not None:
            self.pruner.levels = self.args.levels
        try:
            yield
        finally:
            self.pruner.levels = before

    def _mask_gradients(self, ctx: StepContext, on: bool) -> None:
        """``zero_masked_gradients`` lasts as long as the masks do, Distiller's ``mask_gradients`` while active."""
        if self.args.mask_gradients or (on and self.args.zero_masked_gradients):
            for name in self.pruner.names:
                ctx.masks[name].masks_gradients = on or self.args.zero_masked_gradients
            ctx.masks.prepare()

    def _initialize(self, ctx: StepContext) -> None:
        """Set the backend of the targeted parameters, the first time the policy is active."""
        if self._initialized:
            return
        self._initialized = True
        if not self.pruner.names:
            self.pruner.bind(ctx.parameters)
        for name in self.pruner.names:
            masker = ctx.masks[name]
            if masker.mask_on_forward_only != self.args.mask_on_forward_only:
                masker.mask_on_forward_only = self.args.mask_on_forward_only
            if masker.use_double_copies != self.args.use_double_copies:
                masker.use_double_copies = self.args.use_double_copies

    def _folded(self, ctx: StepContext) -> dict[str, Tensor]:
        """Ranking weights; which norm follows which layer is looked up once."""
        if self._norms is None:
            layers = [name.rpartition(".")[0] for name in self.pruner.names]
            self._norms = batch_norm_pairs(ctx.model, layers, ctx.example_inputs)
        return fold_batch_norm_weights(ctx.model, self.pruner.names, pairs=self._norms)
