"""Docstrings and constructor signatures as Markdown, for ``docs/generate.py``."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
import types
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from texts import ARGUMENTS, SETTLED

from distiller_ng.config.classes import ComponentClass
from distiller_ng.config.docstrings import describe_argument
from distiller_ng.config.kinds import NESTED
from distiller_ng.config.signatures import NO_DEFAULT, Argument
from distiller_ng.pruning.sparsity_schedules.base import SparsitySchedule

__all__ = ["arguments_table", "default_text", "markdown_of", "source_link", "words"]

ROOT = Path(__file__).resolve().parent.parent
_PLURALS = {"number": "numbers", "whole number": "whole numbers", "text": "texts", "map: text -> any": "definitions"}
_SECTION_START = re.compile(r"(pruners|regularizers|lr_schedulers|policies|schedule):")
_UNBOUND_START = re.compile(
    r"(quantizers|distillers|extensions):"
)  # they name teachers, files or layers of other models
_URL = re.compile(r"(?<![<(])https?://[^\s)>]*[^\s)>.,;]")
_ROLE = re.compile(r":\w+:`~?(?:\w+\.)*([^`]*)`")


# -- docstrings as Markdown --------------------------------------------------------------------------------------------


def markdown_of(cls: type) -> str:
    """A class's docstring as Markdown, with a sample it inherits or its module has if it has none of its own."""
    text = _markdown(cls.__doc__)
    if "```yaml" in text:
        return text
    module = inspect.getmodule(cls)
    for doc in (module.__doc__ if module is not None else None, *(base.__doc__ for base in inspect.getmro(cls)[1:])):
        found = re.search(r"```yaml.*?\n```", _markdown(doc), re.DOTALL)
        if found:
            return f"{text}\n\n{re.sub(r'class: [A-Za-z]+[A-Za-z0-9_]*', f'class: {cls.__name__}', found.group())}"
    return text


def _markdown(doc: str | None) -> str:
    """Simple quotes, links, and examples as fenced blocks."""
    parts: list[str] = []
    is_code = False
    for block in re.split(r"\n\s*\n", inspect.cleandoc(doc or "")):
        if is_code or block.startswith("    "):
            parts.append(_fenced(textwrap.dedent(block)))
            is_code = False
            continue
        if block.startswith(">>>"):
            parts.append(f"```pycon\n{block}\n```")
            continue
        is_code = block.endswith("::")
        parts.append(_prose(block.removesuffix(" ::").removesuffix(":") if is_code else block))
    return "\n\n".join(parts)


def _prose(text: str) -> str:
    text = _ROLE.sub(r"`\1`", text).replace("``", "`")
    return _URL.sub(lambda found: f"<{found.group()}>", text)


def _fenced(code: str) -> str:
    """A block of code: samples of schedules carry the word by which ``tests/docs`` know how to check them."""
    if _UNBOUND_START.match(code):
        return f"```yaml unbound\n{code}\n```"
    language = "yaml partial" if _SECTION_START.match(code) else "py" if _is_python(code) else "text"
    return f"```{language}\n{code}\n```"


def _is_python(code: str) -> bool:
    """Whether it is a call; such samples have names of the reader's, so they are coloured and not run."""
    try:
        return any(isinstance(node, ast.Call) for node in ast.walk(ast.parse(code)))
    except SyntaxError:
        return False


# -- arguments ---------------------------------------------------------------------------------------------------------


def words(annotation: Any) -> str:
    """A type as a reader of YAML knows it: ``Mapping[str, float]`` -> ``map: text -> number``."""
    simple = {bool: "true or false", int: "whole number", float: "number", str: "text", type(None): "null", Any: "any"}
    if annotation in simple:
        return simple[annotation]
    if annotation in NESTED:
        return "definition"
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return _union(inner)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in inner)
    if origin is tuple:
        return f"[{', '.join(words(part) for part in inner)}]"
    if inspect.isclass(origin) and issubclass(origin, Mapping):
        return f"map: {words(inner[0])} -> {words(inner[1])}"
    if inspect.isclass(origin) and issubclass(origin, Iterable):
        return f"list of {_PLURALS.get(words(inner[0]), words(inner[0]))}"
    return "function (Python only)" if origin is not None else f"`{annotation.__name__}` (Python only)"


def _union(members: Sequence[Any]) -> str:
    if SparsitySchedule in members:
        return "definition"
    return " or ".join(dict.fromkeys(words(member) for member in members if member is not type(None)))


def arguments_table(found: ComponentClass, *, leave_out: Sequence[str] = ()) -> str:
    """Name, type, default and meaning of the arguments a schedule may give; empty without any."""
    rows = [_row(a, found.source) for a in found.arguments.values() if a.name not in leave_out]
    if not rows:
        return ""
    return "\n".join(["| argument | type | default | |", "|---|---|---|---|", *rows])


def _row(argument: Argument, source: type | None) -> str:
    default = "required" if argument.default is NO_DEFAULT else default_text(argument.default)
    meaning = _meaning(argument.name, source)
    cells = (f"`{argument.name}`", words(argument.annotation), default, meaning)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _meaning(name: str, source: type | None) -> str:
    """What the docstring says about an argument, if a sentence begins with it, else the usual meaning of that name."""
    sentence = _ROLE.sub(r"`\1`", describe_argument(source, name))
    is_own = sentence.startswith(f"`{name}`") and ": see `" not in sentence
    if name in ARGUMENTS and (name in SETTLED or not is_own):
        return ARGUMENTS[name]
    text = sentence.removeprefix(f"`{name}`: ")
    return text[:1].upper() + text[1:]


def default_text(value: Any) -> str:
    """A default as YAML writes it, in quotes: ``False`` -> ```false```."""
    if value is None or value == ():
        return "-"
    if isinstance(value, float):
        return f"`{value:.4g}`"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def source_link(cls: type) -> str:
    """A link from a page of this folder to the file a class is written in."""
    path = Path(inspect.getfile(cls)).resolve().relative_to(ROOT)
    return f"Source: [{path}](../{path})"
