"""What arguments a scheduler class takes, of which types, and whether given values fit (layer 2)."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Union

from torch.optim.lr_scheduler import LRScheduler

from distiller_ng.errors import ArgumentError
from distiller_ng.learning_rate.base import INJECTED

__all__ = ["Argument", "arguments_of", "fit"]

# torch annotates these more narrowly, or more loosely, than it reads them.
_ANNOTATIONS: Mapping[tuple[str, str], Any] = {
    ("CyclicLR", "base_momentum"): float | list[float],
    ("CyclicLR", "max_momentum"): float | list[float],
    ("ChainedScheduler", "schedulers"): list[Mapping[str, Any]],
    ("SequentialLR", "schedulers"): list[Mapping[str, Any]],
}
_COUNTS = frozenset(
    {"step_size", "T_max", "T_0", "T_mult", "total_iters", "total_steps", "epochs", "steps_per_epoch"}
    | {"step_size_up", "step_size_down", "patience", "cooldown"}
)
_NAMES: Mapping[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    type(None): "null",
}


@dataclass(frozen=True, slots=True)
class Argument:
    """One argument that a schedule may give: ``Argument("gamma", float, 0.1, False)`` of StepLR."""

    name: str
    annotation: Any
    default: Any
    is_required: bool


def arguments_of(cls: type[LRScheduler]) -> dict[str, Argument]:
    """``{name: Argument}`` of a scheduler class, without what the library gives (optimizer, last_epoch)."""
    hints = _hints(cls)
    found = {}
    for name, parameter in inspect.signature(cls).parameters.items():
        if name in INJECTED or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        required = parameter.default is parameter.empty
        annotation = _ANNOTATIONS.get((cls.__name__, name), hints.get(name, Any))
        found[name] = Argument(name, _as_lists(annotation), None if required else parameter.default, required)
    return found


def fit(argument: Argument, value: Any, owner: str, path: tuple[str | int, ...]) -> Any:
    """``value`` as the argument wants it (whole numbers become floats); raises :class:`ArgumentError` with ``path``.

    ``owner`` is the class's name, for the message.
    """
    if not _accepts(value, argument.annotation):
        hint = ""
        if isinstance(value, str) and _accepts(0.5, argument.annotation) and _is_number(value):
            hint = f" This is text: write {float(value)!r} or {float(value):.1e}"
        raise ArgumentError(
            f"{owner}: {argument.name} must be {_words(argument.annotation)}, got {value!r}.{hint}", argument=path
        )
    if argument.name in _COUNTS and value is not None and value < 0:
        raise ArgumentError(f"{owner}: {argument.name} must not be negative, got {value!r}", argument=path)
    return _as_floats(value, argument.annotation)


def _hints(cls: type[LRScheduler]) -> dict[str, Any]:
    module = inspect.getmodule(cls.__init__)
    names = {"Callable": Callable, "Iterable": Iterable, "Sequence": Sequence}  # torch imports them for checkers only
    try:
        return typing.get_type_hints(cls.__init__, {**names, **(vars(module) if module else {})})
    except (NameError, TypeError):  # a user's class with annotations that cannot be evaluated: anything goes
        return {}


def _as_lists(annotation: Any) -> Any:
    """``Iterable[int]`` and ``Sequence[int]`` as ``list[int]``: what a schedule file can hold."""
    if typing.get_origin(annotation) in (Iterable, Sequence):
        return list[typing.get_args(annotation)]  # type: ignore[misc]
    return annotation


def _accepts(value: Any, annotation: Any) -> bool:
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (Union, types.UnionType):
        return any(_accepts(value, option) for option in inner)
    if origin is Literal:
        return value in inner
    if origin is list:
        return isinstance(value, list | tuple) and all(_accepts(v, inner[0]) for v in value)
    if origin is Callable or annotation is Callable:
        return callable(value)
    if origin is Mapping:
        return isinstance(value, Mapping)
    if annotation in (None, type(None)):
        return value is None
    if annotation is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if annotation in (bool, str):
        return isinstance(value, annotation)
    return True


def _as_floats(value: Any, annotation: Any) -> Any:
    """Whole numbers where floats are meant become floats: torch checks ``pct_start`` with isinstance."""
    options = (
        typing.get_args(annotation) if typing.get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    )
    if isinstance(value, int) and not isinstance(value, bool) and float in options and int not in options:
        return float(value)
    return list(value) if isinstance(value, tuple) else value


def _words(annotation: Any) -> str:
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (Union, types.UnionType):
        return " or ".join(_words(option) for option in inner)
    if origin is Literal:
        return "one of " + ", ".join(repr(option) for option in inner)
    if origin is list:
        return {int: "a list of whole numbers", float: "a list of numbers"}.get(
            inner[0], f"a list of {_words(inner[0])}"
        )
    if origin is Callable:
        return "a Python function"
    if origin is Mapping:
        return "scheduler definitions ({class: ..., ...})"
    return _NAMES.get(annotation, str(annotation))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
