"""Where a command writes: looked at before minutes are spent on what is written (layer 5)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from distiller_ng.errors import ArgumentError

__all__ = ["PICTURES", "check_file_place", "check_folder_place", "check_new_file"]

#: How the names of pictures end.
PICTURES = (".png", ".svg", ".pdf")


def check_file_place(text: str | None, flag: str, endings: Sequence[str] = ()) -> None:
    """Raise :class:`ArgumentError` where no file ``text`` can be written; None is well.

    ``endings``: the name must have one of them. Missing folders are made later.
    """
    if text is None:
        return
    path = Path(text).expanduser()
    if path.is_dir() or not path.name:
        raise ArgumentError(f"{flag} {text}: this is a folder; name a file in it")
    if endings and path.suffix.lower() not in endings:
        *most, last = endings
        raise ArgumentError(f"{flag} {text}: the name must end in {', '.join(most)} or {last}")
    _check_parents(path.parent, f"{flag} {text}")


def check_new_file(text: str | None, flag: str, *, force: bool) -> None:
    """The same for a file that ``--force`` alone overwrites."""
    check_file_place(text, flag)
    if text is not None and Path(text).exists() and not force:
        raise ArgumentError(f"{text} is there already: name another file with {flag}, or add --force")


def check_folder_place(text: str | None, flag: str) -> None:
    """Raise :class:`ArgumentError` where no file can be written in a folder ``text``; None is well."""
    if text:
        _check_parents(Path(text).expanduser(), f"{flag} {text}")


def _check_parents(folder: Path, what: str) -> None:
    there = next(parent for parent in (folder, *folder.parents) if parent.exists() or parent == parent.parent)
    if not there.is_dir():
        raise ArgumentError(f"{what}: {str(there)!r} is a file, not a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ArgumentError(f"{what}: nothing can be written in {str(there)!r}: permission denied")
