"""What thinning would remove, as plain data: printed, saved, applied later (layer 2)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from distiller_ng.errors import CheckpointError, GraphError
from distiller_ng.graph.dependency import DependencyGraph
from distiller_ng.graph.resizing import Resized
from distiller_ng.ops.files import write_text_atomically

__all__ = ["Cut", "ThinningPlan"]

_VERSION = 1


@dataclass(frozen=True, slots=True)
class Cut:
    """Entries ``removed`` (ascending) of dimension ``dim`` of a parameter or buffer that is ``size`` long there."""

    tensor: str
    dim: int
    removed: tuple[int, ...]
    size: int

    @property
    def kept(self) -> list[int]:
        """The entries that stay."""
        gone = set(self.removed)
        return [index for index in range(self.size) if index not in gone]


@dataclass(frozen=True, slots=True)
class ThinningPlan:
    """Everything one thinning step removes; nothing is changed until it is applied.

    ``cuts``: what goes from each tensor. ``groups``: new number of groups of grouped layers, by weight. ``resized``:
    where integers in the user's code may have to follow. ``notes``: what the user should know (coupled layers that
    were asked for different channels, channels that had to stay). ``exact``: whether the result is promised to equal
    the model with the same channels zeroed. ``asked_by``: tensors whose zeros asked for the removal. ``constant``: by
    weight, the removed inputs whose filters are zero, so that what they read is the same on every input.

    ``print(plan)`` lists it; :meth:`save` and :meth:`load` keep it as JSON; apply it with
    ``distiller_ng.thinning.apply.apply_plan`` or ``remove_filters``.
    """

    cuts: tuple[Cut, ...] = ()
    groups: Mapping[str, int] = field(default_factory=dict)
    resized: tuple[Resized, ...] = ()
    notes: tuple[str, ...] = ()
    exact: bool = True
    asked_by: tuple[str, ...] = ()
    constant: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @classmethod
    def for_channels(
        cls,
        graph: DependencyGraph,
        channels: Iterable[int],
        *,
        notes: Iterable[str] = (),
        asked_by: Iterable[str] = (),
        silent: Iterable[int] = (),
    ) -> ThinningPlan:
        """The plan that removes these channels (numbers of ``graph``) and everything coupled to them.

        ``silent``: those of them whose filters are all zero.

        Raises :class:`GraphError` where a channel can never be removed or a layer would be left empty.
        """
        wanted = sorted(set(channels))
        asked = tuple(asked_by)
        if not wanted:
            return cls(notes=tuple(notes))
        graph.check(wanted, asked[0] if len(asked) == 1 else "")
        cuts = []
        constant: dict[str, tuple[int, ...]] = {}
        flags, known = graph.flags(wanted), graph.flags(set(silent) & set(wanted))
        for (tensor, dim), numbers in graph.axes.items():
            gone = np.flatnonzero(flags[numbers])
            if gone.size:
                cuts.append(Cut(tensor, dim, tuple(gone.tolist()), numbers.size))
            quiet = np.flatnonzero(known[numbers])
            if dim == 1 and quiet.size and not graph.feeds(tensor, dim):
                constant[tensor] = tuple(quiet.tolist())
        groups = _new_groups(graph, wanted)
        return cls(tuple(cuts), groups, tuple(graph.resized(wanted)), tuple(notes), True, asked, constant)

    def __bool__(self) -> bool:
        return bool(self.cuts)

    def __str__(self) -> str:
        if not self.cuts:
            return "\n".join(["nothing to remove", *self.notes])
        width = max(len(cut.tensor) for cut in self.cuts)
        lines = [
            f"{cut.tensor:<{width}}  dim {cut.dim}: {cut.size} -> {cut.size - len(cut.removed)}" for cut in self.cuts
        ]
        return "\n".join([*lines, *self.notes])

    # -- files ------------------------------------------------------------------------------------------------------

    def as_dict(self) -> dict[str, Any]:
        """Plain values that JSON can hold."""
        return {
            "version": _VERSION,
            "cuts": [[c.tensor, c.dim, list(c.removed), c.size] for c in self.cuts],
            "groups": dict(self.groups),
            "resized": [[list(r.modules), [list(pair) for pair in r.sizes], r.where] for r in self.resized],
            "notes": list(self.notes),
            "exact": self.exact,
            "asked_by": list(self.asked_by),
            "constant": {name: list(entries) for name, entries in self.constant.items()},
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ThinningPlan:
        """Read :meth:`as_dict`; raises :class:`CheckpointError` for anything else."""
        try:
            if data["version"] > _VERSION:
                raise CheckpointError(f"the thinning plan has version {data['version']}, this reads up to {_VERSION}")
            return cls(
                tuple(Cut(str(t), int(d), tuple(map(int, r)), int(n)) for t, d, r, n in data["cuts"]),
                {str(name): int(count) for name, count in data["groups"].items()},
                tuple(
                    Resized(tuple(map(str, m)), tuple((int(a), int(b)) for a, b in s), str(w))
                    for m, s, w in data["resized"]
                ),
                tuple(map(str, data["notes"])),
                bool(data["exact"]),
                tuple(map(str, data["asked_by"])),
                {str(name): tuple(map(int, entries)) for name, entries in data.get("constant", {}).items()},
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(f"this is no thinning plan: {error!r}") from error

    def save(self, path: str | Path) -> Path:
        """Write the plan as JSON, whole or not at all."""
        write_text_atomically(Path(path), json.dumps(self.as_dict(), indent=1))
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> ThinningPlan:
        """Read :meth:`save`; raises :class:`CheckpointError` for a damaged file, ``FileNotFoundError`` for none."""
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{path}: this is no thinning plan: {error}") from error
        if not isinstance(data, Mapping):
            raise CheckpointError(f"{path}: this is no thinning plan: it holds a {type(data).__name__}")
        return cls.from_dict(data)


def _new_groups(graph: DependencyGraph, wanted: list[int]) -> dict[str, int]:
    """How many groups grouped layers keep, where whole groups go."""
    found: dict[str, int] = {}
    for tensor, numbers in graph.partitions():
        gone = np.isin(numbers, wanted).all(axis=1)
        if gone.any():
            if gone.all():
                raise GraphError(f"all groups of {tensor!r} would go; keep at least one")
            found[tensor] = int((~gone).sum())
    return found
