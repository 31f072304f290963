"""The record of structural changes made to a model, and replaying it on a fresh one (layer 3).

A change of structure (channels removed, batch norms folded, modules replaced) is written down as JSON, never pickled:
a checkpoint holds the list, and loading rebuilds the same structure from the model's own source code.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import nn

from distiller_ng.errors import ArgumentError, CheckpointError, listed
from distiller_ng.registry import Registry

__all__ = ["TRANSFORMS", "CompressionRecord", "RecordEntry", "StructuralTransform"]


class StructuralTransform(ABC):
    """Replays one kind of structural change.

    Registering is one file in ``checkpoint/transforms``::

        @TRANSFORMS.register("remove_filters")
        class RemoveFilters(StructuralTransform):
            version = 1

            def apply(self, model, config, metadata):
                ...
                return model
    """

    #: The newest version of ``config`` this class reads.
    version: ClassVar[int] = 1
    #: Of changes that are seen on a model, those of a lower stage are made again first.
    stage: ClassVar[int] = 1

    @abstractmethod
    def apply(self, model: nn.Module, config: Mapping[str, Any], metadata: Mapping[str, Any]) -> nn.Module:
        """Make the change and return the model (the same one, or what replaces it).

        Raises :class:`CheckpointError` when the change does not fit the model, before changing anything.
        """

    @classmethod
    def found_in(cls, model: nn.Module) -> RecordEntry | None:
        """The entry of such a change that can be seen on the model itself, so that nobody has to write it down."""
        return None


TRANSFORMS: Registry[StructuralTransform] = Registry("structural transform", "distiller_ng.checkpoint.transforms")


@dataclass(frozen=True, slots=True)
class RecordEntry:
    """One change. ``config`` says what to do, ``metadata`` what is worth knowing about it; both hold JSON values only.

    Raises :class:`ArgumentError` for anything JSON cannot hold. Example:
    ``RecordEntry("remove_filters", {"conv1.weight": [0, 3]})``.
    """

    transform: str
    config: Mapping[str, Any] = field(default_factory=dict)
    version: int = 1
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for part in ("config", "metadata"):
            value = getattr(self, part)
            try:
                same = json.loads(json.dumps(value, allow_nan=False)) == value
            except (TypeError, ValueError) as error:
                raise ArgumentError(
                    f"{part} of transform {self.transform!r} holds something JSON cannot: {error}", argument=(part,)
                ) from error
            if not same:  # tuples and keys that are no strings come back as something else
                raise ArgumentError(
                    f"{part} of transform {self.transform!r} must hold lists instead of tuples, and string keys",
                    argument=(part,),
                )

    def as_dict(self) -> dict[str, Any]:
        """``{transform, version, config, metadata}``."""
        return {
            "transform": self.transform,
            "version": self.version,
            "config": dict(self.config),
            "metadata": dict(self.metadata),
        }


class CompressionRecord:
    """The structural changes of one model, in the order they were made.

    >>> record = CompressionRecord()
    >>> record.add("remove_filters", {"conv1.weight": [0, 3]}, metadata={"epoch": 12})
    >>> CompressionRecord.from_json(record.to_json()) == record
    True
    """

    def __init__(self, entries: Iterable[RecordEntry] = ()) -> None:
        self._entries: list[RecordEntry] = list(entries)

    def add(
        self,
        transform: str,
        config: Mapping[str, Any],
        *,
        version: int = 1,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        """Write down a change that was just made; raises :class:`ArgumentError` for values JSON cannot hold."""
        self._entries.append(RecordEntry(transform, dict(config), version, dict(metadata or {})))

    def completed(self, model: nn.Module) -> CompressionRecord:
        """This record and, after its entries, those of changes that are seen on ``model`` and not in it yet."""
        known = {entry.transform for entry in self._entries}
        transforms = sorted((t for t in TRANSFORMS if t.name not in known), key=lambda t: t.cls.stage)
        seen = [t.cls.found_in(model) for t in transforms]
        return CompressionRecord([*self._entries, *(entry for entry in seen if entry is not None)])

    def replay(self, model: nn.Module) -> nn.Module:
        """Make all changes on a fresh model, in order, and return it.

        Every transform is looked up before the first one runs. Raises :class:`CheckpointError` naming a transform this
        installation does not know or that is of a newer version, and what the transforms themselves raise.
        """
        steps = [(entry, self._transform_of(entry)) for entry in self._entries]
        for entry, transform in steps:
            model = transform.apply(model, entry.config, entry.metadata)
        return model

    @staticmethod
    def _transform_of(entry: RecordEntry) -> StructuralTransform:
        if entry.transform not in TRANSFORMS:
            known = listed(TRANSFORMS.names()) or "none"
            raise CheckpointError(
                f"the checkpoint's model was changed by {entry.transform!r}, which this installation cannot replay "
                f"(it knows: {known}). Load it with a newer distiller_ng, or install the plugin that made it"
            )
        transform = TRANSFORMS.get(entry.transform).cls()
        if entry.version > transform.version:
            raise CheckpointError(
                f"the checkpoint's transform {entry.transform!r} has version {entry.version}; this installation reads "
                f"up to {transform.version}. Load it with a newer distiller_ng"
            )
        return transform

    def to_json(self) -> str:
        """The list of changes as JSON text."""
        return json.dumps([entry.as_dict() for entry in self._entries])

    @classmethod
    def from_json(cls, text: str) -> CompressionRecord:
        """Read :meth:`to_json`; raises :class:`CheckpointError` for anything else."""
        try:
            return cls(
                RecordEntry(str(e["transform"]), dict(e["config"]), int(e["version"]), dict(e["metadata"]))
                for e in json.loads(text)
            )
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"the record of structural changes is damaged: {error}") from error

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[RecordEntry]:
        return iter(self._entries)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CompressionRecord) and self._entries == other._entries

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"CompressionRecord({[entry.transform for entry in self._entries]})"
