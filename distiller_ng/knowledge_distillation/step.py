"""One training step of distillation: the student's passes are noted, teachers are run, terms are added (layer 2)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from distiller_ng.core.policy import LossComponent, PolicyLoss
from distiller_ng.errors import ArgumentError, LifecycleError
from distiller_ng.knowledge_distillation.capture import Call, Listener, Recorder, ambient_autocast
from distiller_ng.knowledge_distillation.distiller import KnowledgeDistiller
from distiller_ng.knowledge_distillation.finite import FiniteCheck
from distiller_ng.knowledge_distillation.labels import LabelSource
from distiller_ng.knowledge_distillation.structures import the_logits
from distiller_ng.knowledge_distillation.terms import Terms
from distiller_ng.knowledge_distillation.weights import weight_at

__all__ = ["NOT_SEEN", "DistillationStep"]

NOT_SEEN = (
    "the student was not run between on_minibatch_begin and before_backward_pass: call the model itself (or "
    "policy.forward) there, with gradients enabled. If it is compiled, load the schedule before its first call"
)


class DistillationStep:
    """What a policy does in one minibatch, from :meth:`open` to :meth:`release`; nothing is kept in between."""

    def __init__(
        self, distiller: KnowledgeDistiller, student: nn.Module, criterion: Callable[..., Tensor] | None
    ) -> None:
        if distiller.pairs and isinstance(student, nn.DataParallel) and len(student.device_ids) > 1:
            raise ArgumentError(
                "layers cannot be distilled through DataParallel, which copies the model to several devices in every "
                "step: use DistributedDataParallel",
                argument=("student_model",),
            )
        self.distiller = distiller
        self.student = student
        self.labels = LabelSource(criterion)
        self.finite = FiniteCheck()
        self._recorder = Recorder(needs_grad=True)
        self._listener = Listener(student, self._recorder, distiller.student_layers())
        self._prepared: list[tuple[Any, list[Call]]] = []  # of forward(): the student's output, the teachers' passes
        self._has_run = False

    def install(self) -> None:
        """Put all hooks in place; again does nothing."""
        self.distiller.prepare(self.student)
        self._listener.install()
        self.labels.install()

    def open(self) -> None:
        """Note passes from here on."""
        self._listener.refresh(has_run=self._has_run)
        self.release()
        self._recorder.open()
        self.labels.open()

    def release(self) -> None:
        """Forget everything that was noted."""
        self._recorder.close()
        self.labels.close()
        self._prepared = []

    def close(self) -> None:
        """Take all hooks off student, teachers and criterion."""
        self.release()
        self.finite.forget()
        self._listener.remove()
        self.labels.remove()
        for source in self.distiller.sources:
            source.close()

    def forward(self, inputs: tuple[Any, ...], named_inputs: dict[str, Any]) -> Any:
        """Teachers first, then the student, whose output is returned."""
        taught = self.distiller.run_teachers(Call(inputs, named_inputs, None, {}, ambient_autocast(inputs)))
        if not self._recorder.is_open:  # a loop without on_minibatch_begin
            self._recorder.open()
            self.labels.open()
        output = self.student(*inputs, **named_inputs)
        self._prepared.append((output, taught))
        return output

    def loss(self, loss: Tensor, epoch: float) -> PolicyLoss:
        """The loss with all terms at this point in time (in epochs); raises :class:`LifecycleError` without a pass."""
        distill, student, teacher = (weight_at(weight, epoch) for weight in self.distiller.loss_weights)
        gains = {pair.name: weight_at(pair.gain, epoch) for pair in self.distiller.pairs}
        total = loss if student == 1 else loss * student
        calls = self._recorder.calls()
        if not calls:
            raise LifecycleError(NOT_SEEN)
        self._has_run = True
        if not (distill or teacher or any(gains.values())):
            return PolicyLoss(total, [])
        taught = [self._taught(call) for call in calls]
        terms = self.distiller.terms(calls, taught, self.student)
        components: list[LossComponent] = []
        if terms.logits is not None:
            total = total + distill * self.distiller.logits_scale * terms.logits
            components.append(LossComponent("Distill Loss", terms.logits.detach()))
        for name, value in terms.pairs.items():
            total = total + gains[name] * value
            components.append(LossComponent(f"{name} Loss", value.detach()))
        self.finite.look(_sum_of(terms), taught, self.distiller.sources)
        if teacher and loss.requires_grad:  # a minibatch without labels has a loss without gradient
            own = self._teacher_loss(calls, taught, loss)
            total = total + teacher * own
            components.append(LossComponent("Teacher Loss", own))
        return PolicyLoss(total, components)

    # -- internals --------------------------------------------------------------------------------------------------

    def _taught(self, call: Call) -> list[Call]:
        for output, taught in self._prepared:
            if output is call.output:
                return taught
        return self.distiller.run_teachers(call)

    def _teacher_loss(self, calls: list[Call], taught: list[list[Call]], loss: Tensor) -> Tensor:
        """The teachers' mean loss against the labels, without gradient."""
        keys, values = self.distiller.teacher_keys[:1], []
        for call, given in zip(calls, taught):
            for source, share, result in zip(self.distiller.sources, self.distiller.shares, given):
                logits = the_logits(result.output, keys, whose=f"teacher ({source.name})")[0]
                values.append(share / len(calls) * self.labels.loss(call, logits, loss))
        return torch.stack(values).sum()


def _sum_of(terms: Terms) -> Tensor:
    values = [value for value in (terms.logits, *terms.pairs.values()) if value is not None]
    return torch.stack([value.detach().float() for value in values]).sum()
