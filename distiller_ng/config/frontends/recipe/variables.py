"""Variables of recipes: scopes, ``eval(...)``, aliases and values given from outside (layer 4)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from distiller_ng.config.frontends.recipe.expressions import evaluate, expression_in
from distiller_ng.config.frontends.recipe.nodes import Reference, Tagged
from distiller_ng.config.marks import Path, as_part
from distiller_ng.config.problems import Report
from distiller_ng.errors import ArgumentError, did_you_mean

__all__ = ["UNRESOLVED", "RecipeArgs", "Scope", "check_overrides", "parse_recipe_args"]

#: Stands for a value that could not be resolved, which was reported.
UNRESOLVED = object()
#: Values for a recipe's variables: a mapping, JSON text, or ``name=value,other=value``.
RecipeArgs: TypeAlias = Mapping[str, Any] | str | None

_FORBIDDEN = frozenset("{}!=")


def parse_recipe_args(given: RecipeArgs) -> dict[str, Any]:
    """Values by variable name; raises :class:`ArgumentError` for what cannot be read.

    >>> parse_recipe_args("num_epochs=7, init_lr:1e-3,lr_func=linear")
    {'num_epochs': 7, 'init_lr': 0.001, 'lr_func': 'linear'}
    """
    if given is None:
        return {}
    if isinstance(given, str):
        given = _from_text(given)
    if not isinstance(given, Mapping):
        message = "recipe_args is a mapping, JSON text or 'name=value,other=value'"
        raise ArgumentError(f"{message}, got {given!r}", argument=("recipe_args",))
    for name in given:
        if not isinstance(name, str) or not name.strip() or _FORBIDDEN & set(name):
            raise ArgumentError(f"recipe_args: {name!r} is no name of a variable", argument=("recipe_args",))
    return {name.strip(): value for name, value in given.items()}


def _from_text(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        pass
    found: dict[str, Any] = {}
    for entry in filter(None, (part.strip() for part in text.split(","))):
        name, separator, value = entry.replace(":", "=", 1).partition("=") if "=" not in entry else entry.partition("=")
        if not separator:
            message = f"recipe_args: expected name=value, got {entry!r}"
            raise ArgumentError(message, argument=("recipe_args",))
        found[name.strip()] = _scalar(value.strip())
    return found


def _scalar(text: str) -> Any:
    """A number, true, false, null, or text."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return {"true": True, "false": False, "null": None, "none": None}.get(text.lower(), text)


@dataclass(slots=True)
class Scope:
    """Variables of the recipe, or of one stage of it (``parent`` is the recipe's)."""

    values: Mapping[str, Any]
    path: Path
    report: Report
    parent: Scope | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    _resolved: dict[str, Any] = field(default_factory=dict)
    _open: list[str] = field(default_factory=list)

    def lookup(self, name: str) -> Any:
        """A variable's value; raises :class:`ArgumentError` if there is none, or it is defined by itself."""
        if name in self._resolved:
            return self._resolved[name]
        if name not in self.values:
            if self.parent is None:
                raise ArgumentError(f"there is no variable {name!r}. {did_you_mean(name, self.names())}")
            if name in self.parent.names():
                return self.parent.lookup(name)
            raise ArgumentError(f"there is no variable {name!r}. {did_you_mean(name, self.names())}")
        if name in self._open:
            chain = " -> ".join([*self._open[self._open.index(name) :], name])
            raise ArgumentError(f"the variable {name!r} is defined by itself: {chain}")
        self._open.append(name)
        try:
            raw = self.overrides.get(name, self.values[name])
            self._resolved[name] = self.resolve(raw)
        finally:
            self._open.pop()
        return self._resolved[name]

    def names(self) -> list[str]:
        """Every variable that can be used here."""
        return [*dict.fromkeys([*self.values, *([] if self.parent is None else self.parent.names())])]

    def resolve(self, value: Any) -> Any:
        """``value`` with expressions and aliases replaced, at any depth; raises :class:`ArgumentError`."""
        if isinstance(value, Reference):
            return self._follow(value)
        expression = expression_in(value)
        if expression is not None:
            return evaluate(expression, self.lookup)
        if isinstance(value, Mapping):
            return {key: self.resolve(entry) for key, entry in value.items()}
        if isinstance(value, list):
            return [self.resolve(entry) for entry in value]
        return value

    def settle(self, value: Any, path: Path) -> Any:
        """Like :meth:`resolve`; what cannot be resolved is reported where it stands, and None."""
        if isinstance(value, Tagged):
            self.report.error(path, f"the modifier !{value.tag} stands where a value belongs")
            return None
        if isinstance(value, Mapping):
            return {key: self.settle(entry, (*path, as_part(key))) for key, entry in value.items()}
        if isinstance(value, list):
            return [self.settle(entry, (*path, at)) for at, entry in enumerate(value)]
        try:
            return self.resolve(value)
        except ArgumentError as error:
            self.report.error(path, str(error))
        except RecursionError:
            self.report.error(path, "the variables behind this are nested too deeply")
        return None

    def check(self) -> None:
        """Report every variable that cannot be resolved."""
        for name, value in self.values.items():
            here = (*self.path, name)
            self.settle(value if isinstance(value, Mapping | list) else Reference(here), here)

    def _follow(self, reference: Reference) -> Any:
        *outside, name = reference.variable
        scope: Scope = self
        while scope.parent is not None and tuple(outside) != scope.path:
            scope = scope.parent
        if tuple(outside) == scope.path and name in scope.values:
            return scope.lookup(str(name))
        value: Any = scope.values
        for part in reference.variable:  # inside another stage, or a variable that is a mapping
            value = value.get(part) if isinstance(value, Mapping) else None
        return scope.resolve(value)


def check_overrides(overrides: Mapping[str, Any], scopes: Iterable[Scope]) -> None:
    """Raises :class:`ArgumentError` for a value of a variable that the recipe does not have."""
    known = sorted({name for scope in scopes for name in scope.values})
    for name in overrides:
        if name not in known:
            hint = did_you_mean(name, known) if known else "The recipe has no variables"
            raise ArgumentError(
                f"recipe_args: the recipe has no variable {name!r} to give a value to. {hint}",
                argument=("recipe_args", name),
            )
