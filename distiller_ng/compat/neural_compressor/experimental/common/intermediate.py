"""Neural Compressor's criterion on intermediate layers, on this library's hooks, projections and losses (layer 5)."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from distiller_ng.compat.neural_compressor.experimental.common._base import Criterion, checked_types, checked_weights
from distiller_ng.compat.neural_compressor.experimental.common.model import Model
from distiller_ng.errors import ArgumentError, CalibrationError, LifecycleError, TargetError, did_you_mean
from distiller_ng.knowledge_distillation.base import DistillationLoss, create_loss
from distiller_ng.knowledge_distillation.capture import Listener, Recorder
from distiller_ng.knowledge_distillation.projections import Projections
from distiller_ng.knowledge_distillation.structures import find_output
from distiller_ng.names import canonical_name
from distiller_ng.ops.modules import model_find_module

__all__ = ["PyTorchIntermediateLayersKnowledgeDistillationLoss"]

logger = logging.getLogger(__name__)

_TYPES = ("MSE", "KL", "L1")
_OWN_RATE = 1e-3


@dataclass(frozen=True, slots=True)
class _Side:
    """A layer and what to take of its output; ``path`` "" is all of it."""

    layer: str
    path: str

    def __str__(self) -> str:
        return f"{self.layer}[{self.path}]" if self.path else self.layer


class PyTorchIntermediateLayersKnowledgeDistillationLoss(Criterion):
    """``sum_i w_i D_i(student feature, teacher feature)``, with ``add_origin_loss`` plus the student's own loss.

    Source: Siqi Sun et al., "Patient Knowledge Distillation for BERT Model Compression" (2019),
    https://arxiv.org/abs/1908.09355; Adriana Romero et al., "FitNets" (2015), https://arxiv.org/abs/1412.6550

    Args:
        layer_mappings: for each pair ``[student_layer, teacher_layer]``, or ``[student_layer, student_output,
            teacher_layer, teacher_output]`` where a layer returns several tensors: position or key, "" for the whole.
            "" as a layer is the model itself.
        loss_types: for each pair ``MSE`` (default), ``KL`` or ``L1``. ``KL`` compares distributions over the last
            dimension; features that are none yet go through a softmax.
        loss_weights: for each pair, from 0; default ``1 / n``.
        add_origin_loss: add the student's loss against the labels.
        student_model, teacher_model: set by :class:`Distillation`.
        reduction: of ``KL``, ``"batchmean"`` or ``"mean"`` as for ``PyTorchKnowledgeDistillationLoss``.

    Where one dimension of a pair differs, a linear map of the student's feature is made in the first step. It joins the
    optimizer that ``distiller.optimizer`` names; without one it is trained by an Adam of its own (learning rate 0.001).
    A layer that is called several times in one pass is compared call by call.

    Example: features ``[1, 2]`` and ``[3, 2]`` with MSE and weight 1 give ``(4 + 0) / 2 = 2``::

        criterion:
          IntermediateLayersKnowledgeDistillationLoss:
            layer_mappings: [[layer1, layer1], [encoder.3, "0", encoder.7, "0"]]
            loss_types: [MSE, MSE]
            loss_weights: [0.5, 0.5]
            add_origin_loss: true

    Raises :class:`ArgumentError`; :class:`TargetError` for a layer that is not in its model, when training begins.
    """

    def __init__(
        self,
        layer_mappings: Sequence[Sequence[Any]] | None = None,
        loss_types: Sequence[str] | None = None,
        loss_weights: Sequence[float] | None = None,
        add_origin_loss: bool = False,
        student_model: nn.Module | Model | None = None,
        teacher_model: nn.Module | Model | None = None,
        *,
        reduction: str = "batchmean",
    ) -> None:
        super().__init__(student_model, teacher_model)
        self._pairs = _read_mappings(layer_mappings)
        count = len(self._pairs)
        types = ["MSE"] * count if loss_types is None else loss_types
        self.loss_types = checked_types(types, [_TYPES] * count)
        self.loss_weights = checked_weights([1.0 / count] * count if loss_weights is None else loss_weights, count)
        if not isinstance(add_origin_loss, bool):
            raise ArgumentError(
                f"add_origin_loss is true or false, got {add_origin_loss!r}", argument=("add_origin_loss",)
            )
        self.add_origin_loss, self.reduction = add_origin_loss, reduction
        kl = create_loss("KL", class_dim=-1, reduction=reduction)
        self._losses: list[DistillationLoss] = [kl if name == "KL" else create_loss(name) for name in self.loss_types]
        self.projections = Projections()
        self._optimizer: Optimizer | None = None
        self._own: Optimizer | None = None
        self._listeners: tuple[Listener, ...] = ()
        self._recorders = (Recorder(needs_grad=True), Recorder())

    @property
    def layer_mappings(self) -> list[list[str]]:
        """The pairs, each as ``[student_layer, student_output, teacher_layer, teacher_output]``."""
        return [[ours.layer, ours.path, theirs.layer, theirs.path] for ours, theirs in self._pairs]

    # -- life -------------------------------------------------------------------------------------------------------

    def open(self, student: nn.Module, teacher: nn.Module | None, optimizer: Optimizer | None) -> None:
        """Put hooks on both models' layers; raises :class:`TargetError` for a layer that is not there."""
        super().open(student, teacher, optimizer)
        if self.teacher_model is None:
            raise LifecycleError("there is no teacher: set distiller.teacher_model = module")
        if self.teacher_model is student:
            raise ArgumentError(
                "teacher and student are the same module: give a copy, copy.deepcopy(student)",
                argument=("teacher_model",),
            )
        self.close()
        self._optimizer, self._own = optimizer, None
        models = (student, self.teacher_model)
        for side, model in enumerate(models):
            for at, pair in enumerate(self._pairs):
                _check_layer(model, pair[side].layer, ("student", "teacher")[side], at)
        self._listeners = tuple(
            Listener(model, recorder, [pair[side].layer for pair in self._pairs])
            for side, (model, recorder) in enumerate(zip(models, self._recorders, strict=True))
        )
        for listener in self._listeners:
            listener.install()

    def watch(self) -> None:
        """From here on passes of the student are noted."""
        self._recorders[0].open()

    def clear(self) -> None:
        """Release the features of the last step."""
        for recorder in self._recorders:
            recorder.clear()

    def close(self) -> None:
        """Remove the hooks and release everything."""
        self._train_own_projections_()
        for listener in self._listeners:
            listener.remove()
        self._listeners = ()

    # -- a step -----------------------------------------------------------------------------------------------------

    def combine(self, input: Any, student_output: Any, student_loss: Tensor | None, teacher_output: Any) -> Tensor:
        """See :meth:`Criterion.combine`; the teacher always runs, since its layers are needed."""
        del teacher_output
        self._train_own_projections_()
        try:
            terms = self._terms(input, student_output)
        finally:
            self.clear()
        if self.add_origin_loss and student_loss is not None:
            terms.append(student_loss)
        return sum(terms[1:], terms[0])

    def _terms(self, input: Any, student_output: Any) -> list[Tensor]:
        ours, theirs = self._recorders
        if not ours.passes:
            raise LifecycleError(
                "no forward pass of the student with gradients was seen in this step. Call the module that train_func "
                "is given, after on_train_begin(); a compiled one must not have run before that"
            )
        theirs.open()
        try:
            self.teacher_model_forward(input)
            teacher = theirs.calls()[-1]
        finally:
            theirs.is_open = False
        student = ours.calls()[-1]
        terms: list[Tensor] = []
        for at, pair in enumerate(self._pairs):
            if self.loss_weights[at] > 0:
                sides = [
                    _features(call.features, call.output, side, whose, at)
                    for call, side, whose in zip((student, teacher), pair, ("student", "teacher"), strict=True)
                ]
                terms.append(self.loss_weights[at] * self._compare(at, *sides))
        if not terms:
            raise ArgumentError("all loss_weights are 0: there is nothing to learn", argument=("loss_weights",))
        return terms

    def _compare(self, at: int, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        ours, theirs = self._pairs[at]
        if len(student) != len(teacher):
            raise ArgumentError(
                f"{ours} of the student was called {len(student)} times in one pass, {theirs} of the teacher "
                f"{len(teacher)} times: they cannot be compared call by call",
                argument=("layer_mappings", at),
            )
        key, total = f"{at}:{ours}->{theirs}", []
        for mine, other in zip(student, teacher, strict=True):
            target = other.to(mine.device)
            if bool(target.isnan().any()):
                raise CalibrationError(f"the teacher's layer {theirs} gives NaN: check its weights and its inputs")
            self._match(key, mine, target, at)
            projected = self.projections.apply(key, mine)
            if self.loss_types[at] == "KL":
                projected, target = _as_logits(projected), _as_logits(target)
            total.append(self._losses[at](projected, target))
        return sum(total[1:], total[0]) / len(total)

    # -- projections ------------------------------------------------------------------------------------------------

    def _match(self, key: str, student: Tensor, teacher: Tensor, at: int) -> None:
        """Make the pair's projection if it needs one, and see to it that it is trained."""
        try:
            is_new = self.projections.fit(key, student, teacher, "shape")
        except ArgumentError as error:
            ours, theirs = self._pairs[at]
            raise ArgumentError(f"{ours} -> {theirs}: {error}", argument=("layer_mappings", at)) from None
        if not is_new:
            return
        if self._optimizer is not None:
            self.projections.join_(self._optimizer)
            return
        logger.warning(
            "the projection of %s is trained by an optimizer of its own: set distiller.optimizer before fit() to train "
            "it with yours",
            key.partition(":")[2],
        )
        self._own = Adam(self.projections.parameters(), lr=_OWN_RATE)

    def _train_own_projections_(self) -> None:
        """Step with the gradients of the step before, when they are numbers: a scaler's skipped step leaves others."""
        if self._own is None:
            return
        gradients = [p.grad for p in self.projections.parameters() if p.grad is not None]
        if gradients and all(bool(torch.isfinite(gradient).all()) for gradient in gradients):
            self._own.step()
        self._own.zero_grad()


def _read_mappings(value: Any) -> list[tuple[_Side, _Side]]:
    if isinstance(value, str) or not isinstance(value, Sequence) or not value:
        raise ArgumentError(
            "layer_mappings is a list of pairs, [[student_layer, teacher_layer], ...]", argument=("layer_mappings",)
        )
    pairs = []
    for at, entry in enumerate(value):
        parts = [] if isinstance(entry, str) or not isinstance(entry, Sequence) else list(entry)
        if len(parts) == 1:  # the same name in both
            parts = parts * 2
        is_name = [isinstance(part, str) or (isinstance(part, int) and not isinstance(part, bool)) for part in parts]
        if len(parts) not in (2, 4) or not all(is_name):
            raise ArgumentError(
                f"a pair is [student_layer, teacher_layer] or [student_layer, student_output, teacher_layer, "
                f"teacher_output], got {entry!r}",
                argument=("layer_mappings", at),
            )
        names = [str(part) for part in parts]
        ours, theirs = (names[:1], names[1:]) if len(names) == 2 else (names[:2], names[2:])
        pairs.append((_Side(*(*ours, "")[:2]), _Side(*(*theirs, "")[:2])))
    return pairs


def _check_layer(model: nn.Module, layer: str, whose: str, at: int) -> None:
    if layer and model_find_module(model, layer) is None:
        names = [canonical_name(name) for name, _ in model.named_modules() if canonical_name(name)]
        raise TargetError(
            f"the {whose} has no layer {layer!r}. {did_you_mean(layer, names)}", argument=("layer_mappings", at)
        )


def _features(features: Mapping[str, list[Any]], output: Any, side: _Side, whose: str, at: int) -> list[Tensor]:
    """What a pair's side was in one pass, once for each call of the layer."""
    where = ("layer_mappings", at)
    found = [output] if not side.layer else features.get(side.layer, [])
    if not found:
        raise LifecycleError(f"the {whose}'s layer {side.layer!r} was not called in its forward pass")
    tensors = [find_output(value, side.path, whose=f"{whose}'s layer {side.layer}", argument=where) for value in found]
    for tensor in tensors:
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            raise ArgumentError(
                f"the {whose}'s {str(side) or 'output'} is a {type(tensor).__name__}, no floating-point tensor: name "
                "one of several outputs, [student_layer, '0', teacher_layer, '0']",
                argument=where,
            )
    return tensors


def _as_logits(features: Tensor) -> Tensor:
    """Features whose softmax over the last dimension is the distribution to compare.

    Probabilities are recognised: their logarithm gives them back.
    """
    with torch.no_grad():
        wide = features.float()
        sums = wide.sum(-1)
        is_distribution = bool((wide >= 0).all()) and bool(torch.allclose(sums, torch.ones_like(sums), atol=1e-3))
    return features.clamp(min=torch.finfo(features.dtype).tiny).log() if is_distribution else features
