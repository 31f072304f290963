"""The policies of one model in order, with all they act on, and what is due before an optimizer step (layer 1)."""

from __future__ import annotations

import math
from collections.abc import MutableMapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from distiller_ng.core.context import Compat, StepContext, checked_compat
from distiller_ng.core.entries import ActiveEntries, Entry
from distiller_ng.core.legacy import ScheduledTrainingPolicy, as_policy
from distiller_ng.core.lifecycle import Lifecycle
from distiller_ng.core.masker import ParameterMasker
from distiller_ng.core.masks import MaskRegistry
from distiller_ng.core.observer import RunObserver
from distiller_ng.core.policy import Policy
from distiller_ng.core.position import TrainPosition
from distiller_ng.core.resume import ResumePoint
from distiller_ng.core.samples import GradientSampler, GradientSamplerLike, SampleSource
from distiller_ng.core.window import PolicyWindow, Trigger
from distiller_ng.errors import ArgumentError
from distiller_ng.graph.inputs import ExampleInputsLike
from distiller_ng.graph.provider import ModelGraph
from distiller_ng.names import ParameterIndex

__all__ = ["PolicyList"]


class PolicyList:
    """What a scheduler holds; :class:`HookDriver` adds the hooks."""

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
        #: What was taken with a warning when the schedule was loaded, for reports.
        self.notes: list[str] = []
        #: Told what the loop does; they change nothing and are not saved.
        self.observers: list[RunObserver] = []
        self._lifecycle = Lifecycle()
        self._active = ActiveEntries.of((), 0)
        self._position = TrainPosition(0)
        self._steps_at_begin = 0
        self._last_micro_stepped = True
        self._is_step_begun = True  # whether the open minibatch's stepwise windows were looked at
        #: Exact number of optimizer steps in an epoch, where that is no whole number; positions then count by it.
        self.steps_per_epoch: float | None = None
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
        trigger: Trigger | None = None,
    ) -> None:
        """Run ``policy`` in the listed ``epochs``, or from ``starting_epoch`` up to ``ending_epoch`` (exclusive).

        Epochs are absolute and 0-based; fractions act between epoch boundaries, ``ending_epoch=-1`` never ends.
        ``trigger="step"`` looks at the window right before every optimizer step (see :class:`PolicyWindow`).
        Policies of one epoch run in the order they were added. Raises :class:`ArgumentError` for an impossible window
        and whatever the policy's own check finds (:class:`TargetError`); then nothing was added.
        """
        window = PolicyWindow.from_arguments(epochs, starting_epoch, ending_epoch, frequency, trigger)
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
    def entries(self) -> tuple[Entry, ...]:
        """The policies with their windows, how far each has got, and what the schedule's author called it."""
        return tuple(self._entries)

    @property
    def open_epoch(self) -> int | None:
        """The epoch that has begun and not ended yet; None between epochs."""
        return None if self._lifecycle.phase == "idle" else self._lifecycle.epoch

    @property
    def max_epochs(self) -> int:
        """The latest start or end of all windows, rounded up: how many epochs the schedule is made for."""
        return max([0, *(math.ceil(edge) for e in self._entries for edge in _edges(e.window) if math.isfinite(edge))])

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
        self.masks.before_step = self._begin_open_step
        self.masks.attach(optimizer)

    # -- where training stands ----------------------------------------------------------------------------------------

    def _locate(self, epoch: int, minibatch_id: int, minibatches_per_epoch: int) -> TrainPosition:
        k = self.accumulation_steps
        self._position = TrainPosition(epoch, minibatch_id // k, -(-minibatches_per_epoch // k), self.steps_per_epoch)
        return self._position

    def _begin_open_step(self) -> None:
        """Look at the stepwise windows, once for the open minibatch: its gradients are complete, the step is next."""
        life = self._lifecycle
        if not self._is_step_begun and life.phase == "minibatch":
            self._begin_step(self._locate(life.epoch, life.minibatch_id, life.minibatches_per_epoch))

    def _begin_step(self, position: TrainPosition) -> None:
        self._is_step_begun = True
        for entry in self._active.stepwise:
            entry.advance_step(position, self._context, strict=self.compat == "sparseml")
        if self.masks.has_changes:
            self.masks.apply_changes_()

    def _declares_step(self, minibatch_id: int, minibatches_per_epoch: int) -> bool:
        """Whether, as far as accumulation was declared, the minibatch completes an optimizer step."""
        done = minibatch_id + 1
        return done % self.accumulation_steps == 0 or done == minibatches_per_epoch

    def _final_position(self) -> TrainPosition:
        """Where training ended: after the last epoch, or inside one that the loop left open."""
        life, last = self._lifecycle, self._position
        if life.phase == "idle" or not life.minibatches_per_epoch:
            return TrainPosition(max(life.epoch, 0) + 1, 0, last.minibatches_per_epoch, self.steps_per_epoch)
        done = max(life.minibatch_id + int(life.phase == "epoch"), 0) // self.accumulation_steps
        return TrainPosition(life.epoch, done, last.minibatches_per_epoch, self.steps_per_epoch)

    # -- internals --------------------------------------------------------------------------------------------------

    def _see(self, optimizer: Optimizer | None) -> None:
        if optimizer is not None and optimizer is not self.optimizer:
            self.attach(optimizer)

    def _follow_model(self) -> None:
        """Notice parameters that were replaced or added since (``load_state_dict(assign=True)``, a new head)."""
        if self.parameters.refresh():
            self.masks.follow()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self.optimizer is not None:
            self.masks.before_step = self._begin_open_step

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


def _edges(window: PolicyWindow) -> tuple[float, float]:
    return window.first, window.end
