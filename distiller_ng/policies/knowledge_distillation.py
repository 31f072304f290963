"""The policy that trains a student towards teachers: captures its passes, runs them, adds the terms (layer 3)."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from distiller_ng.core.context import StepContext
from distiller_ng.core.policy import LossComponent, Policy, PolicyLoss
from distiller_ng.core.window import PolicyWindow
from distiller_ng.errors import ArgumentError, CheckpointError, LifecycleError
from distiller_ng.knowledge_distillation.capture import Call, Listener, Recorder, ambient_autocast
from distiller_ng.knowledge_distillation.distiller import KnowledgeDistiller
from distiller_ng.knowledge_distillation.finite import FiniteCheck
from distiller_ng.knowledge_distillation.labels import LabelSource
from distiller_ng.knowledge_distillation.projections import average_gradients_
from distiller_ng.knowledge_distillation.structures import the_logits
from distiller_ng.knowledge_distillation.terms import Terms
from distiller_ng.knowledge_distillation.weights import DistillationLossWeights, weight_at
from distiller_ng.names import ParameterIndex, unwrap

__all__ = ["KnowledgeDistillationPolicy"]

#: Distiller's default.
_EVEN = DistillationLossWeights(0.5, 0.5, 0)
_STATE = {"version", "projections", "teachers"}
_NOT_SEEN = (
    "the student was not run between on_minibatch_begin and before_backward_pass: call the model itself (or "
    "policy.forward) there, with gradients enabled. If it is compiled, load the schedule before its first call"
)


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
            with a function call :meth:`set_labels` in each step. Default: cross entropy, whose labels are found in the
            graph of the loss.
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
        named = {teacher_model: teacher_model} if isinstance(teacher_model, str) else {}
        if named and teacher_model != "self":
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
        self._set_up(distiller, student_model, criterion)

    @classmethod
    def of(
        cls, distiller: KnowledgeDistiller, *, criterion: Callable[..., Tensor] | None = None
    ) -> KnowledgeDistillationPolicy:
        """The policy that runs a distiller which a schedule defines; the student is the scheduler's model."""
        if not isinstance(distiller, KnowledgeDistiller):
            raise ArgumentError(f"expected a distiller, got {type(distiller).__name__}", argument=("distiller",))
        policy = cls.__new__(cls)
        policy._set_up(distiller, None, criterion)
        return policy

    def _set_up(
        self, distiller: KnowledgeDistiller, student: nn.Module | None, criterion: Callable[..., Tensor] | None
    ) -> None:
        self.distiller = distiller
        self._student = student
        self._recorder = Recorder(needs_grad=True)
        self._listener: Listener | None = None
        self._labels = LabelSource(criterion)
        self._finite = FiniteCheck()
        self._prepared: list[tuple[Any, list[Call]]] = []  # teachers' passes that forward() has made: output, passes
        self._is_begun = False
        self._has_run = False
        self._optimizer: weakref.ref[Optimizer] | None = None
        self._step_hook: RemovableHandle | None = None
        self._averaged = False

    # -- Distiller's names ------------------------------------------------------------------------------------------

    @property
    def student(self) -> nn.Module:
        """The student; raises :class:`LifecycleError` before the policy was added to a schedule."""
        if self._student is None:
            raise LifecycleError("the policy belongs to no schedule yet: scheduler.add_policy(policy, ...)")
        return self._student

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
        student = self.student
        if not self._is_begun or not torch.is_grad_enabled():
            return student(*inputs, **named_inputs)
        taught = self.distiller.run_teachers(Call(inputs, named_inputs, None, {}, ambient_autocast(inputs)))
        if not self._recorder.is_open:  # a loop without on_minibatch_begin
            self._recorder.open()
            self._labels.open()
        output = student(*inputs, **named_inputs)
        self._prepared.append((output, taught))
        return output

    def set_labels(self, labels: Any) -> None:
        """The labels of the open minibatch, where the policy needs them (the teacher's weight) and cannot see them."""
        self._labels.give(labels)

    # -- hooks ------------------------------------------------------------------------------------------------------

    def check(self, window: PolicyWindow, parameters: ParameterIndex) -> None:
        """The student must be the schedule's model or in it; raises :class:`ArgumentError`."""
        if self._student is None:
            return
        if all(module is not unwrap(self._student) for module in parameters.model.modules()):
            raise ArgumentError("student_model is not the scheduler's model", argument=("student_model",))

    def on_added(self, ctx: StepContext) -> None:
        """Install the hooks and make the projections, while nothing is compiled or wrapped yet."""
        if self._student is None:
            self._student = ctx.model
        self._install()
        example = ctx.example_inputs if ctx.example_inputs is not None else _usual_inputs(self.student)
        if self.distiller.pairs and example is not None:
            self.distiller.discover(self.student, example)
        self._join(ctx.optimizer)

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
        if self._listener is not None:
            self._listener.refresh(has_run=self._has_run)
        self._join(ctx.optimizer)
        self._release()
        self._recorder.open()
        self._labels.open()
        self._averaged = False

    def before_backward_pass(self, ctx: StepContext) -> PolicyLoss | None:
        """Run the teachers and add the terms; raises :class:`LifecycleError` if the student did not run."""
        if ctx.loss is None:
            return None
        weights = [weight_at(weight, ctx.position.fraction) for weight in self.distiller.loss_weights]
        try:
            total, components = self._add(ctx.loss, weights, ctx.position.fraction)
        finally:
            self._release()
        self._join(ctx.optimizer)
        return PolicyLoss(total, components)

    def before_parameter_optimization(self, ctx: StepContext) -> None:
        """Replicas average the gradients of the projections."""
        self._finite.settle()
        self._average()

    def on_minibatch_end(self, ctx: StepContext) -> None:
        """Release everything; a moving average follows the student after a real step."""
        self._release()
        if ctx.is_step:
            for source in self.distiller.sources:
                source.update_(self.student)
            for parameter in self.distiller.projections.parameters():
                parameter.grad = None

    def on_epoch_end(self, ctx: StepContext) -> None:
        """Nothing is noted between epochs."""
        self._release()
        self._is_begun = False

    def on_window_end(self, ctx: StepContext) -> None:
        """The student trains alone from here on."""
        self._release()
        self._is_begun = False

    def on_finish(self, ctx: StepContext) -> None:
        """Take all hooks away."""
        self.close()

    def close(self) -> None:
        """Take all hooks off student, teachers and criterion; ``finish()`` does this."""
        self._release()
        self._is_begun = False
        for source in self.distiller.sources:
            source.close()
        self._labels.remove()
        if self._listener is not None:
            self._listener.remove()
            self._listener = None
        if self._step_hook is not None:
            self._step_hook.remove()
            self._step_hook = None

    def describe(self) -> str:
        """``KnowledgeDistillationPolicy(kd: KL)``."""
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
        for source in self.distiller.sources:
            source.load_state_dict(state["teachers"][source.name], self.student)
        first = next(iter(self.student.parameters()), None)
        device = torch.device("cpu") if first is None else first.device
        self.distiller.projections.load_state_dict(state["projections"], device)
        self._join(None)

    # -- internals --------------------------------------------------------------------------------------------------

    def _install(self) -> None:
        student = self.student
        if self.distiller.pairs and isinstance(student, nn.DataParallel) and len(student.device_ids) > 1:
            raise ArgumentError(
                "layers cannot be distilled through DataParallel, which copies the model to several devices in every "
                "step: use DistributedDataParallel",
                argument=("student_model",),
            )
        self.distiller.prepare(student)
        if self._listener is None:
            self._listener = Listener(student, self._recorder, self.distiller.student_layers())
        self._listener.install()
        self._labels.install()

    def _begin(self) -> None:
        if self._listener is None:  # closed, and used again
            self._install()
        for source in self.distiller.sources:
            source.begin(self.student)
        self._is_begun = True

    def _release(self) -> None:
        self._recorder.close()
        self._labels.close()
        self._finite.forget()
        self._prepared = []

    def _add(self, loss: Tensor, weights: list[float], epoch: float) -> tuple[Tensor, list[LossComponent]]:
        distill, student, teacher = weights
        total = loss if student == 1 else loss * student
        calls = self._recorder.calls()
        if not calls:
            raise LifecycleError(_NOT_SEEN)
        self._has_run = True
        gains = {pair.name: weight_at(pair.gain, epoch) for pair in self.distiller.pairs}
        if not (distill or teacher or any(gains.values())):
            return total, []
        taught = [self._taught(call) for call in calls]
        terms = self.distiller.terms(calls, taught, self.student)
        components: list[LossComponent] = []
        if terms.logits is not None:
            total = total + distill * self.distiller.logits_scale * terms.logits
            components.append(LossComponent("Distill Loss", terms.logits.detach()))
        for name, value in terms.pairs.items():
            total = total + gains[name] * value
            components.append(LossComponent(f"{name} Loss", value.detach()))
        self._finite.look(_sum_of(terms), taught, self.distiller.sources)
        if teacher and loss.requires_grad:  # a minibatch without labels has a loss without gradient
            own = self._teacher_loss(calls, taught, loss)
            total = total + teacher * own
            components.append(LossComponent("Teacher Loss", own))
        return total, components

    def _taught(self, call: Call) -> list[Call]:
        for output, taught in self._prepared:
            if output is call.output:
                return taught
        return self.distiller.run_teachers(call)

    def _teacher_loss(self, calls: list[Call], taught: list[list[Call]], loss: Tensor) -> Tensor:
        """The teachers' mean loss against the labels, without gradient."""
        values = []
        for call, given in zip(calls, taught):
            for source, share, result in zip(self.distiller.sources, self.distiller.shares, given):
                logits = the_logits(result.output, self.distiller.teacher_keys[:1], whose=f"teacher ({source.name})")
                values.append(share / len(calls) * self._labels.loss(call, logits[0], loss))
        return torch.stack(values).sum()

    def _join(self, optimizer: Optimizer | None) -> None:
        """Give projections without an optimizer to the one that trains the student."""
        if optimizer is None:
            optimizer = None if self._optimizer is None else self._optimizer()
        elif self._optimizer is None or self._optimizer() is not optimizer:
            self._optimizer = weakref.ref(optimizer)
            self.distiller.projections.has_changes = True
        if optimizer is None or not self.distiller.projections.has_changes:
            return
        self.distiller.projections.join_(optimizer)
        if self._step_hook is None and self.distiller.projections.modules and _is_replicated():
            self._step_hook = optimizer.register_step_pre_hook(lambda *_: self._average())

    def _average(self) -> None:
        if not self._averaged:
            self._averaged = True
            average_gradients_(self.distiller.projections.parameters())


def _is_replicated() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _sum_of(terms: Terms) -> Tensor:
    values = [value for value in (terms.logits, *terms.pairs.values()) if value is not None]
    return torch.stack([value.detach().float() for value in values]).sum()


def _usual_inputs(model: nn.Module) -> tuple[Any, ...] | None:
    """Zeros of the model's ``input_shape``, where it says one; a model of :func:`create_model` does."""
    shape = getattr(unwrap(model), "input_shape", None)
    first = next(iter(model.parameters()), None)
    if not isinstance(shape, tuple) or not shape or not all(isinstance(size, int) for size in shape) or first is None:
        return None
    return (torch.zeros(shape, device=first.device, dtype=first.dtype),)
