"""A schedule as frozen data, after reading and before anything is built (layer 4)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from distiller_ng.config.marks import Marks, Path
from distiller_ng.core.context import Compat
from distiller_ng.errors import Problem

__all__ = ["TIMING_KEYS", "ComponentSpec", "ModifierSpec", "PolicySpec", "RecipeSpec", "ScheduleSpec"]

#: Keys of a policy that say when, in the order they are written.
TIMING_KEYS = ("epochs", "starting_epoch", "ending_epoch", "frequency", "trigger")

_EMPTY: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class ComponentSpec:
    """One definition: what ``pruners: {fine: {class: AutomatedGradualPruner, final_sparsity: 0.9}}`` says.

    ``args`` holds the constructor's arguments; the one called ``x`` stands at ``path + ("x",)`` in the document.
    ``may_miss``: names that match nothing are left out with a warning (recipes: ``params_strict: false``).
    """

    section: str
    name: str
    class_name: str
    path: Path
    args: Mapping[str, Any] = field(default_factory=lambda: _EMPTY)
    may_miss: bool = False

    @property
    def label(self) -> str:
        """How messages name it: ``pruner 'fine'``."""
        return f"{self.section.rstrip('s').replace('_', ' ')} {self.name!r}"


@dataclass(frozen=True, slots=True)
class PolicySpec:
    """One entry of ``policies``: which instance, with which policy arguments, and when.

    ``timing`` holds those of :data:`TIMING_KEYS` that were written, ``timing_paths`` where each of them stands.
    """

    key: str
    instance_name: str
    path: Path
    timing: Mapping[str, Any]
    timing_paths: Mapping[str, Path]
    args: Mapping[str, Any] = field(default_factory=lambda: _EMPTY)

    @property
    def instance_path(self) -> Path:
        """Where the instance is named."""
        return (*self.path, self.key, "instance_name")

    @property
    def args_path(self) -> Path:
        """Where the policy's own arguments stand."""
        return (*self.path, self.key, "args")


@dataclass(frozen=True, slots=True)
class ModifierSpec:
    """One modifier of a recipe with resolved properties; the property ``x`` stands at ``path + ("x",)``.

    ``stage`` is "" in a recipe without stages. ``is_newer``: written without a tag, as the framework that followed
    SparseML does. ``instance``: section and name of the component it became.
    """

    tag: str
    properties: Mapping[str, Any]
    path: Path
    group: str = "modifiers"
    stage: str = ""
    is_newer: bool = False
    instance: tuple[str, str] = ("", "")


@dataclass(frozen=True, slots=True)
class RecipeSpec:
    """What a schedule that came from a recipe keeps of it, in the order in which modifiers act.

    ``metadata`` is by stage, "" for the whole recipe. ``variables``: resolved values.
    """

    modifiers: tuple[ModifierSpec, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=lambda: _EMPTY)
    variables: Mapping[str, Any] = field(default_factory=lambda: _EMPTY)

    @property
    def stages(self) -> list[str]:
        """Names of the stages in order; empty for a recipe without."""
        return [stage for stage in dict.fromkeys(modifier.stage for modifier in self.modifiers) if stage]


@dataclass(frozen=True, slots=True)
class ScheduleSpec:
    """A whole schedule: definitions and policies in file order, and what is already known to be wrong with them.

    ``text`` is the source as it was read (None for a dictionary), for checkpoints and reports. ``compat`` is the
    scheduler-wide switch for the ancestor's rules. ``recipe``: the recipe it was, if it was one.
    """

    source: str
    components: tuple[ComponentSpec, ...] = ()
    policies: tuple[PolicySpec, ...] = ()
    marks: Marks = field(default_factory=Marks)
    problems: tuple[Problem, ...] = ()
    warnings: tuple[Problem, ...] = ()
    text: str | None = None
    compat: Compat | None = None
    recipe: RecipeSpec | None = None

    def section(self, name: str) -> Iterator[ComponentSpec]:
        """The definitions of one section, in file order."""
        return (component for component in self.components if component.section == name)

    def as_dict(self) -> dict[str, Any]:
        """The schedule as plain data that ``dict_config`` reads back to an equal schedule."""
        result: dict[str, Any] = {"version": 1}
        if self.compat is not None:
            result["compat"] = self.compat
        for component in self.components:
            definition = {"class": component.class_name, **component.args}
            result.setdefault(component.section, {})[component.name] = definition
        result["policies"] = [_policy_dict(policy) for policy in self.policies]
        return result


def _policy_dict(policy: PolicySpec) -> dict[str, Any]:
    target: dict[str, Any] = {"instance_name": policy.instance_name}
    if policy.args:
        target["args"] = dict(policy.args)
    return {policy.key: target, **policy.timing}
