"""From the text after ``class:`` to something that can be built, with the arguments it takes (layer 4)."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Protocol

from torch.optim.lr_scheduler import LRScheduler

from distiller_ng.config.signatures import NO_DEFAULT, Argument, arguments_of
from distiller_ng.errors import ArgumentError
from distiller_ng.learning_rate.base import INJECTED, LR_SCHEDULERS, Unit
from distiller_ng.learning_rate.definition import allowed_arguments, variants
from distiller_ng.learning_rate.scheduled import ScheduledLR
from distiller_ng.registry import Registered, Registry

__all__ = ["INJECTABLE", "ClassTable", "ComponentClass", "LRClasses", "RegistryTable"]

#: What the library can provide to a constructor.
INJECTABLE = frozenset({"name", "model", "optimizer", "teachers", "example_inputs"})

_NOTHING: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class ComponentClass:
    """A class a schedule names.

    ``arguments``: what a schedule may give. ``injected``: what the library passes itself; ``reserved``: what it passes
    by other ways. ``ignored``: old arguments that are dropped with a warning, and why. ``source``: what documents it.
    """

    name: str
    build: Callable[..., Any]
    arguments: Mapping[str, Argument]
    injected: frozenset[str] = frozenset()
    reserved: frozenset[str] = frozenset()
    ignored: Mapping[str, str] = field(default_factory=lambda: _NOTHING)
    source: type | None = None

    @property
    def is_built_in(self) -> bool:
        """Whether the class comes from this library or from torch."""
        return self.source is not None and f"{self.source.__module__}.".startswith(("distiller_ng.", "torch."))


class ClassTable(Protocol):
    """Where a kind's classes are looked up."""

    def names(self) -> list[str]:
        """Every name, sorted."""
        ...

    def get(self, class_name: str) -> ComponentClass:
        """The class of that name; raises :class:`ArgumentError` with the nearest names."""
        ...

    def adopt(self, path: str) -> ComponentClass:
        """A class of the user's own by its dotted path, imported now; raises :class:`ArgumentError`."""
        ...


@dataclass(frozen=True, slots=True)
class RegistryTable:
    """The classes of a registry, built by calling them."""

    registry: Registry[Any]

    def names(self) -> list[str]:
        """Every registered name."""
        return self.registry.names()

    def get(self, class_name: str) -> ComponentClass:
        """The class registered under that name."""
        return _of_entry(self.registry.get(class_name))

    def adopt(self, path: str) -> ComponentClass:
        """What the class registered for itself is honoured; else it gets the arguments of :data:`INJECTABLE` it has."""
        found = _import(path)
        for entry in self.registry:
            if entry.cls is found:
                return _of_entry(entry)
        return _of_entry(Registered(path, found, INJECTABLE & frozenset(arguments_of(found))))


def _of_entry(entry: Registered[Any]) -> ComponentClass:
    arguments = {name: a for name, a in arguments_of(entry.cls).items() if name not in entry.injected}
    return ComponentClass(entry.name, entry.cls, MappingProxyType(arguments), injected=entry.injected, source=entry.cls)


@dataclass(frozen=True, slots=True)
class LRClasses:
    """The classes of ``lr_schedulers``: each is built as a :class:`ScheduledLR` that carries its name and arguments."""

    def names(self) -> list[str]:
        """Every class of ``torch.optim.lr_scheduler``, and our own."""
        return LR_SCHEDULERS.names()

    def get(self, class_name: str) -> ComponentClass:
        """The class of that name. PolynomialLR stands for two classes, which its arguments tell apart when built."""
        classes = variants(class_name)
        arguments = {}
        for a in allowed_arguments(class_name).values():
            is_required = a.is_required and len(classes) == 1
            arguments[a.name] = Argument(a.name, a.annotation, NO_DEFAULT if is_required else a.default)
        arguments["unit"] = Argument("unit", Unit, "epoch")

        def build(name: str, unit: Unit = "epoch", **kwargs: Any) -> ScheduledLR:
            return ScheduledLR(name, class_name, kwargs, unit=unit)

        return ComponentClass(
            class_name,
            build,
            MappingProxyType(arguments),
            injected=frozenset({"name"}),
            reserved=frozenset(INJECTED),
            ignored={"verbose": "torch no longer has it"},
            source=classes[0],
        )

    def adopt(self, path: str) -> ComponentClass:
        """A scheduler class of the user's; it is registered under its path."""
        found = _import(path)
        if not issubclass(found, LRScheduler):
            raise ArgumentError(f"{path!r} is no subclass of torch.optim.lr_scheduler.LRScheduler")
        if path not in LR_SCHEDULERS:
            LR_SCHEDULERS.register(path, injected=INJECTED)(found)
        return self.get(path)


def _import(path: str) -> type[Any]:
    module_name, _, class_name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError, SyntaxError, ValueError, TypeError, NameError) as error:
        raise ArgumentError(f"cannot import {path!r}: {type(error).__name__}: {error}") from None
    if not isinstance(found, type):
        raise ArgumentError(f"{path!r} is no class")
    return found
