"""The reference page of the command, from its own parsers, for ``docs/generate.py``."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterable, Mapping

from distiller_ng.cli.base import COMMANDS
from distiller_ng.cli.main import make_parser

__all__ = ["PAGES", "parsers"]

_DEFAULT = re.compile(r"\s*\(default: [^()]*\)|^default: \w+$")  # it has a column of its own

#: What an option does whose help only tells its default.
_HELP = {
    "batches": "numbers of inputs at once to measure with",
    "bits_activations": "bits of activations; weights have their own option",
}


def parsers() -> dict[str, argparse.ArgumentParser]:
    """The parser of each of the library's commands, those below a command too: ``recipe translate``."""
    found: dict[str, argparse.ArgumentParser] = {}
    ours = {entry.name for entry in COMMANDS if entry.cls.__module__.startswith("distiller_ng.")}
    for name, parser in _below(make_parser()):
        if name in ours:
            found[name] = parser
            for inner, own in _below(parser):
                own.description = own.description or _help_of(parser, inner)
                found[f"{name} {inner}"] = own
    return found


def _below(parser: argparse.ArgumentParser) -> Iterable[tuple[str, argparse.ArgumentParser]]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from sorted(action.choices.items())


def _help_of(parser: argparse.ArgumentParser, name: str) -> str:
    """The line of a command's own commands."""
    actions = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return next((one.help or "" for action in actions for one in action._choices_actions if one.dest == name), "")


def _page() -> str:
    found = parsers()
    listed = [f"| [`{name}`](#{_anchor(name)}) | {_sentence(parser)} |" for name, parser in found.items()]
    parts = ["\n".join(["| command | |", "|---|---|", *listed])]
    parts += [_section(name, parser) for name, parser in found.items()]
    return "\n\n".join(parts)


def _section(name: str, parser: argparse.ArgumentParser) -> str:
    level = "##" if " " not in name else "###"
    parts = [f"{level} {name}", _sentence(parser)]
    for group in parser._action_groups:
        rows = [_row(action, parser) for action in group._group_actions if _is_shown(action)]
        title = group.title if group.title not in ("options", "positional arguments", None) else ""
        if rows:
            parts += [part for part in (f"**{title}**" if title else "", group.description or "") if part]
            parts.append("\n".join(["| argument | default | |", "|---|---|---|", *rows]))
    if parser.epilog:
        parts.append(f"```text\n{_dedented(parser.epilog)}\n```")
    return "\n\n".join(parts)


def _is_shown(action: argparse.Action) -> bool:
    hidden = isinstance(action, argparse._SubParsersAction) or action.help == argparse.SUPPRESS
    return not hidden and action.dest != "help"


def _sentence(parser: argparse.ArgumentParser) -> str:
    text = _plain(parser.description or "")
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") or not text else ".")


def _row(action: argparse.Action, parser: argparse.ArgumentParser) -> str:
    cells = (_written(action), _default(action), _meaning(action, parser))
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _written(action: argparse.Action) -> str:
    """``--batches``, ``-o`` with what follows: ```--batches N [N ...]```; what is chosen from is told beside it."""
    formatter = argparse.HelpFormatter("x")
    if action.option_strings:
        metavar = action.dest.upper() if action.choices is not None else ""
        value = formatter._format_args(action, metavar or formatter._get_default_metavar_for_optional(action))
        if metavar and action.metavar is None and action.nargs is None:
            value = metavar
    else:
        value = formatter._format_args(action, formatter._get_default_metavar_for_positional(action))
    return ", ".join(f"`{f'{name} {value}'.strip()}`" for name in action.option_strings or [""])


def _default(action: argparse.Action) -> str:
    if action.required and action.option_strings:
        return "required"
    if not action.option_strings:
        return "-" if action.nargs in ("?", "*") else "required"
    if action.default in (None, False, argparse.SUPPRESS) or action.default == []:
        return "-"
    values = action.default if isinstance(action.default, list | tuple) else [action.default]
    return f"`{' '.join(str(value) for value in values)}`"


def _meaning(action: argparse.Action, parser: argparse.ArgumentParser) -> str:
    text = action.help or ""
    if "%(" in text:
        text = argparse.HelpFormatter(parser.prog)._expand_help(action)
    choices = ""
    if action.choices is not None and not all(str(choice) in text for choice in action.choices):
        choices = f"One of {', '.join(f'`{choice}`' for choice in action.choices)}."
    text = _plain(_DEFAULT.sub("", text.replace("%%", "%"))) or _HELP.get(action.dest, "")
    sentence = f"{text[:1].upper()}{text[1:]}{'' if text.endswith('.') or not text else '.'}"
    return f"{sentence} {choices}".strip()


def _plain(text: str) -> str:
    """One line; what a reader could take for Markdown is code."""
    text = " ".join(text.split())
    return re.sub(r"(?<![`\w])([\w./-]*[<*_][\w.<>*/_-]*)(?![`\w])", r"`\1`", text)


def _dedented(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.strip("\n").splitlines())


def _anchor(name: str) -> str:
    return name.replace(" ", "-")


#: Pages by file name; see ``docs/generate.py``.
PAGES: Mapping[str, Callable[[], str]] = {"reference-command.md": _page}
