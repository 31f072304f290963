"""One training step of distillation: the student's passes are noted, teachers are run, terms are added (layer 2)."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from distiller_ng.core.policy import LossComponent, PolicyLoss
from distiller_ng.errors import ArgumentError, LifecycleError
from distiller_ng.knowledge_distillation.capture import Call, Listener, Recorder, ambient_autocast, called_module
from distiller_ng.knowledge_distillation.distiller import KnowledgeDistiller
from distiller_ng.knowledge_distillation.finite import FiniteCheck
from distiller_ng.knowledge_distillation.labels import NEEDED, LabelSource
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
        self._called = called_module(student)
        self._listener = Listener(self._called, self._recorder, distiller.student_layers())
        self._taught: list[list[Call]] = []  # the teachers' passes, in the order of the student's
        self._before: RemovableHandle | None = None
        self._has_run = False
        self._is_armed = False
        self._is_needed = True

    def install(self) -> None:
        """Put all hooks in place; again does nothing."""
        self.distiller.prepare(self.student)
        self._listener.install()
        if self._before is None:
            self._before = self._called.register_forward_pre_hook(_TeachersFirst(self), with_kwargs=True)
        self.labels.install()

    def open(self, epoch: float) -> None:
        """Note passes from here on; ``epoch`` with its fraction says whether the teachers count."""
        self._listener.refresh(has_run=self._has_run)
        self.release()
        self._is_needed = any(self._shares(epoch))
        self._wake()

    def pause(self) -> None:
        """Forget what was noted, until the student is run again in this minibatch (an optimizer's closure does)."""
        self._recorder.close()
        self.labels.close()
        self._taught = []

    def release(self) -> None:
        """Forget everything; the minibatch is over."""
        self.pause()
        self._is_armed = False

    def close(self) -> None:
        """Take all hooks off student, teachers and criterion."""
        self.release()
        self.finite.forget()
        self._listener.remove()
        if self._before is not None:
            self._before.remove()
            self._before = None
        self.labels.remove()
        for source in self.distiller.sources:
            source.close()

    def forward(self, inputs: tuple[Any, ...], named_inputs: dict[str, Any]) -> Any:
        """The student's output, noted even in a loop without ``on_minibatch_begin``."""
        if not self._recorder.is_open:
            self._wake()
        return self.student(*inputs, **named_inputs)

    def teach(self, inputs: tuple[Any, ...], named_inputs: Mapping[str, Any]) -> None:
        """Run the teachers on inputs the student is about to be given.

        Before the student, whose activations then are not held while the teachers run: less memory, and on the CPU a
        step of a ResNet that is a sixth shorter.
        """
        if not (self._is_armed and torch.is_grad_enabled()):
            return
        if not self._recorder.is_open:
            self._wake()
        if self._is_needed:
            call = Call(inputs, named_inputs, None, {}, ambient_autocast(inputs))
            self._taught.append(self.distiller.run_teachers(call))

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
        taught = self._taught
        if len(taught) != len(calls):
            taught = [self.distiller.run_teachers(call) for call in calls]
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

    def _wake(self) -> None:
        self._is_armed = True
        self._recorder.open()
        self.labels.open()

    def _shares(self, epoch: float) -> list[float]:
        """All weights for which teachers are run."""
        distill, _, teacher = self.distiller.loss_weights
        return [
            weight_at(weight, epoch) for weight in (distill, teacher, *(pair.gain for pair in self.distiller.pairs))
        ]

    def _teacher_loss(self, calls: list[Call], taught: list[list[Call]], loss: Tensor) -> Tensor:
        """The teachers' mean loss against the labels, without gradient; passes without labels do not count."""
        keys, values, several = self.distiller.teacher_keys[:1], [], len(calls) > 1
        for call, given in zip(calls, taught):
            for source, share, result in zip(self.distiller.sources, self.distiller.shares, given):
                logits = the_logits(result.output, keys, whose=f"teacher ({source.name})")[0]
                value = self.labels.loss(call, logits, loss, is_one_of_several=several)
                if value is not None:
                    values.append((share, value))
        if not values:
            raise LifecycleError(NEEDED)
        return torch.stack([share * value for share, value in values]).sum() / sum(share for share, _ in values)


class _TeachersFirst:
    """The hook before the student's pass; a copy or a pickle of the student has one that does nothing."""

    def __init__(self, step: DistillationStep | None = None) -> None:
        self._step = None if step is None else weakref.ref(step)

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if torch.compiler.is_compiling():  # a compiled student: its teachers run after it
            return
        step = None if self._step is None else self._step()
        if step is not None:
            step.teach(args, kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> _TeachersFirst:
        return _TeachersFirst()

    def __reduce__(self) -> tuple[type[_TeachersFirst], tuple[()]]:
        return _TeachersFirst, ()


def _sum_of(terms: Terms) -> Tensor:
    values = [value for value in (terms.logits, *terms.pairs.values()) if value is not None]
    return torch.stack([value.detach().float() for value in values]).sum()
