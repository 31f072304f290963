"""Where each value of a schedule stands: paths into the document and their line and column (layer 4)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, TypeAlias

__all__ = ["NOWHERE", "Mark", "Marks", "Path", "as_part", "format_path"]

#: Keys and list positions from the top of the document, e.g. ``("pruners", "fine", "weights", 2)``.
Path: TypeAlias = tuple[str | int, ...]

_PLAIN_KEY = re.compile(r"[A-Za-z_][\w-]*")
_NO_MARKS: Mapping[Path, Mark] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Mark:
    """A place in a file, counted from 1; line 0 stands for data that came from no file."""

    line: int
    column: int


NOWHERE = Mark(0, 0)


@dataclass(frozen=True, slots=True)
class Marks:
    """The marks of one document, as two side tables keyed by path: where keys stand and where values stand.

    A value written as a block (indented lines below its key) has its key's mark: that is the line people look for.

    >>> Marks(values={("a", "b"): Mark(2, 6)}).of_value(("a", "b", "c", 0))
    Mark(line=2, column=6)
    """

    keys: Mapping[Path, Mark] = field(default_factory=lambda: _NO_MARKS)
    values: Mapping[Path, Mark] = field(default_factory=lambda: _NO_MARKS)
    start: Mark = NOWHERE

    def written(self, path: Path) -> Path:
        """The path as the document has it, for a path by which components know a value."""
        return path

    def of_value(self, path: Path) -> Mark:
        """Where the value at ``path`` stands, or else the nearest thing that contains it."""
        for end in range(len(path), 0, -1):
            found = self.values.get(path[:end]) or self.keys.get(path[:end])
            if found is not None:
                return found
        return self.start

    def of_key(self, path: Path) -> Mark:
        """Where the key that ends ``path`` stands, or else its value, or else what contains it."""
        return self.keys.get(path) or self.of_value(path)


def as_part(key: Any) -> str | int:
    """A mapping key as part of a path: text and whole numbers as they are, anything else as text."""
    return key if isinstance(key, str) or (isinstance(key, int) and not isinstance(key, bool)) else str(key)


def format_path(path: Iterable[str | int]) -> str:
    """A path as people write it; keys that are no plain words are quoted.

    >>> format_path(("pruners", "fine", "levels", "conv1.weight"))
    "pruners.fine.levels['conv1.weight']"
    """
    text = ""
    for part in path:
        if isinstance(part, str) and _PLAIN_KEY.fullmatch(part):
            text += f".{part}" if text else part
        else:
            text += f"[{part!r}]"
    return text
