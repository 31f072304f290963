"""What commands print: results to standard output, everything else to standard error (layer 5)."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress
from typing import Any, TextIO

__all__ = [
    "ReaderGoneError",
    "add_json_argument",
    "print_json",
    "print_result",
    "print_text",
    "results_apart",
    "say",
    "writes_unicode",
]


class ReaderGoneError(Exception):
    """Who read standard output has enough of it, as ``| head`` has."""


#: Where results go while something else has the name ``sys.stdout``.
_results: list[TextIO | None] = []


@contextmanager
def results_apart() -> Iterator[None]:
    """In the block only :func:`print_text` writes to standard output; what others print goes to standard error.

    Others are a user's model and data, libraries in C, and worker processes, so the file descriptor changes, too.
    """
    stream: TextIO | None = sys.stdout  # None: closed
    with ExitStack() as stack:
        if stream is not None and stream is sys.__stdout__:
            stream = stack.enter_context(_moved_descriptor(sys.stdout))
        _results.append(stream)
        stack.callback(_results.pop)
        stack.enter_context(redirect_stdout(sys.stderr))
        yield


@contextmanager
def _moved_descriptor(stream: TextIO) -> Iterator[TextIO]:
    """A stream to where standard output went; its descriptor leads to standard error in the block."""
    try:
        number, target = stream.fileno(), sys.stderr.fileno()
        stream.flush()
        kept = os.dup(number)
    except (OSError, ValueError, AttributeError):  # no descriptors, as in a notebook, or closed
        yield stream
        return
    moved = os.fdopen(kept, "w", encoding=stream.encoding, errors=stream.errors)
    os.dup2(target, number)
    try:
        yield moved
    finally:
        with suppress(OSError):
            stream.flush()
        os.dup2(kept, number)
        with suppress(OSError):
            moved.close()


def print_result(result: object) -> None:
    """``str(result)`` and the end of the line to standard output."""
    print_text(f"{result}\n")


def print_text(text: str) -> None:
    """``text`` to standard output; characters that it does not take are written as escapes.

    Raises :class:`ReaderGoneError`, and ``OSError`` for a full disk.
    """
    stream = _stream()
    if stream is None:
        return
    encoding = stream.encoding or "utf-8"
    try:
        stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        stream.flush()
    except BrokenPipeError as error:
        with suppress(OSError, ValueError):  # so that the flush at the end of the program does not fail
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        raise ReaderGoneError from error


def say(text: str) -> None:
    """A line to standard error."""
    if sys.stderr is not None:
        sys.stderr.write(f"{text}\n")


def add_json_argument(parser: argparse.ArgumentParser) -> None:
    """Add ``--json``."""
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def writes_unicode() -> bool:
    """Whether standard output takes every character."""
    stream = _stream()
    return stream is None or (stream.encoding or "").lower().replace("-", "") == "utf8"


def print_json(data: Any) -> None:
    """``data`` to standard output; infinity and NaN, which JSON does not have, become null."""
    print_result(json.dumps(_plain(data), indent=2, default=str))


def _stream() -> TextIO | None:
    return _results[-1] if _results else sys.stdout


def _plain(data: Any) -> Any:
    if isinstance(data, float) and not math.isfinite(data):
        return None
    if isinstance(data, Mapping):
        return {str(key): _plain(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_plain(value) for value in data]
    return data
