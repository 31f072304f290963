"""Distillation of layers one by one, with nothing to write in the simplest case (layer 2)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from distiller_ng.errors import ArgumentError
from distiller_ng.graph.inputs import ExampleInputsLike
from distiller_ng.knowledge_distillation._read_teachers import read_teachers
from distiller_ng.knowledge_distillation.distiller import DISTILLERS, KnowledgeDistiller
from distiller_ng.names import canonical_name, unwrap
from distiller_ng.registry import RecipeTag

__all__ = ["PerLayerDistiller"]


@DISTILLERS.register(
    "PerLayerDistiller",
    injected=("name", "model", "teachers", "example_inputs"),
    recipe_tag=RecipeTag(
        "PerLayerDistillationModifier",
        start_epoch=-1.0,
        end_epoch=-1.0,
        update_frequency=0.0,
        fixed_frequency=True,
        params=None,
    ),
)
class PerLayerDistiller(KnowledgeDistiller):
    """Adds ``gain * sum mse(P(s), t) / (mean(t^2) + epsilon)`` over pairs of layers to the loss.

    ``student_layer_names`` and ``teacher_layer_names``: lists of equal length, compared in order; one of them stands
    for both; with neither, all convolutions (``Conv2d``) and linear layers of both models. ``normalize``: divide by the
    teacher's size. ``project_features``: bring the student's features to the teacher's channels by trained layers
    where they differ. ``teacher``: a name among ``teachers``, ``self``, or left out where there is only one.

    Raises :class:`ArgumentError` for lists of unequal length, :class:`TargetError` for layers that do not exist.

    Source: A. Romero et al., "FitNets: Hints for Thin Deep Nets", https://arxiv.org/abs/1412.6550; as SparseML's
    ``PerLayerDistillationModifier``. Features 1 and 2 of the student, 3 and 2 of the teacher: ``2 / 6.5 = 0.3077``::

        distillers:
          layers:
            class: PerLayerDistiller
            teacher: resnet56
            gain: 0.5
            student_layer_names: [layer2, layer3]
    """

    def __init__(
        self,
        name: str,
        model: nn.Module | None,
        teachers: Mapping[str, nn.Module] | None = None,
        *,
        teacher: Any = None,
        gain: float = 1.5,
        normalize: bool = True,
        student_layer_names: Sequence[str] | None = None,
        teacher_layer_names: Sequence[str] | None = None,
        project_features: bool = True,
        epsilon: float = 1e-6,
        example_inputs: ExampleInputsLike | None = None,
    ) -> None:
        ours, theirs = _names("student", student_layer_names), _names("teacher", teacher_layer_names)
        if not ours and not theirs:
            sources = read_teachers(teacher, None, teachers or {}, student=model)
            module = sources[0].module
            ours = _weighted(model)
            theirs = ours if module is None else _weighted(module)
            given = "the models have"
        else:
            ours, theirs, given = ours or theirs, theirs or ours, "the lists have"
        if len(ours) != len(theirs) or not ours:
            message = f"student_layer_names and teacher_layer_names are pairs, {given} {len(ours)} and {len(theirs)}"
            raise ArgumentError(message, argument=("student_layer_names",))
        super().__init__(
            name,
            model,
            teachers,
            teacher=teacher,
            logits="none",
            layers=[{"student": one, "teacher": other} for one, other in zip(ours, theirs, strict=True)],
            loss="MSE",
            gain=gain,
            normalize=normalize,
            project=project_features,
            epsilon=epsilon,
            example_inputs=example_inputs,
        )

    @classmethod
    def from_recipe(cls, properties: Mapping[str, Any], note: Callable[[str], None]) -> dict[str, Any]:
        """See :class:`~distiller_ng.registry.RecipeTag`."""
        return {name: value for name, value in properties.items() if value is not None}

    @classmethod
    def to_recipe(cls, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """See :class:`~distiller_ng.registry.RecipeTag`."""
        return {name: value for name, value in arguments.items() if name != "teacher"}


def _names(whose: str, names: Any) -> list[str]:
    if names is None:
        return []
    if isinstance(names, str) or not isinstance(names, Sequence) or not all(isinstance(n, str) for n in names):
        argument = f"{whose}_layer_names"
        raise ArgumentError(f"{argument} is a list of layers, got {names!r}", argument=(argument,))
    return list(names)


def _weighted(model: nn.Module | None) -> list[str]:
    if model is None:
        return []
    inner = unwrap(model).named_modules()
    return [canonical_name(name) for name, module in inner if type(module) in (nn.Conv2d, nn.Linear)]
