"""What is distilled from whom, as a schedule defines it, and the terms it adds to the loss (layer 2)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from distiller_ng.errors import ArgumentError, did_you_mean
from distiller_ng.graph.inputs import ExampleInputs, ExampleInputsLike, as_example_inputs
from distiller_ng.knowledge_distillation._fit import check_places, warn_about_size
from distiller_ng.knowledge_distillation._read_teachers import read_teachers
from distiller_ng.knowledge_distillation._recipes import distillation_from_recipe, distillation_to_recipe
from distiller_ng.knowledge_distillation._settings import (
    read_autocast,
    read_input_keys,
    read_logits_loss,
    read_output_keys,
    read_shares,
    usual_inputs,
)
from distiller_ng.knowledge_distillation.base import LossSpec, check_positive
from distiller_ng.knowledge_distillation.capture import Call, observe
from distiller_ng.knowledge_distillation.pairs import FeaturePair, PairOptions, SpatialWeight, read_pairs
from distiller_ng.knowledge_distillation.projections import Projections
from distiller_ng.knowledge_distillation.structures import batch_size
from distiller_ng.knowledge_distillation.teachers import AutocastType, TeacherSource
from distiller_ng.knowledge_distillation.terms import Terms, TermSum, add_terms, feature_sides, logits_term
from distiller_ng.knowledge_distillation.weights import read_loss_weights
from distiller_ng.registry import RecipeTag, Registry

__all__ = ["DISTILLERS", "Distiller", "KnowledgeDistiller"]

DISTILLERS: Registry[Distiller] = Registry("distiller", "distiller_ng.knowledge_distillation")


class Distiller:
    """Base of what ``distillers`` may define; :class:`KnowledgeDistiller` is the general one."""

    name: str


@DISTILLERS.register(
    "KnowledgeDistiller",
    injected=("name", "model", "teachers", "example_inputs"),
    recipe_tag=RecipeTag(
        "DistillationModifier",
        start_epoch=-1.0,
        end_epoch=-1.0,
        update_frequency=0.0,
        fixed_frequency=True,
        params=None,
        renamed={"distill_output_keys": "output_keys"},
    ),
)
class KnowledgeDistiller(Distiller):
    """Trains a model towards one or more teachers: their logits, the outputs of their layers, or both.

    The loss becomes ``student * L + distill * scale * D + sum gain_i * D_i + teacher * L_t``: ``L`` is the training
    loop's own loss, ``D`` the distance of the logits (``scale`` is ``T^2`` for KL and CE, else 1), ``D_i`` those of the
    pairs, ``L_t`` the teacher's loss against the labels.

    Source: Geoffrey Hinton, Oriol Vinyals, Jeff Dean, "Distilling the Knowledge in a Neural Network" (2015),
    https://arxiv.org/abs/1503.02531; for layers see each loss.

    ``teacher``: a name among ``teachers`` (may be left out where there is only one), ``self`` (a frozen copy of the
    model, taken when the policy begins), or ``{ema: 0.999}`` (a moving average of the model); or a list of these.
    ``ema``: short for ``teacher: {ema: ...}``.
    ``teacher_weights``: how much each of several teachers counts; they are scaled to sum 1. Default: equally.
    ``temperature``: divides the logits before the softmax; above 0.
    ``loss_weights``: ``{distill: 0.7, student: 0.3}``, a list of two or three numbers, or for each ``{epoch: number}``
    with straight lines in between. Default: 0.5 and 0.5; without a term on logits, student 1.
    ``logits``: the loss on the models' outputs (KL, CE, MSE, L1, Euclidean, Cosine), or ``none``.
    ``output_keys``: which of several outputs are compared, such as ``[logits]``; ``{student's: teacher's}`` where they
    have different names.
    ``class_dim``: dimension of the classes. Default: 1 for four dimensions, else the last.
    ``layers``: ``{student's layer: teacher's layer}``, or a list; values may be mappings with settings of their own.
    ``outputs``: the same for parts of the models' outputs: ``{hidden_states.3: hidden_states.6}``.
    ``loss``: of the pairs that do not say one: MSE, L1, Cosine, AT, PKD, FSP, RKD.
    ``gain``: what the pairs' distances are multiplied by; may change over the epochs like a loss weight.
    ``normalize``: divide the distance by the size of the teacher's features.
    ``spatial_weight``: ``none``, or ``attention``: positions count by the teacher's activity. From code, a function.
    ``project``: bring student features to the teacher's channels by trained layers where they differ.
    ``epsilon``: added to the teacher's size when normalizing.
    ``teacher_input_keys``: which of the model's named inputs the teacher is given. Default: all.
    ``autocast``: the type the teacher is computed in. Default: as the model's own pass.
    ``example_inputs``: what a pass is called with, to learn the features' shapes before training. Default: zeros of the
    model's ``input_shape`` where it has one, else the first minibatch.

    Raises :class:`TargetError` for layers that do not exist, with the nearest names. A teacher more than ten times the
    student's size is a :class:`ScheduleWarning`.

    Example, from logits at temperature 4 and two layers::

        distillers:
          kd:
            class: KnowledgeDistiller
            teacher: resnet56
            temperature: 4.0
            loss_weights: {distill: 0.7, student: 0.3}
            layers: {layer2: layer2, layer3: layer3}
            loss: AT
            gain: 100.0
    """

    def __init__(
        self,
        name: str,
        model: nn.Module | None,
        teachers: Mapping[str, nn.Module] | None = None,
        *,
        teacher: Any = None,
        ema: float | None = None,
        teacher_weights: Sequence[float] | None = None,
        temperature: float = 1.0,
        loss_weights: Any = None,
        logits: LossSpec | None = "KL",
        output_keys: Any = None,
        class_dim: int | None = None,
        layers: Any = None,
        outputs: Any = None,
        loss: LossSpec = "MSE",
        gain: Any = 1.0,
        normalize: bool = False,
        spatial_weight: SpatialWeight = "none",
        project: bool = True,
        epsilon: float = 1e-6,
        teacher_input_keys: Sequence[str] | None = None,
        autocast: AutocastType | None = None,
        example_inputs: ExampleInputsLike | None = None,
    ) -> None:
        self.name = name
        self.temperature = check_positive("temperature", temperature)
        self.logits = read_logits_loss(logits, self.temperature, class_dim)
        options = PairOptions(loss, gain, normalize, spatial_weight, project, epsilon)
        self.pairs = read_pairs(layers, outputs, options)
        self.loss_weights = read_loss_weights(loss_weights, has_logits=self.logits is not None)
        if self.logits is None and not self.pairs:
            raise ArgumentError("nothing to distill: logits is none and there are no layers", argument=("logits",))
        self.student_keys, self.teacher_keys = read_output_keys(output_keys)
        self.input_keys = read_input_keys(teacher_input_keys)
        self.autocast = read_autocast(autocast)
        self.sources = read_teachers(teacher, ema, teachers or {}, student=model)
        self.shares = read_shares(teacher_weights, len(self.sources))
        self.projections = Projections()
        self._is_discovered = False
        if model is not None:
            self._check_layers(model)
            if self.pairs:
                self.discover(model, example_inputs)
            warn_about_size(model, self.sources)

    # -- what the policy needs --------------------------------------------------------------------------------------

    @property
    def logits_scale(self) -> float:
        """What the distance of the logits is multiplied by besides its weight: ``T^2`` for KL and CE."""
        return 1.0 if self.logits is None else self.logits.scale

    def student_layers(self) -> list[str]:
        """The student's layers whose outputs are wanted."""
        return [place.layer for pair in self.pairs for place in pair.student]

    def prepare(self, student: nn.Module) -> None:
        """Install the teachers' hooks; raises :class:`TargetError` for layers that do not exist."""
        self._check_layers(student)
        for source in self.sources:
            source.prepare(student, self._teacher_layers(source))

    def run_teachers(self, call: Call) -> list[Call]:
        """Every teacher's pass over the inputs of one pass of the student."""
        return [source.run(call, input_keys=self.input_keys, autocast=self.autocast) for source in self.sources]

    def discover(self, student: nn.Module, example_inputs: ExampleInputsLike | None) -> None:
        """Make the projections that the pairs need, from one pass of student and teachers over ``example_inputs``.

        Without them the model's ``input_shape`` is tried. Everything runs in eval mode without gradients; modes are
        given back. Raises :class:`ArgumentError` for features that do not fit together.
        """
        example = usual_inputs(student) if example_inputs is None else as_example_inputs(example_inputs)
        if example is None or self._is_discovered:
            return
        call = observe(student, example, [*self.student_layers(), *self._own_layers()])
        given = ExampleInputs(example.args, self._inputs(example.kwargs))
        taught = [
            call if source.module is None else observe(source.module, given, self._teacher_layers(source))
            for source in self.sources
        ]
        for pair in self.pairs:
            ours, theirs = self._sides(pair, call, taught, student)
            for mine, target in zip(ours, theirs, strict=True):
                for at, (one, other) in enumerate(zip(mine, target, strict=True)):
                    if pair.project:
                        self._fit(pair, at, one, other)
        self._is_discovered = True

    def terms(self, calls: Sequence[Call], taught: Sequence[Sequence[Call]], student: nn.Module) -> Terms:
        """The distances of one step: its passes, weighted by their number of samples."""
        total = TermSum()
        samples = [batch_size(call.output) for call in calls]
        for call, given, count in zip(calls, taught, samples, strict=True):
            share = count / max(sum(samples), 1)
            if self.logits is not None:
                keys = (self.student_keys, self.teacher_keys)
                add_terms(total, "", logits_term(self.logits, call, given, self.shares, self.sources, keys), share)
            for pair in self.pairs:
                add_terms(total, pair.name, self._pair_term(pair, call, given, student), share)
        return total.terms()

    @classmethod
    def from_recipe(cls, properties: Mapping[str, Any], note: Callable[[str], None]) -> dict[str, Any]:
        """See :class:`~distiller_ng.registry.RecipeTag`."""
        return distillation_from_recipe(properties)

    @classmethod
    def to_recipe(cls, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """See :class:`~distiller_ng.registry.RecipeTag`."""
        return distillation_to_recipe(arguments)

    # -- internals --------------------------------------------------------------------------------------------------

    def _pair_term(self, pair: FeaturePair, call: Call, given: Sequence[Call], model: nn.Module) -> Tensor:
        ours, theirs = self._sides(pair, call, given, model)
        values = []
        for mine, target in zip(ours, theirs, strict=True):
            projected = []
            for at, (student, teacher) in enumerate(zip(mine, target, strict=True)):
                if pair.project:
                    self._fit(pair, at, student, teacher)
                projected.append(self.projections.apply(_key(pair, at), student))
            try:
                values.append(pair.compare(projected, target))
            except ArgumentError as error:
                raise ArgumentError(f"{pair.name}: {error}", argument=pair.argument) from None
        return torch.stack(values).mean()

    def _sides(
        self, pair: FeaturePair, call: Call, taught: Sequence[Call], student: nn.Module
    ) -> tuple[list[list[Tensor]], list[list[Tensor]]]:
        at = self._source_index(pair)
        return feature_sides(pair, (call, student), (taught[at], self.sources[at].layers_of(student)))

    def _fit(self, pair: FeaturePair, at: int, student: Tensor, teacher: Tensor) -> None:
        try:
            self.projections.fit(_key(pair, at), student, teacher, pair.loss.alignment)
        except ArgumentError as error:
            raise ArgumentError(f"{pair.name}: {error}", argument=pair.argument) from None

    def _teacher_layers(self, source: TeacherSource) -> list[str]:
        return [place.layer for pair in self._pairs_of(source) for place in pair.teacher]

    def _inputs(self, named: Mapping[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in named.items() if not self.input_keys or key in self.input_keys}

    def _own_layers(self) -> list[str]:
        """Layers of teachers that are copies of the student."""
        own = [source for source in self.sources if source.module is None]
        return [layer for source in own for layer in self._teacher_layers(source)]

    def _source_index(self, pair: FeaturePair) -> int:
        return next(at for at, source in enumerate(self.sources) if pair in self._pairs_of(source))

    def _pairs_of(self, source: TeacherSource) -> list[FeaturePair]:
        """The pairs a teacher is asked for: those that name it, and for the first those that name none."""
        is_first = source is self.sources[0]
        return [pair for pair in self.pairs if pair.source == source.name or (is_first and pair.source is None)]

    def _check_layers(self, model: nn.Module) -> None:
        names = [source.name for source in self.sources]
        for pair in self.pairs:
            if pair.source is not None and pair.source not in names:
                raise ArgumentError(
                    f"no teacher of this distiller is called {pair.source!r}. {did_you_mean(pair.source, names)}",
                    argument=(*pair.argument, "source"),
                )
            if pair.source is None and len(names) > 1:
                raise ArgumentError(
                    f"{pair.name}: which of the teachers {names}? Write {{teacher: ..., source: {names[0]}}}",
                    argument=pair.argument,
                )
            check_places(model, pair.student, "student", pair)
            theirs = self.sources[names.index(pair.source) if pair.source is not None else 0].layers_of(model)
            check_places(theirs, pair.teacher, "teacher", pair)


def _key(pair: FeaturePair, at: int) -> str:
    return pair.name if len(pair.student) == 1 else f"{pair.name} #{at}"
