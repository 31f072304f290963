"""Which component each tag of a recipe is (layer 4)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from distiller_ng.config.classes import ComponentClass, RegistryTable
from distiller_ng.config.kinds import KINDS, Kind
from distiller_ng.errors import ArgumentError, did_you_mean
from distiller_ng.registry import RecipeTag, Registered

__all__ = ["TagEntry", "entries_of_class", "find_tag", "known_tags"]

_SUFFIX = "Modifier"


@dataclass(frozen=True, slots=True)
class TagEntry:
    """A tag, and the registered class that it stands for."""

    tag: RecipeTag
    kind: Kind
    registered: Registered[Any]

    @property
    def component(self) -> ComponentClass:
        """The class as schedules see it."""
        assert self.kind.classes is not None  # it has an entry
        return self.kind.classes.get(self.registered.name)

    @property
    def policy_args(self) -> Mapping[str, str]:
        """Properties that are the policy's: ``leave_enabled`` of pruners, if nothing else is said."""
        if self.tag.policy_args is not None:
            return self.tag.policy_args
        name = "leave_enabled"
        return {name: name} if name in self.kind.policy_args else {}


def known_tags() -> list[str]:
    """Every tag, sorted."""
    return sorted({entry.tag.tag for entry in _entries()})


def find_tag(name: str, properties: Mapping[str, Any]) -> tuple[TagEntry, str | None]:
    """The class behind a tag, and the right spelling if the tag was another one.

    Raises :class:`ArgumentError` with the nearest tags. Of classes that share a tag the first that takes the
    properties (``accepts_recipe``) is meant.
    """
    spelled = [e for e in _entries() if e.tag.tag == name] or [e for e in _entries() if name in e.tag.aliases]
    if not spelled and not name.endswith(_SUFFIX):
        spelled = [entry for entry in _entries() if entry.tag.tag in (name + _SUFFIX, f"{name}Pruning{_SUFFIX}")]
    if not spelled:
        raise ArgumentError(f"unknown modifier !{name}. {did_you_mean(name, known_tags())}")
    chosen = next((entry for entry in spelled if _accepts(entry, properties)), spelled[0])
    return chosen, None if chosen.tag.tag == name else chosen.tag.tag


def entries_of_class(section: str, class_name: str) -> list[TagEntry]:
    """The tags that a class of a section has."""
    same = [entry for entry in _every_entry() if entry.kind.section == section]
    classes = [entry.registered.cls for entry in same if entry.registered.name == class_name]
    return [entry for entry in same if entry.tag is not _NO_TAG and entry.registered.cls in classes]


def _accepts(entry: TagEntry, properties: Mapping[str, Any]) -> bool:
    accepts = getattr(entry.registered.cls, "accepts_recipe", None)
    return accepts is None or bool(accepts(properties))


def _entries() -> Iterator[TagEntry]:
    return (entry for entry in _every_entry() if entry.tag is not _NO_TAG)


_NO_TAG = RecipeTag("")


def _every_entry() -> Iterator[TagEntry]:
    for kind in KINDS.values():
        if isinstance(kind.classes, RegistryTable):
            for registered in kind.classes.registry:
                for tag in registered.recipe_tags or (_NO_TAG,):
                    yield TagEntry(tag, kind, registered)
