"""Neural Compressor's distillation criteria, on this library's losses (layer 5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from distiller_ng.compat.neural_compressor.experimental.common._base import (
    Criterion,
    checked_types,
    checked_weights,
    logits_of,
)
from distiller_ng.compat.neural_compressor.experimental.common.intermediate import (
    PyTorchIntermediateLayersKnowledgeDistillationLoss,
)
from distiller_ng.compat.neural_compressor.experimental.common.model import Model
from distiller_ng.errors import ArgumentError, CalibrationError, did_you_mean
from distiller_ng.knowledge_distillation.base import create_loss

__all__ = [
    "Criterion",
    "PyTorchIntermediateLayersKnowledgeDistillationLoss",
    "PyTorchKnowledgeDistillationLoss",
    "create_criterion",
]


class PyTorchKnowledgeDistillationLoss(Criterion):
    """``w_0 * student_loss + w_1 * T^2 * D(student / T, teacher / T)`` on logits ``[N, C]``.

    Source: Geoffrey Hinton, Oriol Vinyals, Jeff Dean, "Distilling the Knowledge in a Neural Network" (2015),
    https://arxiv.org/abs/1503.02531

    Args:
        temperature: T, above 0.
        loss_types: student against labels (``CE`` or ``MSE``), student against teacher (``CE``: soft cross entropy,
            ``KL`` or ``MSE``).
        loss_weights: ``w_0, w_1``, from 0; their sum is 1. A weight of 0 leaves its term, and the teacher, out.
        student_model, teacher_model: set by :class:`Distillation`; needed for use without one.
        reduction: of ``KL``. ``"batchmean"`` sums over classes; ``"mean"`` also divides by their number, which gives
            Neural Compressor's numbers and a term as many times smaller as there are classes.

    Example: student logits ``[0, 0]``, teacher ``[log 3, 0]``, label 0, T = 1: both cross entropies are ``log 2``, so
    the loss is 0.6931. In a configuration::

        criterion: {KnowledgeDistillationLoss: {temperature: 4.0, loss_types: [CE, KL], loss_weights: [0.5, 0.5]}}

    Raises :class:`ArgumentError`.
    """

    def __init__(
        self,
        temperature: float = 1.0,
        loss_types: Sequence[str] | None = None,
        loss_weights: Sequence[float] | None = None,
        student_model: nn.Module | Model | None = None,
        teacher_model: nn.Module | Model | None = None,
        *,
        reduction: str = "batchmean",
    ) -> None:
        super().__init__(student_model, teacher_model)
        types = ["CE", "CE"] if loss_types is None else loss_types
        self.loss_types = checked_types(types, (("CE", "MSE"), ("CE", "KL", "MSE")))
        self.loss_weights = checked_weights([0.5, 0.5] if loss_weights is None else loss_weights, 2)
        if abs(sum(self.loss_weights) - 1.0) > 1e-6:
            raise ArgumentError(
                f"loss_weights sum to {sum(self.loss_weights):g}, they must sum to 1, e.g. [0.5, 0.5]",
                argument=("loss_weights",),
            )
        # Also checked where the kind of loss has no use for them.
        self._distance = create_loss("KL", temperature=temperature, reduction=reduction)
        self.temperature, self.reduction = float(temperature), reduction
        if self.loss_types[1] != "KL":
            self._distance = create_loss(self.loss_types[1], temperature=temperature)

    def student_targets_loss_cal(self, student_outputs: Any, targets: Tensor) -> Tensor:
        """``CE``, or ``MSE`` of outputs and targets of the same shape."""
        if self.loss_types[0] == "CE":
            return super().student_targets_loss_cal(student_outputs, targets)
        logits = logits_of(student_outputs, "student")
        if logits.shape != targets.shape:
            raise ArgumentError(
                f"MSE compares outputs {list(logits.shape)} with targets of the same shape, got {list(targets.shape)}: "
                "for class numbers take loss_types[0] = 'CE'",
                argument=("loss_types", 0),
            )
        return functional.mse_loss(logits, targets.to(logits.dtype))

    def teacher_student_loss_cal(self, student_outputs: Any, teacher_outputs: Any) -> Tensor:
        """``T^2 * D(student / T, teacher / T)``, without its weight.

        Raises :class:`ArgumentError` for outputs that do not fit together and :class:`CalibrationError` for a teacher
        that gives NaN.
        """
        student = logits_of(student_outputs, "student")
        teacher = logits_of(teacher_outputs, "teacher")
        if bool(teacher.isnan().any()):
            raise CalibrationError("the teacher's logits hold NaN: check its weights and its inputs")
        return self._distance(student, teacher) * self._distance.scale

    def loss_cal_sloss(self, student_outputs: Any, teacher_outputs: Any, student_loss: Tensor | None) -> Tensor:
        """The whole loss from a student's loss that was computed already; None (no labels) leaves that term out."""
        terms = []
        if self.loss_weights[0] > 0 and student_loss is not None:
            terms.append(self.loss_weights[0] * student_loss)
        if self.loss_weights[1] > 0:
            terms.append(self.loss_weights[1] * self.teacher_student_loss_cal(student_outputs, teacher_outputs))
        if not terms:
            raise ArgumentError(
                "there are no labels and the teacher's weight is 0: nothing to learn from", argument=("student_loss",)
            )
        return sum(terms[1:], terms[0])

    def combine(self, input: Any, student_output: Any, student_loss: Tensor | None, teacher_output: Any) -> Tensor:
        """See :meth:`Criterion.combine`."""
        if self.loss_weights[1] > 0 and teacher_output is None:
            teacher_output = self.teacher_model_forward(input)
        return self.loss_cal_sloss(student_output, teacher_output, student_loss)


def create_criterion(name: str, arguments: Mapping[str, Any]) -> Criterion:
    """A criterion from its name in a configuration (no ``PyTorch`` in front); raises :class:`ArgumentError`."""
    classes: dict[str, type[Criterion]] = {
        "KnowledgeDistillationLoss": PyTorchKnowledgeDistillationLoss,
        "IntermediateLayersKnowledgeDistillationLoss": PyTorchIntermediateLayersKnowledgeDistillationLoss,
    }
    if name not in classes:
        raise ArgumentError(f"unknown criterion {name!r}. {did_you_mean(name, classes)}", argument=("criterion",))
    return classes[name](**arguments)
