"""The scheduler's hooks: which policy runs when, masks applied in between, and the lifecycle contract (layer 1)."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from distiller_ng.core.entries import ActiveEntries, Entry
from distiller_ng.core.policy import LossComponent, PolicyLoss
from distiller_ng.core.policy_list import PolicyList
from distiller_ng.core.position import TrainPosition
from distiller_ng.core.summary import CompressionSummary, summarize
from distiller_ng.errors import LifecycleError
from distiller_ng.graph.changes import changes_of

__all__ = ["HookDriver"]

logger = logging.getLogger(__name__)


class HookDriver(PolicyList):
    """Policies, masks and hooks of one model; :class:`CompressionScheduler` adds saving and the short form."""

    # -- hooks ------------------------------------------------------------------------------------------------------

    def on_epoch_begin(self, epoch: int, optimizer: Optimizer | None = None, **kwargs: Any) -> None:
        """An epoch begins. Raises :class:`LifecycleError` while another one is open."""
        self._see(optimizer)
        fresh = self._lifecycle.begin_epoch(epoch)
        for observer in self.observers:
            observer.epoch_began(epoch)
        self._follow_model()
        self._active = ActiveEntries.of(self._entries, epoch)
        if not fresh:
            return
        self._metrics = {}
        self._last_micro_stepped = True
        self._position = TrainPosition(epoch, 0, max(self._position.minibatches_per_epoch, 1))
        for entry in self._active.preceding:
            entry.policy.on_preceding_epoch_begin(self._context(entry, self._position))
        for entry in self._active.whole:
            entry.started = True
            entry.policy.on_epoch_begin(self._context(entry, self._position))

    def on_minibatch_begin(
        self, epoch: int, minibatch_id: int, minibatches_per_epoch: int, optimizer: Optimizer | None = None
    ) -> None:
        """A minibatch's forward pass is about to begin; changed masks are applied here."""
        if optimizer is not self.optimizer:
            self._see(optimizer)
        self._lifecycle.begin_minibatch(epoch, minibatch_id, minibatches_per_epoch)
        active, masks = self._active, self.masks
        is_step = self._begins_step(minibatch_id)
        self._steps_at_begin = masks.steps
        self._is_step_begun = not active.stepwise
        if active.fractional or active.listeners["on_minibatch_begin"]:
            position = self._locate(epoch, minibatch_id, minibatches_per_epoch)
            if is_step:
                for entry in active.fractional:
                    entry.advance(position, self._context)
            for entry in active.listening("on_minibatch_begin", position):
                entry.policy.on_minibatch_begin(self._context(entry, position, is_step=is_step))
        if masks.has_changes:
            masks.apply_changes_()
        masks.prepare()
        if not masks.is_attached:
            masks.project_()

    def before_backward_pass(
        self,
        epoch: int,
        minibatch_id: int,
        minibatches_per_epoch: int,
        loss: Tensor | None,
        optimizer: Optimizer | None = None,
        return_loss_components: bool = False,
    ) -> Tensor | PolicyLoss:
        """The loss after every policy had its say; ``loss`` itself is not changed.

        Returns the loss tensor, or with ``return_loss_components`` a :class:`PolicyLoss` with all new components in
        policy order. With ``accumulation_steps`` above 1, pass the loss divided by it. None is the loss of a minibatch
        without labels, which is trained on what policies add (distillation) alone; :class:`LifecycleError` if they add
        nothing.
        """
        if optimizer is not self.optimizer:
            self._see(optimizer)
        if self._lifecycle.is_pristine and self._only_losses(epoch):
            # A loop with nothing but loss terms may call this hook alone.
            self._active = ActiveEntries.of(self._entries, epoch)
        else:
            self._lifecycle.in_minibatch("before_backward_pass", epoch, minibatch_id)
        if loss is not None and not self._active.listeners["before_backward_pass"] and not self.observers:
            return PolicyLoss(loss, []) if return_loss_components else loss
        position = self._locate(epoch, minibatch_id, minibatches_per_epoch)
        total, components = self._fold_loss(loss, position, float(self.accumulation_steps))
        if self.observers:
            self._tell_loss((epoch, minibatch_id, minibatches_per_epoch), loss, total, components)
        return PolicyLoss(total, components) if return_loss_components else total

    def before_parameter_optimization(
        self, epoch: int, minibatch_id: int, minibatches_per_epoch: int, optimizer: Optimizer | None = None
    ) -> None:
        """Gradients are complete, ``optimizer.step()`` is about to be called."""
        if optimizer is not self.optimizer:
            self._see(optimizer)
        self._lifecycle.in_minibatch("before_parameter_optimization", epoch, minibatch_id)
        if not self._is_step_begun and self._declares_step(minibatch_id, minibatches_per_epoch):
            self._begin_open_step()
        if self._active.listeners["before_parameter_optimization"]:
            position = self._locate(epoch, minibatch_id, minibatches_per_epoch)
            for entry in self._active.listening("before_parameter_optimization", position):
                entry.policy.before_parameter_optimization(self._context(entry, position))

    def on_minibatch_end(
        self, epoch: int, minibatch_id: int, minibatches_per_epoch: int, optimizer: Optimizer | None = None
    ) -> None:
        """``optimizer.step()`` was called (or, accumulating, is still to come)."""
        if optimizer is not self.optimizer:
            self._see(optimizer)
        self._lifecycle.end_minibatch(epoch, minibatch_id)
        masks = self.masks
        hook_fired = masks.steps != self._steps_at_begin
        if not hook_fired:  # no hook, or an engine that bypasses it
            masks.project_()
        is_step = hook_fired or self._ends_step(minibatch_id, minibatches_per_epoch)
        if is_step and not self._is_step_begun:  # a loop without optimizer and without the hook before its step
            self._begin_step(self._locate(epoch, minibatch_id, minibatches_per_epoch))
        self._is_step_begun = True
        self._last_micro_stepped = is_step
        if self._active.listeners["on_minibatch_end"]:
            position = self._locate(epoch, minibatch_id, minibatches_per_epoch)
            last = minibatch_id + 1 == minibatches_per_epoch
            for entry in self._active.listening("on_minibatch_end", position):
                entry.policy.on_minibatch_end(self._context(entry, position, is_step=is_step, is_last_minibatch=last))
            if masks.has_changes:
                masks.apply_changes_()

    def on_epoch_end(self, epoch: int, optimizer: Optimizer | None = None, **kwargs: Any) -> None:
        """An epoch ends, after validation. ``metrics={'min': val_loss, 'max': top1}`` feeds ReduceLROnPlateau."""
        self._see(optimizer)
        metrics = kwargs.pop("metrics", None)
        if metrics is not None:
            self._metrics = {key: float(value) for key, value in metrics.items()}
        self._lifecycle.end_epoch(epoch)
        position = TrainPosition(epoch, 0, self._position.minibatches_per_epoch)
        for entry in self._active.preceding:
            entry.policy.on_preceding_epoch_end(self._context(entry, position))
        for entry in self._active.whole:
            entry.policy.on_epoch_end(self._context(entry, position))
            if entry.window.is_last(epoch):
                entry.end(self._context(entry, position))
        if self.masks.has_changes:
            self.masks.apply_changes_()
        for observer in self.observers:
            observer.epoch_ended(epoch, self._metrics)
        self._metrics = {}

    def finish(self) -> CompressionSummary:
        """End the run: fire end actions still pending, and compare planned with achieved sparsity.

        Calling it again only compares again.
        """
        self._follow_model()
        position = self._final_position()
        notes: list[str] = []
        for entry in self._entries:
            if not self._finished:
                if not entry.window.is_stepwise or (self.compat != "sparseml" and entry.window.is_over(position)):
                    entry.end(self._context(entry, position))
                entry.policy.on_finish(self._context(entry, position))
            if not entry.started:
                notes.append(f"{entry.policy.describe()} never became active: {entry.window}")
        self._finished = True
        self.masks.project_()
        planned: dict[str, float | None] = {}
        for entry in self._entries:
            for name, sparsity in entry.policy.planned_sparsity(entry.window, self.parameters).items():
                if sparsity is not None or name not in planned:
                    planned[name] = sparsity
        for note in notes:
            logger.warning(note)
        summary = summarize(self.parameters, planned, self.masks.masked(), tuple(notes), changes_of(self.model))
        for observer in self.observers:
            observer.finished(summary)
        return summary

    def run_once(self) -> CompressionSummary:
        """One-shot use, without training: every policy acts once as at the end of its window, in order; then finish."""
        self._follow_model()
        position = TrainPosition.one_shot()
        for entry in self._entries:
            self.start_entry(entry, position)
            entry.end(self._context(entry, position))
        return self.finish()

    def start_entry(self, entry: Entry, position: TrainPosition) -> None:
        """Let a policy act now as at the start of its window, unless it did before."""
        if not entry.started:
            entry.started = True
            entry.policy.on_update(self._context(entry, position))
            self.masks.apply_changes_()

    def mask_all_weights(self, is_forward: bool = True) -> None:
        """Apply every mask now; ``is_forward=False`` leaves out the masks that act in forward passes only."""
        self.masks.project_()
        if is_forward:
            self.masks.apply_forward_()

    @staticmethod
    def verify_policy_loss(policy_loss: PolicyLoss) -> list[LossComponent]:
        """The components of what a policy returned, as a list; raises ``TypeError`` for anything else."""
        if not isinstance(policy_loss, PolicyLoss):
            raise TypeError(f"before_backward_pass returns None or a PolicyLoss, got {type(policy_loss).__name__}")
        components = policy_loss.loss_components
        found = [components] if isinstance(components, LossComponent) else list(components)
        for component in found:
            if not isinstance(component, LossComponent):
                raise TypeError(f"loss_components holds LossComponent, got {type(component).__name__}")
        return found

    # -- internals --------------------------------------------------------------------------------------------------

    def _only_losses(self, epoch: int) -> bool:
        listeners = ActiveEntries.of(self._entries, epoch).listeners
        return not (listeners["on_epoch_begin"] or listeners["on_minibatch_begin"])

    def _begins_step(self, minibatch_id: int) -> bool:
        if self.accumulation_steps > 1:
            return minibatch_id % self.accumulation_steps == 0
        return minibatch_id == 0 or self._last_micro_stepped

    def _ends_step(self, minibatch_id: int, minibatches_per_epoch: int) -> bool:
        """Whether a minibatch in which no attached optimizer stepped still completes a step."""
        if self.masks.is_attached and (self.masks.steps or self._has_gradients()):
            return False  # accumulating, or GradScaler skipped the step
        k = self.accumulation_steps
        done = minibatch_id + 1
        return done % k == 0 or done == minibatches_per_epoch

    def _has_gradients(self) -> bool:
        return any(parameter.grad is not None for parameter in self.parameters.values())

    def _fold_loss(
        self, given: Tensor | None, position: TrainPosition, accumulation: float
    ) -> tuple[Tensor, list[LossComponent]]:
        components: list[LossComponent] = []
        loss = self._no_loss() if given is None else given
        entries = self._active.listening("before_backward_pass", position)
        if not entries and given is not None:
            return loss, components
        total = loss if accumulation == 1 else loss * accumulation  # policies see the loss at full scale
        for entry in entries:
            result = entry.policy.before_backward_pass(self._context(entry, position, loss=total))
            if result is not None:
                components += self.verify_policy_loss(result)
                total = result.overall_loss
        if given is None and not total.requires_grad:
            raise LifecycleError(
                "the loss is None, and no policy that is active now adds one: a minibatch without labels needs "
                "distillation (or leave it out)"
            )
        if accumulation != 1:
            total = total / accumulation
            components = [LossComponent(c.name, c.value / accumulation) for c in components]
        return total, components

    def _tell_loss(
        self, where: tuple[int, int, int], given: Tensor | None, total: Tensor, components: list[LossComponent]
    ) -> None:
        """Observers hear of undivided losses; those here are divided by the accumulation steps."""
        k = self.accumulation_steps
        if k > 1:
            given, total = None if given is None else given * k, total * k
            components = [LossComponent(c.name, c.value * k) for c in components]
        for observer in self.observers:
            observer.loss_seen(*where, (given, total), components)

    def _no_loss(self) -> Tensor:
        """0 without a gradient: the loss of a minibatch without labels."""
        first = next(iter(self.parameters.values()), None)
        return torch.zeros((), device=None if first is None else first.device)
