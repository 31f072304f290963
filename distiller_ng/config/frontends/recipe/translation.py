"""From one modifier of a recipe to a component and its policy (layer 4)."""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Union, get_args, get_origin

from distiller_ng.config.classes import ComponentClass
from distiller_ng.config.frontends.recipe.tags import TagEntry, find_tag
from distiller_ng.config.frontends.recipe.timing import END, FREQUENCY, START, Timing, number_of, read_timing
from distiller_ng.config.frontends.recipe.variables import UNRESOLVED
from distiller_ng.config.marks import Path
from distiller_ng.config.probing import CONSTRUCTOR_ERRORS
from distiller_ng.config.problems import Report, shown
from distiller_ng.config.spec import ComponentSpec, ModifierSpec, PolicySpec
from distiller_ng.errors import ArgumentError, did_you_mean, nearest
from distiller_ng.names import ALL, ALL_PRUNABLE
from distiller_ng.ops.recipe_targets import from_recipe_target

__all__ = ["Translated", "translate"]

_TIMES = (START, END, FREQUENCY)
_PARAMS = "params"
_DROPPED = {"log_types": "older recipes have it; it never had an effect"}


@dataclass(frozen=True, slots=True)
class Translated:
    """One modifier, and what it became; ``renamed`` maps arguments to the properties they come from.

    Without some of its values (``is_whole`` is False) it cannot be checked any further.
    """

    modifier: ModifierSpec
    timing: Timing
    component: ComponentSpec
    policy: PolicySpec
    renamed: Mapping[str, str] = field(default_factory=dict)
    is_whole: bool = True


def translate(modifier: ModifierSpec, name: str, run_end: float, report: Report) -> Translated | None:
    """The component called ``name`` with its policy; None for an unknown tag, everything wrong is reported."""
    try:
        entry, right = find_tag(modifier.tag, modifier.properties)
    except ArgumentError as error:
        report.error(modifier.path, str(error), at_key=True)
        return None
    if right is not None:
        report.warn(modifier.path, f"!{modifier.tag} is taken for !{right}", at_key=True)
    return _Translation(modifier, entry, report).run(name, run_end)


