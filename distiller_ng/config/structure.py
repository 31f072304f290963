"""From plain data to a spec: sections, definitions and policies, before any class is looked up (layer 4)."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, get_args

from distiller_ng.config.kinds import KINDS
from distiller_ng.config.marks import Marks, Path, as_part
from distiller_ng.config.problems import Report, shown
from distiller_ng.config.spec import TIMING_KEYS, ComponentSpec, PolicySpec, ScheduleSpec
from distiller_ng.core.context import Compat
from distiller_ng.errors import did_you_mean, listed

__all__ = ["POLICIES", "VERSION", "read_spec"]

POLICIES = "policies"
VERSION = "version"
COMPAT = "compat"
_INSTANCE_KEYS = ("instance_name", "args")


def read_spec(data: Mapping[Any, Any], *, source: str, marks: Marks, text: str | None = None) -> ScheduleSpec:
    """Take a schedule's data apart; whatever does not fit becomes one of the spec's ``problems``.

    >>> read_spec({"policies": []}, source="demo", marks=Marks()).policies
    ()
    """
    report = Report(source, marks)
    components: list[ComponentSpec] = []
    for key, content in data.items():
        if key in KINDS:
            components += _definitions(key, content, report)
        elif key not in (POLICIES, VERSION, COMPAT):
            sections = [*KINDS, POLICIES, COMPAT]
            report.error(
                (as_part(key),), f"unknown section {str(key)!r}. {did_you_mean(str(key), sections)}", at_key=True
            )
    compat = data.get(COMPAT)
    if compat not in (None, *get_args(Compat)):
        report.error((COMPAT,), f"compat is 'distiller', 'sparseml' or left out, got {shown(compat)}")
        compat = None
    policies = _policies(data.get(POLICIES), report)
    return ScheduleSpec(
        source,
        tuple(components),
        tuple(policies),
        marks,
        tuple(report.problems),
        tuple(report.warnings),
        text,
        compat,
    )


def _definitions(section: str, content: Any, report: Report) -> list[ComponentSpec]:
    path: Path = (section,)
    if content is None:
        return []
    if not isinstance(content, Mapping):
        report.error(path, f"{section} maps instance names to definitions, got {shown(content)}")
        return []
    found: dict[str, ComponentSpec] = {}
    for key, definition in content.items():
        here = (*path, as_part(key))
        name = _name(key)
        if name is None:
            report.error(here, f"an instance name is text, got {shown(key)}", at_key=True)
        elif name in found:
            report.error(here, f"the name {name!r} is used twice in {section}", at_key=True)
        elif (spec := _definition(section, name, definition, here, report)) is not None:
            found[name] = spec
    return list(found.values())


def _definition(section: str, name: str, content: Any, path: Path, report: Report) -> ComponentSpec | None:
    if not isinstance(content, Mapping):
        message = f"a definition is a mapping with a class and its arguments, got {shown(content)}"
        report.error(path, message, at_key=content is None)
        return None
    args: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(key, str):
            args[key] = value
        else:
            report.error((*path, as_part(key)), f"an argument name is text, got {shown(key)}", at_key=True)
    if "class" not in args:
        close = did_you_mean("class", list(args))
        hint = f" {close}" if close.startswith("Did you mean") else " Write 'class: NameOfTheClass'"
        report.error(path, f"{name!r} has no class.{hint}", at_key=True)
        return None
    class_name = args.pop("class")
    if not isinstance(class_name, str):
        report.error((*path, "class"), f"class is the name of a class, got {shown(class_name)}")
        return None
    return ComponentSpec(section, name, class_name, path, MappingProxyType(args))


def _policies(content: Any, report: Report) -> list[PolicySpec]:
    path: Path = (POLICIES,)
    if content is None:
        return []
    if not isinstance(content, list):
        report.error(path, f"policies is a list ('- pruner: ...'), got {shown(content)}")
        return []
    specs: list[PolicySpec] = []
    for position, entry in enumerate(content):
        here = (*path, position)
        if not isinstance(entry, Mapping):
            message = "a policy is a mapping such as {pruner: {instance_name: ...}, epochs: [...]}"
            report.error(here, f"{message}, got {shown(entry)}")
        elif (spec := _policy(entry, here, report)) is not None:
            specs.append(spec)
    return specs


def _policy(entry: Mapping[Any, Any], path: Path, report: Report) -> PolicySpec | None:
    kind_keys = [kind.key for kind in KINDS.values()]
    for key in entry:
        if key not in kind_keys and key not in TIMING_KEYS:
            message = f"unknown policy key {str(key)!r}. {did_you_mean(str(key), [*kind_keys, *TIMING_KEYS])}"
            report.error((*path, as_part(key)), message, at_key=True)
    found = [key for key in kind_keys if key in entry]
    if len(found) != 1:
        several = f"names {len(found)} components ({listed(found)}): write one policy for each" if found else ""
        report.error(path, f"a policy {several or f'needs one of {listed(kind_keys, limit=20)}'}")
        return None
    key = found[0]
    instance = _instance(entry[key], (*path, key), report)
    timing, timing_paths = _timing(entry, key, path, report)
    if instance is None:
        return None
    name, args = instance
    return PolicySpec(key, name, path, MappingProxyType(timing), MappingProxyType(timing_paths), MappingProxyType(args))


def _instance(content: Any, path: Path, report: Report) -> tuple[str, dict[str, Any]] | None:
    """The instance's name and the policy's own arguments."""
    if not isinstance(content, Mapping):
        report.error(path, f"write 'instance_name: NAME' here, got {shown(content)}", at_key=content is None)
        return None
    for key in content:
        if key not in _INSTANCE_KEYS and key not in TIMING_KEYS:
            hint = did_you_mean(str(key), [*_INSTANCE_KEYS, *TIMING_KEYS])
            elsewhere = " (arguments of the policy go below 'args')" if "Did you" not in hint else ""
            report.error((*path, as_part(key)), f"unknown key {str(key)!r}{elsewhere}. {hint}", at_key=True)
    args = content.get("args")
    if args is not None and not isinstance(args, Mapping):
        report.error((*path, "args"), f"args is a mapping of policy arguments, got {shown(args)}")
        args = None
    arguments: dict[str, Any] = {}
    for key, value in (args or {}).items():
        if isinstance(key, str):
            arguments[key] = value
        else:
            report.error((*path, "args", as_part(key)), f"an argument name is text, got {shown(key)}", at_key=True)
    if "instance_name" not in content:
        report.error(path, "instance_name is missing", at_key=True)
        return None
    name = _name(content["instance_name"])
    if name is None:
        report.error((*path, "instance_name"), f"instance_name is text, got {shown(content['instance_name'])}")
        return None
    return name, arguments


def _timing(entry: Mapping[Any, Any], key: str, path: Path, report: Report) -> tuple[dict[str, Any], dict[str, Path]]:
    """When the policy acts; keys nested below the component are accepted with a warning."""
    timing = {name: entry[name] for name in TIMING_KEYS if name in entry}
    paths: dict[str, Path] = {name: (*path, name) for name in timing}
    nested = entry[key] if isinstance(entry[key], Mapping) else {}
    moved = [name for name in TIMING_KEYS if name in nested]
    for name in moved:
        here = (*path, key, name)
        if name in timing:
            report.error(here, f"{name} is given here and for the policy itself", at_key=True)
        else:
            timing[name], paths[name] = nested[name], here
    if moved:
        message = f"{listed(moved)} below {key!r} taken for the policy: write it beside {key!r}, one level further out"
        report.warn((*path, key, moved[0]), message, at_key=True)
    return timing, paths


def _name(key: Any) -> str | None:
    """An instance's name as text (``1:`` and ``yes:`` are names too); None for what cannot be one."""
    return str(key) if isinstance(key, str | int | float | bool) and key != "" else None
