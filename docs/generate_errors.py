"""The error index: every class of error with messages it really has, for ``docs/generate.py``.

Wrong input (``errors.yaml``) is run while the page is written, so a message on the page is the library's.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import logging
import os
import pkgutil
import re
import tempfile
import textwrap
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

import distiller_ng
from distiller_ng.errors import DistillerError, ScheduleWarning

__all__ = ["EXAMPLES", "MEANINGS", "PAGES", "Example", "every_error", "message_of"]

_WIDTH = 112
FOLDER = Path(__file__).resolve().parent

#: What every example's code runs after.
SETUP = """
import torch
from torch import nn
import distiller_ng as distiller

torch.manual_seed(0)
model = distiller.models.create_model(False, "digits", "digits_cnn")
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
images = torch.randn(4, 1, 8, 8)
"""


@dataclass(frozen=True, slots=True)
class Example:
    """``title`` says the mistake, ``code`` or ``schedule`` makes it, ``advice`` says what to do."""

    title: str
    advice: str
    code: str = ""
    schedule: str = ""


def _read() -> tuple[dict[str, tuple[str, str]], dict[str, tuple[Example, ...]]]:
    data = yaml.safe_load((FOLDER / "errors.yaml").read_text(encoding="utf-8"))
    meanings = {name: (entry["when"], entry.get("advice", "")) for name, entry in data.items()}
    examples = {name: tuple(Example(**one) for one in entry.get("examples", ())) for name, entry in data.items()}
    return meanings, {name: found for name, found in examples.items() if found}


MEANINGS, EXAMPLES = _read()


def every_error() -> dict[str, type[BaseException]]:
    """Every error and warning class of the library, by name; the most common first."""
    for module in pkgutil.walk_packages(distiller_ng.__path__, "distiller_ng."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    found: dict[str, type[BaseException]] = {}
    waiting: list[type[BaseException]] = [DistillerError]
    while waiting:
        cls = waiting.pop(0)
        if cls.__module__.startswith("distiller_ng."):
            found[cls.__name__] = cls
            waiting += cls.__subclasses__()
    found["ScheduleWarning"] = ScheduleWarning
    order = list(MEANINGS)
    return dict(sorted(found.items(), key=lambda pair: order.index(pair[0]) if pair[0] in order else len(order)))


def message_of(name: str, example: Example) -> str:
    """Run an example and give the message; raises ``RuntimeError`` where it does something else."""
    code = example.code
    if example.schedule:
        code = 'distiller.file_config(model, optimizer, "schedule.yaml", example_inputs=(images,))'
    namespace: dict[str, Any] = {"__name__": "docs_errors"}
    with _empty_folder(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if example.schedule:
            Path("schedule.yaml").write_text(example.schedule.strip() + "\n", encoding="utf-8")
        exec(SETUP, namespace)
        logging.disable(logging.WARNING)
        try:
            exec(code, namespace)
        except DistillerError as error:
            if type(error).__name__ != name:
                raise RuntimeError(
                    f"{example.title!r} raises a {type(error).__name__}, not a {name}: {error}"
                ) from error
            return str(error).replace(str(Path.cwd()), "/home/you/project")
        finally:
            logging.disable(logging.NOTSET)
        found = [str(warning.message) for warning in caught if type(warning.message).__name__ == name]
        if not found:
            raise RuntimeError(f"{example.title!r} raises nothing")
        return "\n".join(found)


@contextmanager
def _empty_folder() -> Iterator[None]:
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(before)


def _page() -> str:
    errors = every_error()
    rows = [_table_row(name, cls) for name, cls in errors.items()]
    parts = ["\n".join(["| error | also a | when | what to do |", "|---|---|---|---|", *rows])]
    for name, examples in EXAMPLES.items():
        parts.append(f"## {name}")
        parts.append(_described(errors[name]))
        parts += [_section(name, example) for example in examples]
    return "\n\n".join(parts)


def _table_row(name: str, cls: type[BaseException]) -> str:
    when, advice = MEANINGS[name]
    linked = f"[`{name}`](#{name.lower()})" if name in EXAMPLES else f"`{name}`"
    bases = [base.__name__ for base in cls.__mro__[1:] if base is not DistillerError]
    kept = [base for base in bases if base not in ("Exception", "BaseException", "object", "LookupError", "OSError")]
    return f"| {linked} | {', '.join(f'`{base}`' for base in kept) or '-'} | {when} | {advice} |"


def _described(cls: type[BaseException]) -> str:
    text = re.sub(r":\w+:`~?([^`]*)`", r"`\1`", inspect.cleandoc(cls.__doc__ or "")).replace("``", "`")
    return text


def _section(name: str, example: Example) -> str:
    if example.schedule:
        shown = f"```yaml wrong\n{example.schedule.strip()}\n```"
    else:
        ast.parse(example.code)
        shown = f"```py\n{example.code.strip()}\n```"
    message = "\n".join(
        textwrap.fill(line, _WIDTH, break_long_words=False, break_on_hyphens=False, subsequent_indent="  ")
        for line in message_of(name, example).splitlines()
    )
    directive = "<!-- error -->\n" if example.schedule and name != "ScheduleWarning" else ""
    shown = shown.replace("yaml wrong", "yaml") if name == "ScheduleWarning" else shown
    warns = "<!-- warns -->\n" if name == "ScheduleWarning" else ""
    return f"### {example.title}\n\n{warns}{shown}\n\n{directive}```text\n{message}\n```\n\n{example.advice}"


#: Pages by file name; see ``docs/generate.py``.
PAGES: Mapping[str, Callable[[], str]] = {"errors.md": _page}
