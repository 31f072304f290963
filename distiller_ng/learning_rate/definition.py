"""From a class name and arguments, as a schedule gives them, to a checked definition that can be built (layer 2)."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from distiller_ng.errors import ArgumentError, ScheduleWarning, did_you_mean, listed
from distiller_ng.learning_rate._arguments import Argument, arguments_of, fit
from distiller_ng.learning_rate.base import INJECTED, LR_SCHEDULERS
from distiller_ng.learning_rate.torch_schedulers import SHADOWED

__all__ = ["LRDefinition", "allowed_arguments", "resolve", "variants"]

Path = tuple[str | int, ...]

# Arguments of older torch versions that schedules still carry; they changed messages, never learning rates.
_DROPPED = frozenset({"verbose"})
_FUNCTIONS = frozenset({"lr_lambda", "scale_fn"})


@dataclass(frozen=True, slots=True)
class LRDefinition:
    """A scheduler class with checked arguments; ``schedulers`` are the members of SequentialLR and ChainedScheduler."""

    cls: type[LRScheduler]
    kwargs: Mapping[str, Any]
    schedulers: tuple[LRDefinition, ...] = ()

    def build(self, optimizer: Optimizer) -> LRScheduler:
        """Construct the scheduler, members first, on ``optimizer`` (its learning rates move, as torch does it)."""
        given = dict(self.kwargs)
        if self.schedulers:
            given["schedulers"] = [member.build(optimizer) for member in self.schedulers]
        return self.cls(optimizer=optimizer, **given)


def variants(name: str) -> tuple[type[LRScheduler], ...]:
    """The classes that ``name`` may mean in a schedule: one, or for PolynomialLR Distiller's and torch's.

    Raises :class:`ArgumentError` with the nearest names for an unknown one.
    """
    cls = LR_SCHEDULERS.get(name).cls
    return (cls, SHADOWED[name]) if name in SHADOWED else (cls,)


def allowed_arguments(name: str) -> dict[str, Argument]:
    """What a schedule may give to the class called ``name``, with types and defaults; variants are merged.

    >>> allowed_arguments("ExponentialLR")["gamma"].annotation
    <class 'float'>
    """
    merged: dict[str, Argument] = {}
    for cls in reversed(variants(name)):
        merged.update(arguments_of(cls))
    return merged


def resolve(name: str, kwargs: Mapping[str, Any], *, path: Path = ()) -> LRDefinition:
    """Check a class name and its arguments.

    ``path`` leads the path that errors carry. Arguments of older torch versions (``verbose``) are dropped with a
    :class:`ScheduleWarning`. Raises :class:`ArgumentError` for an unknown class or argument, a missing argument, and
    a value of the wrong type.

    >>> resolve("StepLR", {"step_size": 30, "gamma": 0.1}).cls.__name__
    'StepLR'
    """
    try:
        classes = variants(name)
    except ArgumentError as error:
        raise ArgumentError(str(error), argument=(*path, "class")) from None
    given = _without_dropped(name, kwargs)
    cls = next((c for c in classes if _names_fit(c, given)), classes[0])
    _check_names(name, cls, given, path)
    allowed = arguments_of(cls)
    members: tuple[LRDefinition, ...] = ()
    checked: dict[str, Any] = {}
    for key, value in given.items():
        _refuse_text_for_function(name, key, value, path)
        checked[key] = fit(allowed[key], value, name, (*path, key))
        if key == "schedulers":
            members = _members(name, checked.pop(key), (*path, key))
    return LRDefinition(cls, checked, members)


def _members(name: str, definitions: list[Mapping[str, Any]], path: Path) -> tuple[LRDefinition, ...]:
    members = []
    for position, definition in enumerate(definitions):
        where = (*path, position)
        if not isinstance(definition.get("class"), str):
            raise ArgumentError(f"{name}: a member needs a class, got {dict(definition)!r}", argument=where)
        given = {key: value for key, value in definition.items() if key != "class"}
        member = resolve(definition["class"], given, path=where)
        if issubclass(member.cls, ReduceLROnPlateau):
            raise ArgumentError(
                f"{name} cannot contain ReduceLROnPlateau, which needs metrics: give it a policy of its own",
                argument=(*where, "class"),
            )
        members.append(member)
    if not members:
        raise ArgumentError(f"{name} needs at least one member in schedulers", argument=path)
    return tuple(members)


def _without_dropped(name: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    dropped = sorted(_DROPPED & set(kwargs))
    if dropped:
        warnings.warn(
            f"{name}: {listed(dropped)} no longer exists in torch and is ignored: remove it",
            ScheduleWarning,
            stacklevel=3,
        )
    return {key: value for key, value in kwargs.items() if key not in _DROPPED}


def _names_fit(cls: type[LRScheduler], given: Mapping[str, Any]) -> bool:
    allowed = arguments_of(cls)
    return set(given) <= set(allowed) and all(key in given for key, a in allowed.items() if a.is_required)


def _check_names(name: str, cls: type[LRScheduler], given: Mapping[str, Any], path: Path) -> None:
    allowed = allowed_arguments(name)
    for key in given:
        if key in INJECTED:
            raise ArgumentError(f"{name}: {key} is given by the library: remove it", argument=(*path, key))
        if key not in allowed:
            raise ArgumentError(
                f"{name}: unknown argument {key!r}. {did_you_mean(key, allowed)}", argument=(*path, key)
            )
    if _names_fit(cls, given):
        return
    if name in SHADOWED and "total_iters" in given:
        raise ArgumentError(
            f"{name}: give T_max and power (Distiller's) or total_iters and power (torch's), not both T_max and "
            "total_iters",
            argument=(*path, "total_iters"),
        )
    missing = [key for key, a in arguments_of(cls).items() if a.is_required and key not in given]
    functions = sorted(_FUNCTIONS & set(missing))
    if functions:
        _refuse_text_for_function(name, functions[0], None, path)
    raise ArgumentError(f"{name}: missing {listed(missing)}", argument=path)


def _refuse_text_for_function(name: str, key: str, value: Any, path: Path) -> None:
    functions = value if isinstance(value, list | tuple) else [value]
    if key not in _FUNCTIONS or all(callable(f) for f in functions) or (key == "scale_fn" and value is None):
        return
    raise ArgumentError(
        f"{name}: {key} is a Python function and cannot be written in a schedule file. Build the scheduler in Python, "
        f"LRPolicy(torch.optim.lr_scheduler.{name}(optimizer, ...)), or use another class",
        argument=(*path, key) if value is not None else path,
    )
