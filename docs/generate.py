"""Writes the reference pages from the library itself: docstrings and signatures, parsers, messages of errors.

``python docs/generate.py`` rewrites what follows the marker on each page, ``--check`` only says which page is stale
(exit code 1). What stands before the marker is written by hand.
"""

from __future__ import annotations

import argparse
import inspect
import re
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import generate_command
import generate_errors
import generate_modifiers
import generate_registries
import torch
import yaml
from formatting import arguments_table, default_text, markdown_of, source_link, words
from texts import EPOCHS, LR_SAMPLES, LR_TEXTS

from distiller_ng.config.classes import ComponentClass
from distiller_ng.config.frontends.recipe.tags import entries_of_class
from distiller_ng.config.kinds import KINDS, NESTED
from distiller_ng.config.signatures import NO_DEFAULT
from distiller_ng.learning_rate.scheduled import ScheduledLR
from distiller_ng.pruning.base import PRUNERS, Pruner
from distiller_ng.pruning.sparsity_schedules.base import SparsitySchedule, as_schedule

FOLDER = Path(__file__).resolve().parent
MARKER = "<!-- docs/generate.py writes everything below this line: edit the docstrings instead -->"
COMMON = ("schedule", "scope", "pattern")
_TORCH_PAGE = "https://docs.pytorch.org/docs/stable/generated/torch.optim.lr_scheduler.{}.html"


# -- pages -------------------------------------------------------------------------------------------------------------


def by_class(section: str) -> Iterator[tuple[list[str], ComponentClass]]:
    """The classes of a section with all names each has, in alphabetic order of the first."""
    table = KINDS[section].classes
    if table is None:
        return
    names: dict[type | None, list[str]] = {}
    for name in table.names():
        source = table.get(name).source
        if source is None or source.__module__.startswith(("distiller_ng.", "torch.")):
            names.setdefault(source, []).append(name)
    for known in names.values():
        own = table.get(known[0]).source
        first = next((name for name in known if own is not None and name == own.__name__), known[0])
        yield [first, *(name for name in known if name != first)], table.get(first)


def _section(names: Sequence[str], found: ComponentClass, *extra: str, leave_out: Sequence[str] = ()) -> str:
    aliases = f"Also called {', '.join(f'`{name}`' for name in names[1:])}." if names[1:] else ""
    own = found.source
    prose = markdown_of(own) if own is not None else ""
    link = source_link(own) if own is not None else ""
    parts = [f"## {names[0]}", aliases, prose, arguments_table(found, leave_out=leave_out), *extra, _tags(own), link]
    return "\n\n".join(part for part in parts if part)


def _tags(own: type | None) -> str:
    """The modifiers of recipes that a class is."""
    tags = dict.fromkeys(
        entry.tag.tag
        for section in KINDS
        for _, found in by_class(section)
        if found.source is own
        for entry in entries_of_class(section, found.name)
    )
    listed = ", ".join(f"`!{tag}`" for tag in tags)
    return f"In [recipes](recipes.md#modifiers): {listed}." if listed else ""


def pruners() -> str:
    """Every registered pruner, then the sparsity schedules."""
    sections = []
    for names, found in by_class("pruners"):
        shared = [name for name in COMMON if name in found.arguments]
        note = f"And {', '.join(f'`{n}`' for n in shared)}: [every pruner](#arguments-every-pruner-takes)."
        sections.append(_section(names, found, note if shared else "", leave_out=COMMON))
    return _linked("\n\n".join([*sections, _bases(), _schedules()]))


def _bases() -> str:
    """The classes pruners share, which their docstrings refer to."""
    found: dict[type, None] = {}
    for _, pruner in by_class("pruners"):
        for base in inspect.getmro(pruner.source)[1:] if pruner.source is not None else ():
            if (
                issubclass(base, Pruner)
                and base is not Pruner
                and base.__name__[0] != "_"
                and base.__name__ not in PRUNERS
            ):
                found[base] = None
    parts = ["## What pruners have in common", "The bases that the sections above refer to."]
    for base in sorted(found, key=lambda cls: cls.__name__):
        parts += [f"### {base.__name__}", markdown_of(base), source_link(base)]
    return "\n\n".join(parts)


def _linked(text: str) -> str:
    """Names of classes that have a section on the page become links to it."""
    for name in re.findall(r"^##+ (\w+)$", text, re.MULTILINE):
        text = re.sub(rf"(see |of |^)`{name}`", rf"\1[`{name}`](#{name.lower()})", text, flags=re.MULTILINE)
    return text


