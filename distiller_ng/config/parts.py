"""Parts of a recipe: some of its modifiers, or stage after stage (layer 4)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from distiller_ng.config.kinds import kind_of_key
from distiller_ng.config.spec import ModifierSpec, ScheduleSpec

__all__ = ["OPTIONAL", "part_of", "stages_of", "without_missing_teachers"]

#: The variable of a recipe that makes distillation depend on whether there is a teacher.
OPTIONAL = ("distillation", "optional")


def part_of(spec: ScheduleSpec, wanted: Callable[[ModifierSpec], bool]) -> ScheduleSpec:
    """The part of a recipe whose modifiers are wanted."""
    modifiers = () if spec.recipe is None else tuple(m for m in spec.recipe.modifiers if wanted(m))
    places = {modifier.instance for modifier in modifiers}
    return replace(
        spec,
        components=tuple(c for c in spec.components if (c.section, c.name) in places),
        policies=tuple(p for p in spec.policies if (kind_of_key(p.key).section, p.instance_name) in places),
        recipe=None if spec.recipe is None else replace(spec.recipe, modifiers=modifiers),
    )


def without_missing_teachers(spec: ScheduleSpec, has_teachers: bool) -> ScheduleSpec:
    """A recipe that says ``distillation: optional`` without its distillation, where no teacher was given."""
    name, value = OPTIONAL
    if has_teachers or spec.recipe is None or spec.recipe.variables.get(name) != value:
        return spec
    taught = {(c.section, c.name) for c in spec.components if c.section == "distillers" and "teacher" not in c.args}
    return part_of(spec, lambda modifier: modifier.instance not in taught)


def stages_of(spec: ScheduleSpec) -> Iterator[ScheduleSpec]:
    """A recipe's stages in order; a recipe without any, and a schedule, as they are."""
    stages = () if spec.recipe is None else spec.recipe.stages
    if not stages:
        yield spec
    for stage in stages:
        yield part_of(spec, lambda modifier, name=stage: modifier.stage == name)  # type: ignore[misc]
