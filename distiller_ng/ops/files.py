"""Writing files so that a reader never sees half of one (layer 1)."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch

__all__ = ["replacing", "write_tensors_atomically", "write_text_atomically"]


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """A new binary file beside ``path`` that is moved there in one step when the block ends without an error.

    Missing folders are made. Raises ``OSError`` when the file cannot be written; an older file is then still whole.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def write_text_atomically(path: str | os.PathLike[str], text: str) -> Path:
    """Write ``text`` (UTF-8, line ends as given) in one step, as :func:`replacing` does; the path."""
    with replacing(path) as file:
        file.write(text.encode("utf-8"))
    return Path(path)


def write_tensors_atomically(path: str | os.PathLike[str], content: Any) -> Path:
    """Write tensors and plain data in one step, for ``torch.load(path, weights_only=True)``; the path."""
    with replacing(path) as file:
        torch.save(content, file)
    return Path(path)
