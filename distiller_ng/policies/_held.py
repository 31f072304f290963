"""Values that policies set for a while and put back, several at a time (layer 3)."""

from __future__ import annotations

from typing import Generic, TypeVar
from weakref import finalize

from distiller_ng.names import ParameterIndex

__all__ = ["HeldValues"]

V = TypeVar("V")


class HeldValues(Generic[V]):
    """What every thing was before anybody set it, and who sets it to what: the last one counts.

    Windows that overlap end in any order: 0.5 set to 0.3 by A, then to 0.1 by B, is 0.1 when A ends, and 0.5 when B
    does. One table for each scheduler, known by its parameters. Owners are numbers (``id(policy)``): a policy that
    is held here would keep its scheduler alive.
    """

    def __init__(self) -> None:
        self._tables: dict[int, dict[str, tuple[V, dict[int, V]]]] = {}

    def hold(self, key: ParameterIndex, owner: int, name: str, value: V, before: V) -> V:
        """``owner`` sets ``name``; what it was before anybody did, ``before`` if nobody has."""
        if id(key) not in self._tables:
            self._tables[id(key)] = {}
            finalize(key, self._tables.pop, id(key), None)
        first, owners = self._tables[id(key)].setdefault(name, (before, {}))
        owners[owner] = value
        return first

    def release(self, key: ParameterIndex, owner: int, name: str, before: V) -> V:
        """``owner`` is done; what ``name`` is now: what the last of the others set, or ``before``."""
        table = self._tables.get(id(key), {})
        owners = table.get(name, (before, {}))[1]
        owners.pop(owner, None)
        if owners:
            return list(owners.values())[-1]
        table.pop(name, None)
        return before

    def forget(self, key: ParameterIndex, owner: int) -> None:
        """``owner`` sets nothing now: its state is read anew."""
        table = self._tables.get(id(key), {})
        for name in [name for name, (_, owners) in table.items() if owners.pop(owner, None) is not None and not owners]:
            del table[name]
