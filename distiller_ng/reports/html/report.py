"""The page: one run, or several compared (layer 4)."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from html import escape
from operator import attrgetter
from pathlib import Path

from distiller_ng.errors import ArgumentError
from distiller_ng.ops.files import write_text_atomically
from distiller_ng.reports.html.comparison import comparison
from distiller_ng.reports.html.parts import slug, table
from distiller_ng.reports.html.run_data import RunData, name_and_time, read_run
from distiller_ng.reports.html.sections import about, result, run_sections
from distiller_ng.reports.html.style import STYLE

__all__ = ["write_html_report"]


def write_html_report(
    runs: Iterable[RunData | str | os.PathLike[str]], output: str | os.PathLike[str], *, title: str = ""
) -> Path:
    """Write one self-contained HTML page about runs (folders, or what :func:`read_run` gave); the path.

    Several runs are compared first; a folder that is named twice counts once. It has no scripts and loads nothing.
    Raises :class:`ArgumentError` for no runs, for folders that are none, and for an ``output`` that is a folder.
    Example::

        write_html_report(["logs/agp___2026.11.21"], "report.html")
    """
    found = [run if isinstance(run, RunData) else read_run(run) for run in runs]
    if not found:
        raise ArgumentError("a report needs the folder of at least one run", argument=("runs",))
    if Path(output).is_dir():
        raise ArgumentError(f"{os.fspath(output)} is a folder: name the file to write", argument=("output",))
    found = _told_apart(list({_place(run) or number: run for number, run in enumerate(found)}.values()))
    heading = title or (found[0].name if len(found) == 1 else f"{len(found)} runs compared")
    body = _one(found[0], heading) if len(found) == 1 else _several(found, heading)
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        # What a browser refuses, should a name or a schedule ever get through as markup: scripts, images, requests.
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{escape(heading)}</title>"
    )
    page = (
        f'<!DOCTYPE html>\n<html lang="en"><head>{head}<style>{STYLE}</style></head>\n<body>\n{body}\n</body></html>\n'
    )
    return write_text_atomically(output, page)


def _place(run: RunData) -> str:
    """The folder of a run, however it was named; empty for one without."""
    return str(Path(run.path).expanduser().resolve()) if run.path else ""


def _told_apart(runs: Sequence[RunData]) -> list[RunData]:
    """Runs without the time in their folder's name; where these are the same with it, or with the folder's path."""

    def short(run: RunData) -> str:
        return name_and_time(run.name)[0]

    def path(run: RunData) -> str:
        return run.path or run.name

    names = [[name(run) for run in runs] for name in (short, attrgetter("name"), path)]
    chosen = [next((name for name, all_ in zip(own, names, strict=True) if all_.count(name) == 1), own[-1])
              for own in zip(*names, strict=True)]  # fmt: skip
    return [replace(run, name=name) for run, name in zip(runs, chosen, strict=True)]


def _one(run: RunData, heading: str) -> str:
    sections = run_sections(run, 2, "")
    links = [(title, anchor) for title, anchor, _ in sections]
    head = _header(heading, "Compression report", about(run), links)
    return (
        f"{head}\n<main>\n{result(run, 2, '')}\n" + "\n".join(html for _, _, html in sections) + f"\n</main>{_footer()}"
    )


def _several(runs: Sequence[RunData], heading: str) -> str:
    anchors = [slug("run", str(number + 1), run.name) for number, run in enumerate(runs)]
    links = [("Comparison", "comparison"), *zip([run.name for run in runs], anchors, strict=True)]
    columns, rows, charts = comparison(runs, anchors)
    numbers = range(1, len(columns) - 1)
    parts = [
        _header(heading, "Compression report", "", links),
        '<main>\n<section aria-labelledby="comparison"><h2 id="comparison">Comparison</h2>',
        table(columns, rows, label="Runs compared", numbers=numbers),
        f"{charts}</section>",
    ]
    for run, anchor in zip(runs, anchors, strict=True):
        parts.append(f'<section aria-labelledby="{anchor}"><h2 id="{anchor}">{escape(run.name)}</h2>{about(run)}')
        parts.append(result(run, 3, anchor))
        parts += [html for _, _, html in run_sections(run, 3, anchor)]
        parts.append("</section>")
    return "\n".join([*parts, f"</main>{_footer()}"])


def _header(heading: str, kind: str, below: str, links: Sequence[tuple[str, str]]) -> str:
    items = "".join(f'<li><a href="#{anchor}">{escape(title)}</a></li>' for title, anchor in links)
    nav = f'<nav aria-label="On this page"><ul>{items}</ul></nav>' if len(links) > 1 else ""
    return f'<header><p class="eyebrow">{kind}</p><h1>{escape(heading)}</h1>{below}{nav}</header>'


def _footer() -> str:
    return "<footer>Made by distiller_ng. This page is one file: it loads nothing and runs no scripts.</footer>"
