"""The reference page of recipes' modifiers, from what the components say of themselves, for ``docs/generate.py``."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

from formatting import default_text, words

from distiller_ng.config.frontends.recipe.tags import TagEntry, entries_of_class
from distiller_ng.config.kinds import KINDS
from distiller_ng.config.signatures import NO_DEFAULT

__all__ = ["PAGES", "modifiers"]

_PAGES = {"lr_schedulers": "learning-rates.md"}
_ENDS = {
    "never": "-1: it never ends",
    "open": "-1 (never), or an epoch from `start_epoch` on",
    "from_start": "an epoch from `start_epoch` on",
    "after_start": "an epoch after `start_epoch`",
    "run": "an epoch after `start_epoch`, or -1: the last of the run",
    "ignored": "ignored: it acts once",
}


def modifiers() -> dict[str, list[TagEntry]]:
    """Every tag with the library's components that have it."""
    found: dict[str, list[TagEntry]] = {}
    for section, kind in KINDS.items():
        for name in kind.class_names():
            for entry in entries_of_class(section, name):
                same = found.setdefault(entry.tag.tag, [])
                cls = entry.registered.cls
                if cls.__module__.startswith("distiller_ng.") and all(cls is not e.registered.cls for e in same):
                    same.append(entry)
    return {tag: entries for tag, entries in sorted(found.items()) if entries}


def _page() -> str:
    return "\n\n".join(_section(tag, entry) for tag, entries in modifiers().items() for entry in entries)


def _section(tag: str, entry: TagEntry) -> str:
    known, name = entry.tag, entry.registered.name
    page = _PAGES.get(entry.kind.section, f"{entry.kind.section}.md")
    first = (
        f"Makes the component [`{name}`]({page}#{name.lower()}), which {_implied(entry)}says what the properties mean."
    )
    parts = [f"## {tag}", first]
    if known.aliases:
        parts.append(f"Also written {', '.join(f'`!{alias}`' for alias in known.aliases)}, with a warning.")
    hook = getattr(entry.registered.cls, "from_recipe", None)
    if hook is not None and hook.__doc__ and not inspect.cleandoc(hook.__doc__).startswith("See "):
        parts.append(re.sub(r":\w+:`~?([^`]*)`", r"`\1`", inspect.cleandoc(hook.__doc__)).replace("``", "`"))
    rows = [*_times(entry), *_names(entry), *_arguments(entry)]
    parts.append("\n".join(["| property | default | |", "|---|---|---|", *rows]))
    if known.ignored:
        parts.append("Ignored: " + "; ".join(f"`{name}` ({why})" for name, why in known.ignored.items()) + ".")
    return "\n\n".join(parts)


def _implied(entry: TagEntry) -> str:
    fixed = ", ".join(
        f"`{name}: {value}`" for name, value in {**entry.tag.fixed, **entry.tag.fixed_policy_args}.items()
    )
    return f"has {fixed} here and " if fixed else ""


def _times(entry: TagEntry) -> list[str]:
    known = entry.tag
    rows = [_row("start_epoch", _number(known.start_epoch), "when it begins; -1: before the first step")]
    if known.ends != "ignored":
        rows.append(_row("end_epoch", "-1" if known.ends == "never" else _number(known.end_epoch), _ENDS[known.ends]))
    if known.fixed_frequency or known.ends == "ignored":
        return rows
    return [*rows, _row("update_frequency", _number(known.update_frequency), "in epochs; -1: every step")]


def _names(entry: TagEntry) -> list[str]:
    known = entry.tag
    rows = []
    if known.params is not None:
        default = f"`{known.default_params}`" if known.default_params else "required"
        rows.append(_row("params", default, f"becomes `{known.params}`: names, `re:` patterns, `__ALL_PRUNABLE__`"))
    rows += [_row(given, "-", f"becomes `{name}`") for given, name in known.renamed.items()]
    rows += [_row(given, "-", f"the policy's `{name}`") for given, name in entry.policy_args.items()]
    if known.strict:
        rows.append(_row(known.strict, "`true`", "false: names that match nothing are warnings"))
    return rows


def _arguments(entry: TagEntry) -> list[str]:
    known = entry.tag
    told = {known.params, *known.renamed.values(), *known.fixed}
    rows = []
    for argument in entry.component.arguments.values():
        if argument.name not in told:
            default = "required" if argument.default is NO_DEFAULT else default_text(argument.default)
            rows.append(_row(argument.name, default, words(argument.annotation)))
    return rows


def _number(value: float | None) -> str:
    return "required" if value is None else f"`{value:g}`"


def _row(*cells: Any) -> str:
    name, default, meaning = cells
    return f"| `{name}` | {default} | {str(meaning).replace('|', chr(92) + '|')} |"


#: Pages by file name; see ``docs/generate.py``.
PAGES: Mapping[str, Callable[[], str]] = {"recipe-modifiers.md": _page}
