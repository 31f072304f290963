"""What Neural Compressor's criteria share."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

from distiller_ng.compat.neural_compressor.experimental.common.model import Model, as_model, forward, moved
from distiller_ng.errors import ArgumentError, LifecycleError, did_you_mean
from distiller_ng.knowledge_distillation.structures import the_logits
from distiller_ng.ops.modules import model_device

__all__ = ["Criterion", "checked_types", "checked_weights", "logits_of"]


class Criterion(ABC):
    """What the two criteria share: the models, running the teacher, and the order in which they are used.

    :class:`Distillation` calls :meth:`open` before training, :meth:`combine` in each step and :meth:`close` after it.
    """

    def __init__(self, student_model: nn.Module | Model | None, teacher_model: nn.Module | Model | None) -> None:
        self._student = as_model(student_model, "student_model")
        self._teacher = as_model(teacher_model, "teacher_model")

    @property
    def student_model(self) -> nn.Module | None:
        """The student's module."""
        return None if self._student is None else self._student.model

    @student_model.setter
    def student_model(self, value: nn.Module | Model | None) -> None:
        self._student = as_model(value, "student_model")

    @property
    def teacher_model(self) -> nn.Module | None:
        """The teacher's module."""
        return None if self._teacher is None else self._teacher.model

    @teacher_model.setter
    def teacher_model(self, value: nn.Module | Model | None) -> None:
        self._teacher = as_model(value, "teacher_model")

    def open(self, student: nn.Module, teacher: nn.Module | None, optimizer: Optimizer | None) -> None:
        """Training begins; a ``teacher`` of None leaves the one that was set."""
        del optimizer
        self.student_model = student
        if teacher is not None:
            self.teacher_model = teacher

    def watch(self) -> None:
        """From here on passes of the student count."""

    def clear(self) -> None:
        """Forget what was captured."""

    def close(self) -> None:
        """Training is over: nothing is left on the models."""

    def teacher_model_forward(self, input: Any, device: torch.device | str | None = None) -> Any:
        """The teacher's output for ``input``, in eval mode, without gradients, on the teacher's device.

        ``device`` moves the input elsewhere. Raises :class:`LifecycleError` without a teacher.
        """
        teacher = self.teacher_model
        if teacher is None:
            raise LifecycleError("there is no teacher: set distiller.teacher_model = module, or pass teacher_output")
        if any(module.training for module in teacher.modules()):
            teacher.eval()
        with torch.no_grad():
            return forward(teacher, moved(input, model_device(teacher) if device is None else device))

    def student_targets_loss_cal(self, student_outputs: Any, targets: Tensor) -> Tensor:
        """The student's loss against the labels: cross entropy of the logits."""
        return functional.cross_entropy(logits_of(student_outputs, "student"), targets)

    @abstractmethod
    def combine(self, input: Any, student_output: Any, student_loss: Tensor | None, teacher_output: Any) -> Tensor:
        """The whole loss of a step; the teacher runs on ``input`` where its output is needed and not given."""


def logits_of(output: Any, whose: str) -> Tensor:
    """The logits of an output: itself, its ``logits``, or the first of a tuple; raises :class:`ArgumentError`."""
    first = output[0] if isinstance(output, list | tuple) and not hasattr(output, "_fields") and output else output
    return the_logits(first, (), whose=whose)[0]


def checked_types(value: Any, allowed: Sequence[Sequence[str]]) -> list[str]:
    """``loss_types``: one name of each list of ``allowed``; raises :class:`ArgumentError`."""
    if isinstance(value, str) or not isinstance(value, Sequence) or len(value) != len(allowed):
        raise ArgumentError(f"loss_types is a list of {len(allowed)} names, got {value!r}", argument=("loss_types",))
    for at, (name, names) in enumerate(zip(value, allowed, strict=True)):
        if name not in names:
            raise ArgumentError(f"unknown loss {name!r}. {did_you_mean(str(name), names)}", argument=("loss_types", at))
    return list(value)


def checked_weights(value: Any, count: int) -> list[float]:
    """``loss_weights``: so many finite numbers from 0; raises :class:`ArgumentError`."""
    if isinstance(value, str) or not isinstance(value, Sequence) or len(value) != count:
        raise ArgumentError(f"loss_weights is a list of {count} numbers, got {value!r}", argument=("loss_weights",))
    for at, weight in enumerate(value):
        if isinstance(weight, bool) or not isinstance(weight, Real) or not math.isfinite(weight) or weight < 0:
            raise ArgumentError(f"a weight is a finite number from 0, got {weight!r}", argument=("loss_weights", at))
    return [float(weight) for weight in value]
