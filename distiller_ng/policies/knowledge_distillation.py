"""The policy that trains a student towards teachers (layer 3)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from distiller_ng.core.context import StepContext
from distiller_ng.core.policy import Policy, PolicyLoss
from distiller_ng.core.window import PolicyWindow
from distiller_ng.errors import ArgumentError, CheckpointError, LifecycleError
from distiller_ng.knowledge_distillation.distiller import KnowledgeDistiller
from distiller_ng.knowledge_distillation.joining import OptimizerLink
from distiller_ng.knowledge_distillation.step import DistillationStep
from distiller_ng.knowledge_distillation.weights import DistillationLossWeights
from distiller_ng.names import ParameterIndex, unwrap

__all__ = ["KnowledgeDistillationPolicy"]

#: Distiller's default.
_EVEN = DistillationLossWeights(0.5, 0.5, 0)
_STATE = {"version", "projections", "teachers"}


class KnowledgeDistillationPolicy(Policy):
    """Trains ``student_model`` towards ``teacher_model`` in its window; the training loop stays as it is.

    While an active minibatch is open the policy notes what the student is given and what it returns, runs the teacher
    on the same inputs (in eval mode, without gradients), and makes the loss
    ``student * L + distill * T^2 * KL(softmax(teacher / T) || softmax(student / T)) + teacher * L_t``. It then releases
    everything. ``policy.forward(x)`` in place of ``model(x)``, as ported loops have it, gives the same result.

    The loss component ``Distill Loss`` is the divergence itself, without weight and ``T^2``; pairs of layers are
    components of their own. A minibatch without labels passes None as its loss and is trained on the rest alone.

    Source: Geoffrey Hinton, Oriol Vinyals, Jeff Dean, "Distilling the Knowledge in a Neural Network" (2015),
    https://arxiv.org/abs/1503.02531

    Args:
        student_model: the model of the scheduler, or a part of it.
        teacher_model: a module, a list of them, ``"self"`` or ``{"ema": 0.999}``; see :class:`KnowledgeDistiller`.
        temperature: above 0.
        loss_weights: constant, or over the epochs.
        criterion: the training loop's loss function, for the teacher's weight. A module is watched to learn the labels;
            with a function call :meth:`set_labels` in each step. Default: cross entropy (without label smoothing),
            whose labels are found in the graph of the loss.
        options: what else :class:`KnowledgeDistiller` takes, such as ``layers``, ``loss``, ``gain``, ``logits``.

    Example: student logits ``[0, 0]``, teacher ``[log 3, 0]``, T = 1 and weights (0.5, 0.5, 0): with a loss of 0.8 the
    overall loss is ``0.5 * 0.8 + 0.5 * 0.1308 = 0.4654``::

        weights = distiller.DistillationLossWeights(0.7, 0.3, 0)
        policy = distiller.KnowledgeDistillationPolicy(model, teacher, 4.0, weights)
        scheduler.add_policy(policy, starting_epoch=0, ending_epoch=60, frequency=1)

    In a schedule::

        distillers:
          kd: {class: KnowledgeDistiller, teacher: resnet56, temperature: 4.0}
        policies:
          - distiller: {instance_name: kd}
            starting_epoch: 0
            ending_epoch: 60
            frequency: 1
    """

    def __init__(
        self,
        student_model: nn.Module,
        teacher_model: Any,
        temperature: float = 1.0,
        loss_weights: Any = _EVEN,
        *,
        criterion: Callable[..., Tensor] | None = None,
        **options: Any,
    ) -> None:
        if not isinstance(student_model, nn.Module):
            raise ArgumentError(
                f"student_model is a torch.nn.Module, got {type(student_model).__name__}", argument=("student_model",)
            )
        if isinstance(teacher_model, str) and teacher_model != "self":
            raise ArgumentError(
                f"teacher_model is a module, 'self' or {{'ema': 0.999}}; got {teacher_model!r}",
                argument=("teacher_model",),
            )
        distiller = KnowledgeDistiller(
            "distiller",
            student_model,
            None,
            teacher=teacher_model,
            temperature=temperature,
            loss_weights=loss_weights,
            **options,
        )
        self._set_up(distiller, criterion)
        self._step: DistillationStep | None = DistillationStep(distiller, student_model, criterion)

    @classmethod
    def of(
        cls, distiller: KnowledgeDistiller, *, criterion: Callable[..., Tensor] | None = None
    ) -> KnowledgeDistillationPolicy:
        """The policy that runs a distiller which a schedule defines; the student is the scheduler's model."""
        if not isinstance(distiller, KnowledgeDistiller):
            raise ArgumentError(f"expected a distiller, got {type(distiller).__name__}", argument=("distiller",))
        policy = cls.__new__(cls)
        policy._set_up(distiller, criterion)
        policy._step = None
        return policy

    def _set_up(self, distiller: KnowledgeDistiller, criterion: Callable[..., Tensor] | None) -> None:
        self.distiller = distiller
        self._criterion = criterion
        self._link = OptimizerLink(distiller.projections)
        self._is_begun = False

    # -- Distiller's names ------------------------------------------------------------------------------------------

    @property
    def student(self) -> nn.Module:
        """The student; raises :class:`LifecycleError` before a policy of a schedule was added to one."""
        return self._running().student

    @property
    def teacher(self) -> nn.Module | None:
        """The teacher (the first of several); None for a copy of the student that is not taken yet."""
        return self.distiller.sources[0].module

    @property
    def temperature(self) -> float:
        """What logits are divided by."""
        return self.distiller.temperature

    @property
    def loss_wts(self) -> DistillationLossWeights:
        """The weights of the three parts."""
        return self.distiller.loss_weights

    def forward(self, *inputs: Any, **named_inputs: Any) -> Any:
        """Run the teacher while the policy is active, then the student; returns the student's output."""
        step = self._running()
        if self._is_begun and torch.is_grad_enabled():
            return step.forward(inputs, named_inputs)
        return step.student(*inputs, **named_inputs)

    def set_labels(self, labels: Any) -> None:
        """The labels of the open minibatch, where the policy needs them (the teacher's weight) and cannot see them."""
        self._running().labels.give(labels)

    # -- hooks ------------------------------------------------------------------------------------------------------

    def check(self, window: PolicyWindow, parameters: ParameterIndex) -> None:
        """The student must be the schedule's model or in it; raises :class:`ArgumentError`."""
        if self._step is None:
            return
        student = unwrap(self._step.student)
        if all(module is not student for module in parameters.model.modules()):
            raise ArgumentError("student_model is not the scheduler's model", argument=("student_model",))

    def on_added(self, ctx: StepContext) -> None:
        """Install the hooks and make the projections, while nothing is compiled or wrapped yet."""
        if self._step is None:
            self._step = DistillationStep(self.distiller, ctx.model, self._criterion)
        self._step.install()
        if self.distiller.pairs:
            self.distiller.discover(self.student, None if ctx.graph is None else ctx.graph.example_inputs)
        self._link.join(ctx.optimizer)

    def on_epoch_begin(self, ctx: StepContext) -> None:
        """Take the copy of the student, if that is the teacher; teachers go to eval mode."""
        self._begin()

    def on_update(self, ctx: StepContext) -> None:
        """The start of a fractional window."""
        self._begin()

    def on_minibatch_begin(self, ctx: StepContext) -> None:
        """From here on the student's passes are noted."""
        if not self._is_begun:
            self._begin()
        self._running().open(ctx.position.fraction)
        self._link.join(ctx.optimizer)
        self._link.begin_step()

    def before_backward_pass(self, ctx: StepContext) -> PolicyLoss | None:
        """Run the teachers and add the terms; raises :class:`LifecycleError` if the student did not run."""
        if ctx.loss is None:
            return None
        step = self._running()
        try:
            result = step.loss(ctx.loss, ctx.position.fraction)
        finally:
            step.pause()
        self._link.join(ctx.optimizer)
        return result

    def before_parameter_optimization(self, ctx: StepContext) -> None:
        """Replicas average the gradients of the projections."""
        self._running().finite.settle()
        self._link.average()

    def on_minibatch_end(self, ctx: StepContext) -> None:
        """Release everything; a moving average follows the student after a real step."""
        step = self._running()
        step.release()
        if ctx.is_step:
            for source in self.distiller.sources:
                source.update_(step.student)
            self._link.forget_gradients()

    def on_epoch_end(self, ctx: StepContext) -> None:
        """Nothing is noted between epochs."""
        self._pause()

    def on_window_end(self, ctx: StepContext) -> None:
        """The student trains alone from here on."""
        self._pause()

    def on_finish(self, ctx: StepContext) -> None:
        """Take all hooks away."""
        self.close()

    def close(self) -> None:
        """Take all hooks off student, teachers, criterion and optimizer; ``finish()`` does this."""
        self._is_begun = False
        self._link.remove()
        if self._step is not None:
            self._step.close()

    def describe(self) -> str:
        """``KnowledgeDistillationPolicy(kd: KnowledgeDistiller)``."""
        return f"KnowledgeDistillationPolicy({self.distiller.name}: {type(self.distiller).__name__})"

    # -- state ------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The projections, and teachers that are copies of the student."""
        return {
            "version": 1,
            "projections": self.distiller.projections.state_dict(),
            "teachers": {source.name: source.state_dict() for source in self.distiller.sources},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`state_dict`; raises :class:`CheckpointError` for other teachers."""
        if set(state) != _STATE:
            raise CheckpointError(f"{self.describe()} expects the keys {sorted(_STATE)}, got {sorted(state)}")
        names = [source.name for source in self.distiller.sources]
        if set(state["teachers"]) != set(names):
            raise CheckpointError(f"the checkpoint was made with the teachers {sorted(state['teachers'])}, not {names}")
        student = self.student
        for source in self.distiller.sources:
            source.load_state_dict(state["teachers"][source.name], student)
        first = next(iter(student.parameters()), None)
        device = torch.device("cpu") if first is None else first.device
        self.distiller.projections.load_state_dict(state["projections"], device)
        self._link.join()

    # -- internals --------------------------------------------------------------------------------------------------

    def _running(self) -> DistillationStep:
        if self._step is None:
            raise LifecycleError("the policy belongs to no schedule yet: scheduler.add_policy(policy, ...)")
        return self._step

    def _begin(self) -> None:
        step = self._running()
        step.install()  # it may have been closed by finish()
        for source in self.distiller.sources:
            source.begin(step.student)
        self._is_begun = True

    def _pause(self) -> None:
        self._is_begun = False
        if self._step is not None:
            self._step.release()