def _schedules() -> str:
    table = NESTED[SparsitySchedule]
    parts = [
        "## Sparsity schedules",
        "What `schedule:` takes. `target(progress)` is the sparsity when that share of the policy's window has passed.",
    ]
    for name in table.names():
        found = table.get(name)
        if found.source is not None:
            text = markdown_of(found.source)
            part = [f"### {name}", text, arguments_table(found), _targets(text), source_link(found.source)]
            parts.append("\n\n".join(part))
    return "\n\n".join(parts)


def _targets(text: str) -> str:
    """The values of a schedule's own example at five points, computed by the class."""
    example = re.search(r"```yaml partial\n(.*?)\n```", text, re.DOTALL)
    if example is None:
        return ""
    curve = as_schedule(yaml.safe_load(example.group(1))["schedule"])
    points = (0.0, 0.25, 0.5, 0.75, 1.0)
    values = ", ".join(f"{curve.target(point):.3g}" for point in points)
    return f"At progress 0, 0.25, 0.5, 0.75 and 1 this is {values}."


def components(section: str) -> str:
    """Every registered class of a section."""
    return "\n\n".join(_section(names, found) for names, found in by_class(section))


def learning_rates() -> str:
    """Every learning-rate scheduler: ours from docstrings, torch's with a sentence and a sample of our own."""
    return "\n\n".join(_lr_section(names, found) for names, found in by_class("lr_schedulers"))


def _lr_section(names: Sequence[str], found: ComponentClass) -> str:
    own, name = found.source, names[0]
    text, sample = LR_TEXTS.get(name, ""), LR_SAMPLES.get(name)
    if own is not None and own.__module__.startswith("torch."):
        prose, link = text, f"Reference: [torch's {name}]({_TORCH_PAGE.format(name)})"
        definition = "" if sample is None else _definition(name, sample)
    else:
        prose, link = (markdown_of(own), source_link(own)) if own is not None else ("", "")
        prose, definition = f"{prose}\n\n{text}".strip(), ""
    parts = [f"## {name}", prose, definition, _rates(name, sample), _lr_arguments(found), link]
    return "\n\n".join(part for part in parts if part)


def _definition(name: str, sample: Mapping[str, Any]) -> str:
    text = yaml.safe_dump({"class": name, **sample}, sort_keys=False, default_flow_style=None)
    inline = text.count("\n") == 1
    body = f" {text}" if inline else "\n" + textwrap.indent(text, "    ")
    return f"```yaml partial\nlr_schedulers:\n  my_lr:{body}```"


def _rates(name: str, sample: Mapping[str, Any] | None) -> str:
    if sample is None or name == "ReduceLROnPlateau":
        return ""
    schedule = ScheduledLR("sample", name, dict(sample))
    schedule.bind(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1, momentum=0.9))
    values = ", ".join(f"{schedule.values(epoch)[0]['lr']:.4g}" for epoch in range(EPOCHS))
    return f"From a base of 0.1, epochs 0 to {EPOCHS - 1} have {values}."


def _lr_arguments(found: ComponentClass) -> str:
    listed = []
    for argument in found.arguments.values():
        if argument.name == "unit":
            continue
        default = "required" if argument.default is NO_DEFAULT else default_text(argument.default)
        listed.append(f"`{argument.name}` ({words(argument.annotation)}; {default})")
    return f"Arguments: {', '.join(listed)}." if listed else ""


PAGES: Mapping[str, Callable[[], str]] = {
    "pruners.md": pruners,
    "regularizers.md": partial(components, "regularizers"),
    "learning-rates.md": learning_rates,
    "extensions.md": partial(components, "extensions"),
    "distillers.md": partial(components, "distillers"),
    "quantizers.md": partial(components, "quantizers"),
    **generate_registries.PAGES,
    **generate_modifiers.PAGES,
    **generate_command.PAGES,
    **generate_errors.PAGES,
}


def page(name: str) -> str:
    """The whole text of a page as it should be: its hand-written head, the marker, what is generated."""
    head = (FOLDER / name).read_text(encoding="utf-8").partition(MARKER)[0]
    return f"{head.rstrip()}\n\n{MARKER}\n\n{PAGES[name]()}\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the pages, or with ``--check`` say which are stale."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 if a page is stale")
    options = parser.parse_args(arguments)
    stale = [name for name in PAGES if (FOLDER / name).read_text(encoding="utf-8") != page(name)]
    if options.check:
        for name in stale:
            sys.stderr.write(f"docs/{name} is stale: run 'python docs/generate.py'\n")
        return 1 if stale else 0
    for name in stale:
        (FOLDER / name).write_text(page(name), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
