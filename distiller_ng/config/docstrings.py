"""Descriptions for editors, taken from the docstrings of component classes (layer 4)."""

from __future__ import annotations

import inspect
import re

__all__ = ["describe_argument", "summary"]

_SENTENCE_END = re.compile(r"(?<=[.;])\s+(?=[A-Z`])")
_ROLE = re.compile(r":\w+:`~?([^`]*)`")


def summary(cls: type | None) -> str:
    """The first paragraph of a class's docstring, as plain text; empty without one."""
    paragraphs = _paragraphs(cls)
    return paragraphs[0] if paragraphs else ""


def describe_argument(cls: type | None, name: str) -> str:
    """The sentence that documents an argument: one that begins with it, else the first that names it; may be empty.

    Classes inherited from are searched after the class itself.
    """
    for owner in inspect.getmro(cls) if cls is not None else ():
        sentences = [s for paragraph in _paragraphs(owner) for s in _SENTENCE_END.split(paragraph)]
        mentions = [s for s in sentences if f"`{name}`" in s]
        first = next((s for s in mentions if s.startswith(f"`{name}`")), mentions[0] if mentions else "")
        if first:
            return first.rstrip(";")
    return ""


def _paragraphs(cls: type | None) -> list[str]:
    """The paragraphs of a class's own docstring up to its example code, in one line each, with simple quotes."""
    text = inspect.cleandoc((vars(cls).get("__doc__") if cls is not None else None) or "")
    prose = [" ".join(block.split()) for block in re.split(r"\n\s*\n", text) if not block.startswith((" ", ">>>"))]
    return [_ROLE.sub(r"`\1`", block).replace("``", "`").removesuffix("::") for block in prose]