class _Translation:
    def __init__(self, modifier: ModifierSpec, entry: TagEntry, report: Report) -> None:
        self._modifier, self._entry, self._tag, self._report = modifier, entry, entry.tag, report
        self._path = modifier.path
        self._found: ComponentClass = entry.component
        self._hook = getattr(entry.registered.cls, "from_recipe", None)
        self._renamed = {argument: name for name, argument in self._tag.renamed.items()}
        if self._tag.params is not None:
            self._renamed[self._tag.params] = _PARAMS

    def run(self, name: str, run_end: float) -> Translated:
        properties = self._spelled(dict(self._modifier.properties))
        timing = read_timing(self._tag, properties, self._path, run_end, self._report)
        is_whole = not any(value is UNRESOLVED for value in properties.values())
        properties = {name: value for name, value in properties.items() if value is not UNRESOLVED}
        modifier = ModifierSpec(
            self._tag.tag,
            types.MappingProxyType(_resolved(properties, timing, self._entry)),
            self._path,
            self._modifier.group,
            self._modifier.stage,
            self._modifier.is_newer,
            (self._entry.kind.section, name),
        )
        args = {key: value for key, value in properties.items() if key not in _TIMES}
        may_miss = self._may_miss(args.pop(self._tag.strict, True)) if self._tag.strict else False
        policy_args = {a: args.pop(p) for p, a in self._entry.policy_args.items() if args.get(p) is not None}
        policy_args |= dict(self._tag.fixed_policy_args)
        arguments = self._arguments(args)
        policy_args |= arguments.pop("policy_args", {})
        key = self._entry.kind.key
        component = ComponentSpec(
            self._entry.kind.section, name, self._found.name, self._path, types.MappingProxyType(arguments), may_miss
        )
        policy = PolicySpec(
            key, name, self._path, timing.for_policy(), timing.paths(self._path), types.MappingProxyType(policy_args)
        )
        return Translated(modifier, timing, component, policy, self._renamed, is_whole)

    # -- properties -------------------------------------------------------------------------------------------------

    def _spelled(self, properties: dict[str, Any]) -> dict[str, Any]:
        """With the right names, without what is ignored."""
        for wrong, right in self._tag.spellings.items():
            if wrong in properties and right not in properties:
                self._report.warn((*self._path, wrong), f"{wrong} is taken for {right}", at_key=True)
                properties[right] = properties.pop(wrong)
                self._renamed[right] = wrong
        for name, why in {**_DROPPED, **self._tag.ignored}.items():
            if name in properties and name not in self._found.arguments:
                self._report.warn((*self._path, name), f"{name} is ignored: {why}", at_key=True)
                del properties[name]
        return self._without_unknown(properties)

    def _without_unknown(self, properties: dict[str, Any]) -> dict[str, Any]:
        implied = {self._tag.params, *self._tag.renamed.values(), *self._tag.fixed}
        known = [*_TIMES, *self._tag.renamed, *self._entry.policy_args]
        known += [name for name in self._found.arguments if name not in implied]
        known += [self._tag.strict] if self._tag.strict else []
        known += [_PARAMS] if self._tag.params is not None else []
        for name in list(properties):
            if name in known or (self._hook is not None and not nearest(name, _TIMES, limit=1)):
                continue
            hint = did_you_mean(name, known)
            message = f"{self._tag.tag} has no property {name!r}. {hint}"
            self._report.error((*self._path, name), message, at_key=True)
            value = properties.pop(name)
            if close := nearest(name, known, limit=1):
                properties.setdefault(close[0], value)  # what is meant, to look for further mistakes
        return properties

    def _may_miss(self, value: Any) -> bool:
        if value is not None and not isinstance(value, bool):
            message = f"{self._tag.strict} is true or false, got {shown(value)}"
            self._report.error((*self._path, str(self._tag.strict)), message)
        return value is False

    # -- arguments --------------------------------------------------------------------------------------------------

    def _arguments(self, properties: dict[str, Any]) -> dict[str, Any]:
        """What the constructor gets, and below ``policy_args`` what the class has for the policy."""
        if self._tag.params is not None:
            self._name_parameters(properties)
        given = {self._tag.renamed.get(name, name): value for name, value in properties.items()}
        arguments = {name: self._coerced(name, value) for name, value in given.items()}
        if self._hook is not None:
            arguments = self._hooked(arguments)
        arguments |= dict(self._tag.fixed)
        for name in list(arguments):
            argument = self._found.arguments.get(name)
            if name == "policy_args":
                continue
            if argument is None and name in given:
                allowed = [self._renamed.get(a, a) for a in self._found.arguments]
                message = f"{self._tag.tag} has no property {name!r}. {did_you_mean(name, allowed)}"
                self._report.error((*self._path, name), message, at_key=True)
                del arguments[name]
            elif argument is not None and arguments[name] is None and not argument.required:
                del arguments[name]
        return arguments

    def _hooked(self, arguments: dict[str, Any]) -> dict[str, Any]:
        def note(message: str) -> None:
            self._report.warn(self._path, message, at_key=True)

        try:
            return dict(self._hook(arguments, note))  # type: ignore[misc]
        except ArgumentError as error:
            first, *rest = error.argument or ("",)
            place = (self._renamed.get(str(first), first), *rest) if error.argument else ()
            self._report.error((*self._path, *place), str(error), at_key=not place)
        except CONSTRUCTOR_ERRORS as error:
            message = f"{self._tag.tag} cannot be read: {type(error).__name__}: {error}"
            self._report.error(self._path, message, at_key=True)
        return {name: value for name, value in arguments.items() if name in self._found.arguments}

    def _name_parameters(self, properties: dict[str, Any]) -> None:
        """``params``, translated, under the constructor's name for it."""
        target = str(self._tag.params)
        given = properties.pop(_PARAMS, None)
        if given is None:
            given = self._tag.default_params
        if given is None and self._modifier.properties.get(_PARAMS) is not UNRESOLVED:
            argument = self._found.arguments.get(target)
            if not isinstance(properties.get("final_sparsity"), Mapping) and argument is not None:
                self._report.error(self._path, f"{self._tag.tag} needs params", at_key=True)
        if given is None:
            return
        names = self._names(given)
        if not names and not isinstance(properties.get("final_sparsity"), Mapping):
            names = [from_recipe_target(ALL_PRUNABLE)]
        properties[target] = names

    def _names(self, given: Any) -> list[str]:
        here = (*self._path, _PARAMS)
        if isinstance(given, str):
            if given.upper() not in (ALL, ALL_PRUNABLE):
                self._report.warn(here, f"params is a list or {ALL} or {ALL_PRUNABLE}: [{given}] is meant")
            return [from_recipe_target(given)]
        if not isinstance(given, list):
            self._report.error(here, f"params is a list of names, {ALL} or {ALL_PRUNABLE}; got {shown(given)}")
            return []
        found: list[str] = []
        for position, entry in enumerate(given):
            if isinstance(entry, list):
                found += self._nested(entry, (*here, position))
            elif isinstance(entry, str):
                found.append(from_recipe_target(entry))
            else:
                self._report.error((*here, position), f"expected a name or pattern, got {shown(entry)}")
        return found

    def _nested(self, entries: list[Any], path: Path) -> list[str]:
        found = []
        for position, entry in enumerate(entries):
            if isinstance(entry, str):
                found.append(from_recipe_target(entry))
            else:
                self._report.error((*path, position), f"expected a name or pattern, got {shown(entry)}")
        return found

    def _coerced(self, name: str, value: Any) -> Any:
        """Numbers that are written as text, and whole numbers that were calculated."""
        argument = self._found.arguments.get(name)
        kinds = set() if argument is None else _scalars(argument.annotation)
        number = number_of(value)
        if number is None or not kinds & {int, float} or (isinstance(value, str) and str in kinds):
            return value
        if float in kinds:
            return number if isinstance(value, str) else value
        return int(number) if number == int(number) else value


def _scalars(annotation: Any) -> set[Any]:
    """The scalar types an annotation allows."""
    if get_origin(annotation) in (Union, types.UnionType):
        return set().union(*(_scalars(member) for member in get_args(annotation)))
    return {annotation} if annotation in (int, float, str, bool) else set()


def _resolved(properties: Mapping[str, Any], timing: Timing, entry: TagEntry) -> dict[str, Any]:
    """The properties as a recipe without variables has them, with the times that hold."""
    found = dict(properties)
    found[START] = timing.start
    if entry.tag.ends not in ("ignored", "never"):
        found[END] = timing.end
    if not entry.tag.fixed_frequency:
        found[FREQUENCY] = timing.frequency
    return found
