"""The scheduler's hooks: which policy runs when, masks applied in between, and the lifecycle contract (layer 1)."""

from __future__ import annotations

import logging
from collections.abc import MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from distiller_ng.core.context import Compat, StepContext, checked_compat
from distiller_ng.core.entries import ActiveEntries, Entry
from distiller_ng.core.legacy import ScheduledTrainingPolicy, as_policy
from distiller_ng.core.lifecycle import Lifecycle
from distiller_ng.core.masker import ParameterMasker
from distiller_ng.core.masks import MaskRegistry
from distiller_ng.core.policy import LossComponent, Policy, PolicyLoss
from distiller_ng.core.position import TrainPosition
from distiller_ng.core.resume import ResumePoint
from distiller_ng.core.samples import GradientSampler, GradientSamplerLike, SampleSource
from distiller_ng.core.summary import CompressionSummary, summarize
from distiller_ng.core.window import PolicyWindow
from distiller_ng.errors import ArgumentError, LifecycleError
from distiller_ng.graph.inputs import ExampleInputsLike
from distiller_ng.graph.provider import ModelGraph
from distiller_ng.names import ParameterIndex

__all__ = ["HookDriver"]

logger = logging.getLogger(__name__)


class HookDriver:
    """Policies, masks and hooks of one model; :class:`CompressionScheduler` adds saving and the short form."""

    def __init__(
        self,
        model: nn.Module,
        zeros_mask_dict: MutableMapping[str, ParameterMasker] | None = None,
        device: torch.device | str | None = None,
        *,
        optimizer: Optimizer | None = None,
        example_inputs: ExampleInputsLike | None = None,
        accumulation_steps: int = 1,
        compat: Compat | None = None,
    ) -> None:
        self.model = model
        self.parameters = ParameterIndex(model)
        self.masks = MaskRegistry(self.parameters)
        for name, masker in (zeros_mask_dict or {}).items():
            self.masks[name] = masker
        self.optimizer: Optimizer | None = None
        self._given_inputs = example_inputs
        self.graph = ModelGraph(model, example_inputs)
        self.data = SampleSource()
        self.accumulation_steps = accumulation_steps
        self.compat = checked_compat(compat)
        self._entries: list[Entry] = []
        self._lifecycle = Lifecycle()
        self._active = ActiveEntries.of((), 0)
        self._position = TrainPosition(0)
        self._steps_at_begin = 0
        self._last_micro_stepped = True
        self._metrics: dict[str, float] = {}
        self._finished = False
        # Of loops that use the short form: generators as the open epoch's loader found them, where to continue
        # after load_state_dict, the loader's own generators, and whether the open epoch's loader is used up.
        self._epoch_rng: dict[str, Any] | None = None
        self._resume: ResumePoint | None = None
        self._generators: dict[str, torch.Generator] = {}
        self._drained = False
        if optimizer is not None:
            self.attach(optimizer)

    # -- schedule ---------------------------------------------------------------------------------------------------

    def add_policy(
        self,
        policy: Policy | ScheduledTrainingPolicy,
        epochs: Sequence[int] | None = None,
        starting_epoch: float | None = None,
        ending_epoch: float | None = None,
        frequency: float | None = 1,
    ) -> None:
        """Run ``policy`` in the listed ``epochs``, or from ``starting_epoch`` up to ``ending_epoch`` (exclusive).

        Epochs are absolute and 0-based; fractions act between epoch boundaries, ``ending_epoch=-1`` never ends.
        Policies of one epoch run in the order they were added. Raises :class:`ArgumentError` for an impossible window
        and whatever the policy's own check finds (:class:`TargetError`); then nothing was added.
        """
        window = PolicyWindow.from_arguments(epochs, starting_epoch, ending_epoch, frequency)
        adapted = as_policy(policy)
        self._follow_model()
        adapted.check(window, self.parameters)
        entry = Entry(adapted, window, policy)
        adapted.on_added(self._context(entry, self._position))
        self._follow_model()
        self._entries.append(entry)
        if self._lifecycle.phase != "idle":
            self._active = ActiveEntries.of(self._entries, self._lifecycle.epoch)

    @property
    def example_inputs(self) -> ExampleInputsLike | None:
        """What one forward pass is called with, as it was given: a tensor, a tuple or a mapping; None if not known."""
        return self._given_inputs

    @example_inputs.setter
    def example_inputs(self, value: ExampleInputsLike | None) -> None:
        self._given_inputs = value
        self.graph.example_inputs = value

    @property
    def grad_sampler(self) -> GradientSampler | None:
        """Where pruners that need gradients or calibration data get them; None while nothing is known.

        Assign a :class:`GradientSampler`, a loader, or SparseML's ``{"data_loader_builder": ..., "loss_function":
        ...}``. Without one, the loader that ``minibatches(loader)`` goes through is used.
        """
        return self.data.sampler

    @grad_sampler.setter
    def grad_sampler(self, value: GradientSamplerLike | None) -> None:
        self.data.give(value)

    @property
    def zeros_mask_dict(self) -> MaskRegistry:
        """The masks by parameter name; Distiller's name for them."""
        return self.masks

    @property
    def policies(self) -> dict[int, list[Any]]:
        """``{epoch: policies}`` of the whole, closed windows; Distiller's view of a schedule."""
        view: dict[int, list[Any]] = {}
        for entry in self._entries:
            if entry.window.last_epoch is not None:
                for epoch in entry.window.active_epochs():
                    view.setdefault(epoch, []).append(entry.source)
        return view

    @property
    def sched_metadata(self) -> dict[Any, dict[str, Any]]:
        """``{policy: {starting_epoch, ending_epoch, frequency}}``; a policy added twice shows its last window."""
        return {entry.source: entry.window.meta() for entry in self._entries}

    @property
    def schedule(self) -> tuple[tuple[Policy, PolicyWindow], ...]:
        """Every policy with its window, in the order they were added."""
        return tuple((entry.policy, entry.window) for entry in self._entries)

    def attach(self, optimizer: Optimizer) -> None:
        """Keep masked weights at zero after every real step of ``optimizer``, whatever the loop forgets."""
        if not isinstance(optimizer, Optimizer):
            raise ArgumentError(f"expected a torch optimizer, got {type(optimizer).__name__}")
        self.optimizer = optimizer
        self.masks.attach(optimizer)

    # -- hooks ------------------------------------------------------------------------------------------------------

    def on_epoch_begin(self, epoch: int, optimizer: Optimizer | None = None, **kwargs: Any) -> None:
        """An epoch begins. Raises :class:`LifecycleError` while another one is open."""
        self._see(optimizer)
        fresh = self._lifecycle.begin_epoch(epoch)
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
        if loss is not None and not self._active.listeners["before_backward_pass"]:
            return PolicyLoss(loss, []) if return_loss_components else loss
        position = self._locate(epoch, minibatch_id, minibatches_per_epoch)
        total, components = self._fold_loss(loss, position, float(self.accumulation_steps))
        return PolicyLoss(total, components) if return_loss_components else total

    def before_parameter_optimization(
        self, epoch: int, minibatch_id: int, minibatches_per_epoch: int, optimizer: Optimizer | None = None
    ) -> None:
        """Gradients are complete, ``optimizer.step()`` is about to be called."""
        if optimizer is not self.optimizer:
            self._see(optimizer)
        self._lifecycle.in_minibatch("before_parameter_optimization", epoch, minibatch_id)
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
        self._metrics = {}

    def finish(self) -> CompressionSummary:
        """End the run: fire end actions still pending, and compare planned with achieved sparsity.

        Calling it again only compares again.
        """
        self._follow_model()
        position = TrainPosition(max(self._lifecycle.epoch, 0) + 1, 0, self._position.minibatches_per_epoch)
        notes: list[str] = []
        for entry in self._entries:
            if not self._finished:
                entry.end(self._context(entry, position))
                entry.policy.on_finish(self._context(entry, position))
            if not entry.started:
                notes.append(f"{entry.policy.describe()} never became active: {entry.window}")
        self._finished = True
        self.masks.project_()
        planned: dict[str, float | None] = {}
        for entry in self._entries:
            planned.update(entry.policy.planned_sparsity(entry.window, self.parameters))
        for note in notes:
            logger.warning(note)
        return summarize(self.parameters, planned, self.masks.masked(), tuple(notes))

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

    def _see(self, optimizer: Optimizer | None) -> None:
        if optimizer is not None and optimizer is not self.optimizer:
            self.attach(optimizer)

    def _follow_model(self) -> None:
        """Notice parameters that were replaced or added since (``load_state_dict(assign=True)``, a new head)."""
        if self.parameters.refresh():
            self.masks.follow()

    def _only_losses(self, epoch: int) -> bool:
        listeners = ActiveEntries.of(self._entries, epoch).listeners
        return not (listeners["on_epoch_begin"] or listeners["on_minibatch_begin"])

    def _locate(self, epoch: int, minibatch_id: int, minibatches_per_epoch: int) -> TrainPosition:
        k = self.accumulation_steps
        self._position = TrainPosition(epoch, minibatch_id // k, -(-minibatches_per_epoch // k))
        return self._position

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

    def _no_loss(self) -> Tensor:
        """0 without a gradient: the loss of a minibatch without labels."""
        first = next(iter(self.parameters.values()), None)
        return torch.zeros((), device=None if first is None else first.device)

    def _context(self, entry: Entry, position: TrainPosition, **extra: Any) -> StepContext:
        return StepContext(
            model=self.model,
            parameters=self.parameters,
            masks=self.masks,
            window=entry.window,
            position=position,
            optimizer=self.optimizer,
            metrics=self._metrics,
            graph=self.graph,
            data=self.data,
            compat=self.compat,
            **extra,
        )
