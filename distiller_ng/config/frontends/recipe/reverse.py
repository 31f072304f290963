"""From a schedule to a recipe, as far as its components have recipe tags (layer 4)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from distiller_ng.config.frontends.recipe.tags import TagEntry, entries_of_class
from distiller_ng.config.frontends.recipe.timing import END, FREQUENCY, START
from distiller_ng.config.policies import find_instance
from distiller_ng.config.problems import Report
from distiller_ng.config.spec import ComponentSpec, ModifierSpec, PolicySpec, RecipeSpec, ScheduleSpec
from distiller_ng.core.window import OPEN_END, PolicyWindow
from distiller_ng.errors import ArgumentError
from distiller_ng.ops.recipe_targets import to_recipe_target

__all__ = ["as_recipe"]

_CURVES = {"AGP": "cubic", "AGPSparsity": "cubic", "Linear": "linear", "LinearSparsity": "linear"}
_STEPPED = {"StepLR": ("gamma", "step_size"), "ExponentialLR": ("gamma",), "MultiStepLR": ("gamma", "milestones")}


def as_recipe(spec: ScheduleSpec) -> RecipeSpec:
    """The recipe that a spec is or amounts to, with resolved values.

    Raises :class:`ScheduleError` with every definition that no modifier can express, and for a spec with problems.
    """
    report = Report(spec.source, spec.marks, list(spec.problems))
    if spec.recipe is not None:
        report.finish()
        return spec.recipe
    modifiers = []
    for policy in spec.policies:
        definition = find_instance(spec, policy, report)
        if definition is None:
            continue
        try:
            modifiers.append(_modifier(policy, definition))
        except ArgumentError as error:
            report.error((*definition.path, *error.argument), str(error), at_key=True)
    report.finish()
    return RecipeSpec(tuple(modifiers))


def _modifier(policy: PolicySpec, definition: ComponentSpec) -> ModifierSpec:
    if definition.section == "lr_schedulers":
        return _learning_rate(policy, definition)
    entry = _entry(definition)
    properties = _properties(entry, definition)
    for name, argument in entry.policy_args.items():
        if argument in policy.args:
            properties[name] = policy.args[argument]
    lost = [name for name in policy.args if name not in {*entry.policy_args.values(), *entry.tag.fixed_policy_args}]
    if lost:
        raise ArgumentError(f"{entry.tag.tag} has nothing like the policy's argument {lost[0]!r}")
    return ModifierSpec(entry.tag.tag, properties | _times(policy, entry), definition.path)


def _entry(definition: ComponentSpec) -> TagEntry:
    """The tag whose fixed arguments are those of the definition, most of them first."""
    entries = entries_of_class(definition.section, definition.class_name)
    if not entries:
        raise ArgumentError(f"recipes have no modifier for the class {definition.class_name!r}", argument=("class",))

    def fits(entry: TagEntry) -> bool:
        return all(definition.args.get(name) == value for name, value in entry.tag.fixed.items())

    fitting = sorted((entry for entry in entries if fits(entry)), key=lambda entry: -len(entry.tag.fixed))
    return (fitting or entries)[0]


def _properties(entry: TagEntry, definition: ComponentSpec) -> dict[str, Any]:
    tag, arguments = entry.tag, {k: v for k, v in definition.args.items() if k not in entry.tag.fixed}
    arguments = _without_schedule(arguments, definition)
    reverse = getattr(entry.registered.cls, "to_recipe", None)
    if reverse is not None:
        arguments = dict(reverse(arguments))
        for name, value in tag.fixed.items():
            arguments.pop("global_sparsity" if name == "scope" and value == "global" else name, None)
    back = {argument: name for name, argument in tag.renamed.items()}
    properties = {back.get(name, name): value for name, value in arguments.items()}
    if tag.params is not None and tag.params in properties:
        properties["params"] = _names(properties.pop(tag.params))
    return properties


def _without_schedule(arguments: dict[str, Any], definition: ComponentSpec) -> dict[str, Any]:
    """A nested sparsity schedule as the three properties that recipes have for it."""
    schedule = arguments.pop("schedule", None)
    if schedule is None:
        return arguments
    curve = _CURVES.get(str(schedule.get("class"))) if isinstance(schedule, Mapping) else None
    if curve is None:
        allowed = "AGP (cubic) and Linear"
        raise ArgumentError(f"recipes know the sparsity schedules {allowed} only", argument=("schedule",))
    return {
        **arguments,
        "init_sparsity": schedule.get("initial_sparsity", 0.0),
        "final_sparsity": schedule.get("final_sparsity"),
        "inter_func": curve,
    }


def _names(value: Any) -> Any:
    if isinstance(value, str):
        name = to_recipe_target(value)
        return name if name.startswith("__") else [name]
    return [to_recipe_target(name) if isinstance(name, str) else name for name in value]


def _times(policy: PolicySpec, entry: TagEntry) -> dict[str, Any]:
    window = PolicyWindow.from_arguments(**dict(policy.timing))
    if window.is_stepwise:
        end = OPEN_END if math.isinf(window.end) else window.end
        times = {START: float(window.start), END: float(end), FREQUENCY: float(window.frequency or -1)}
    else:
        times = _of_epochs(window)
    if entry.tag.ends in ("ignored", "never"):
        del times[END]
    if entry.tag.fixed_frequency:
        del times[FREQUENCY]
    return times


def _of_epochs(window: PolicyWindow) -> dict[str, Any]:
    """A window of whole epochs ends with the last epoch in which it acts."""
    if window.is_fractional:
        end = OPEN_END if math.isinf(window.end) else window.end
        return {START: float(window.start), END: float(end), FREQUENCY: float(window.frequency or 1)}
    epochs = window.epochs
    steps = {later - earlier for earlier, later in zip(epochs or (), (epochs or ())[1:], strict=False)}
    if len(steps) > 1:
        message = f"recipes cannot act in a list of epochs ({window}), only every so many"
        raise ArgumentError(message)
    last = window.last_epoch
    end = OPEN_END if last is None else last
    return {START: float(window.start), END: float(end), FREQUENCY: float(next(iter(steps), window.frequency or 1))}


def _learning_rate(policy: PolicySpec, definition: ComponentSpec) -> ModifierSpec:
    allowed = _STEPPED.get(definition.class_name)
    window = PolicyWindow.from_arguments(**dict(policy.timing))
    if allowed is None or window.first != 0 or any(name not in allowed for name in definition.args):
        message = f"recipes can express {', '.join(_STEPPED)} from epoch 0 on"
        raise ArgumentError(f"{message}, not this {definition.class_name}", argument=("class",))
    end = OPEN_END if math.isinf(window.end) else window.end
    properties = {
        "lr_class": definition.class_name,
        "lr_kwargs": dict(definition.args),
        START: 0.0,
        END: float(end),
    }
    return ModifierSpec("LearningRateModifier", properties, definition.path)
