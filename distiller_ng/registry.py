"""Registries: the one place where a class gets the name users write in a schedule (layer 0).

A registry imports its folder on first use, so adding an algorithm is adding one file; installed packages add to it
through the entry-point group ``distiller_ng.plugins`` (each entry point names a module to import).
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Generic, TypeVar

from distiller_ng.errors import ArgumentError, did_you_mean

__all__ = ["PLUGIN_GROUP", "Registered", "Registry"]

PLUGIN_GROUP = "distiller_ng.plugins"

T = TypeVar("T")
C = TypeVar("C", bound=type)


@dataclass(frozen=True, slots=True)
class Registered(Generic[T]):
    """A registered class with the constructor arguments the library itself provides.

    ``injected`` names arguments that never appear in a schedule (``name``, ``model``, ``optimizer``): the loader passes
    them because they are declared here, not because a parameter happens to be called that.
    """

    name: str
    cls: type[T]
    injected: frozenset[str]


class Registry(Generic[T]):
    """Names of one kind of component (``kind`` is the singular noun used in messages)."""

    def __init__(self, kind: str, package: str) -> None:
        self.kind = kind
        self._package = package
        self._entries: dict[str, Registered[T]] = {}
        self._loaded = False

    def register(self, *names: str, injected: tuple[str, ...] = ()) -> Callable[[C], C]:
        """Class decorator: ``@PRUNERS.register("MagnitudeParameterPruner", injected=("name",))``.

        Several names make aliases. Raises :class:`ArgumentError` when another class already has a name.
        """
        if not names:
            raise ArgumentError(f"{self.kind}: register() needs at least one name")

        def decorate(cls: C) -> C:
            for name in names:
                known = self._entries.get(name)
                if known is not None and known.cls is not cls and known.cls.__qualname__ != cls.__qualname__:
                    raise ArgumentError(f"{self.kind} {name!r} is already registered by {known.cls.__module__}")
                self._entries[name] = Registered(name, cls, frozenset(injected))
            return cls

        return decorate

    def get(self, name: str) -> Registered[T]:
        """The entry called ``name``; raises :class:`ArgumentError` with the nearest names."""
        self._load()
        try:
            return self._entries[name]
        except KeyError:
            raise ArgumentError(f"unknown {self.kind} class {name!r}. {did_you_mean(name, self.names())}") from None

    def names(self) -> list[str]:
        """All names, sorted."""
        self._load()
        return sorted(self._entries)

    def __contains__(self, name: object) -> bool:
        self._load()
        return name in self._entries

    def __iter__(self) -> Iterator[Registered[T]]:
        return iter([self.get(name) for name in self.names()])

    def _load(self) -> None:
        if self._loaded:
            return
        self._loaded = True
        package = importlib.import_module(self._package)
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{self._package}.{module.name}")
        for point in entry_points(group=PLUGIN_GROUP):
            point.load()
