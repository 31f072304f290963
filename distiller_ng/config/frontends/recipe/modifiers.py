"""Where the modifiers of a recipe stand: groups, stages, a bare list, or one alone (layer 4)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from distiller_ng.config.frontends.recipe.nodes import Reference, Tagged
from distiller_ng.config.frontends.recipe.variables import Scope
from distiller_ng.config.marks import Path, as_part
from distiller_ng.config.problems import Report, file_problem, shown
from distiller_ng.config.spec import ModifierSpec
from distiller_ng.errors import nearest

__all__ = ["METADATA", "Layout", "read_layout"]

METADATA = "__metadata__"
_GROUP = "modifiers"


@dataclass(slots=True)
class Layout:
    """The parts of a recipe: raw modifiers by scope, the scopes, and metadata by stage ("" for the whole)."""

    modifiers: list[tuple[ModifierSpec, Scope]] = field(default_factory=list)
    scopes: list[Scope] = field(default_factory=list)
    metadata: dict[str, Any] = field(default_factory=dict)
    is_staged: bool = False


def read_layout(data: Any, source: str, report: Report) -> Layout:
    """Take a recipe's data apart; raises :class:`ScheduleError` where there are no modifiers at all."""
    if isinstance(data, Tagged | list):
        scope = Scope({}, (), report)
        items = _items(data, (), _GROUP, "", report)
        return Layout([(modifier, scope) for modifier in items], [scope])
    if not isinstance(data, Mapping):
        raise file_problem(source, f"a recipe is a mapping or a list of modifiers, got {shown(data)}")
    groups = _groups(data)
    stages = [] if groups else [key for key, value in data.items() if isinstance(value, Mapping) and _groups(value)]
    if not groups and not stages:
        raise file_problem(source, _why_none(data))
    layout = Layout(is_staged=bool(stages))
    top = _scope(data, [*groups, *stages], (), None, report)
    layout.scopes.append(top)
    _read_part(data, groups, (), "", top, layout, report)
    for key in stages:
        inner, path = data[key], (as_part(key),)
        scope = _scope(inner, _groups(inner), path, top, report)
        layout.scopes.append(scope)
        _read_part(inner, _groups(inner), path, str(key), scope, layout, report)
    _refuse_misplaced(data, [*groups, *stages], report)
    if not layout.modifiers and not report.problems:
        raise file_problem(source, "no modifiers found: the recipe's lists of modifiers are empty")
    return layout


def _read_part(
    data: Mapping[Any, Any], groups: list[Any], path: Path, stage: str, scope: Scope, layout: Layout, report: Report
) -> None:
    if METADATA in data:
        layout.metadata[stage] = scope.settle(data[METADATA], (*path, METADATA))
    for group in groups:
        here = (*path, as_part(group))
        for modifier in _items(data[group], here, str(group), stage, report):
            layout.modifiers.append((modifier, scope))


def _groups(data: Mapping[Any, Any]) -> list[Any]:
    return [key for key in data if isinstance(key, str) and _GROUP in key]


def _scope(data: Mapping[Any, Any], without: list[Any], path: Path, parent: Scope | None, report: Report) -> Scope:
    values = {str(key): value for key, value in data.items() if key not in without and key != METADATA}
    return Scope(values, path, report, parent)


def _items(content: Any, path: Path, group: str, stage: str, report: Report) -> Iterator[ModifierSpec]:
    """The modifiers of one group: a list, a single one, or the newer framework's mapping."""
    if isinstance(content, Tagged):
        yield ModifierSpec(content.tag, content.properties, path, group, stage)
    elif isinstance(content, Mapping):
        for tag, properties in content.items():
            here = (*path, as_part(tag))
            given = {} if properties is None else properties
            if isinstance(given, Mapping):
                yield ModifierSpec(str(tag), {str(k): v for k, v in given.items()}, here, group, stage, is_newer=True)
            else:
                report.error(here, f"expected the properties of {tag}, got {shown(given)}")
    elif isinstance(content, list):
        for position, item in enumerate(content):
            here = (*path, position)
            if isinstance(item, Tagged):
                yield ModifierSpec(item.tag, item.properties, here, group, stage)
            else:
                report.error(here, f"expected a modifier, '- !EpochRangeModifier'; got {_written(item)}")
    elif content is not None:
        report.error(path, f"{group} is a list of modifiers, '- !EpochRangeModifier'; got {_written(content)}")


def _written(item: Any) -> str:
    """A value that is no modifier, and what its author may have forgotten."""
    name = item
    if isinstance(item, Mapping) and item:
        name = next(iter(item))
    if isinstance(name, str) and name.endswith("Modifier"):
        return f"{name!r}. A tag begins with an exclamation mark: write '- !{name}'"
    return "an alias" if isinstance(item, Reference) else shown(item)


def _refuse_misplaced(data: Mapping[Any, Any], known: list[Any], report: Report) -> None:
    """Modifiers below a key whose name does not say so are no modifiers."""
    for key, value in data.items():
        entries = value if isinstance(value, list) else [value]
        if key not in known and any(isinstance(entry, Tagged) for entry in entries):
            message = f"modifiers below {key!r}: the key's name must contain 'modifiers', such as '{key}_modifiers'"
            report.error((as_part(key),), message, at_key=True)


def _why_none(data: Mapping[Any, Any]) -> str:
    message = "no modifiers found: a recipe lists them below a key that contains 'modifiers'"
    for key, value in data.items():
        entries = value if isinstance(value, list) else [value]
        close = nearest(str(key), ["modifiers", "training_modifiers", "pruning_modifiers"])
        if any(isinstance(entry, Tagged) for entry in entries) or close:
            return f"{message}. Did you mean {(close or ['modifiers'])[0]!r} by {str(key)!r}?"
    return message
