"""What MkDocs does to the pages on their way to the site (``hooks`` of ``mkdocs.yml``).

The pages are written for readers on a code host and for ``tests/docs``: their comments direct the tests, their fences
carry words for the tests (``yaml partial``), and links lead to files of the repository. On the site comments and words
are gone, and a file that is linked is a page below ``source/``.
"""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"

_FENCE = re.compile(r"^(\s*)(```+|~~~+)\s*([\w+-]*)(.*)$")
_LINK = re.compile(r"(?<!!)(\[[^\]]*\])\(([^)\s]+)\)")
_COMMENT = re.compile(r"[ \t]*<!--.*?-->[ \t]*")
_LANGUAGES = {
    ".py": "python", ".yaml": "yaml", ".yml": "yaml", ".json": "json", ".sh": "bash", ".toml": "toml",
}  # fmt: skip
_LONGEST = 200_000  # characters of a file that a page shows


def on_files(files: Files, config: Any) -> Files:
    """Every file of the repository that a page links to becomes a page; so do the files which those link to."""
    waiting = [DOCS / file.src_uri for file in files.documentation_pages()]
    made: set[Path] = set()
    while waiting:
        page = waiting.pop()
        for target in _outside(page):
            if target not in made:
                made.add(target)
                files.append(File.generated(config, _source_uri(target), content=_source_page(target)))
                if target.suffix == ".md":
                    waiting.append(target)
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """The text without the tests' comments and words, and with links that hold on the site."""
    uri = page.file.src_uri
    origin = ROOT / uri.removeprefix("source/").removesuffix(".md") if uri.startswith("source/") else DOCS / uri
    if uri.startswith("source/") and origin.suffix != ".md":
        return markdown
    lines = []
    for is_code, line in _lines(markdown):
        if is_code:
            opening = _FENCE.match(line)
            lines.append(f"{opening[1]}{opening[2]}{opening[3]}" if opening else line)
            continue
        kept = _COMMENT.sub("", line)
        if kept.strip() or not line.strip():
            lines.append(_LINK.sub(lambda found: f"{found[1]}({_on_site(found[2], origin, uri)})", kept))
    return "\n".join(lines)


def _lines(markdown: str) -> list[tuple[bool, str]]:
    """``(belongs to a fenced block, line)``; a comment over several lines is one."""
    found: list[tuple[bool, str]] = []
    fence = ""
    for line in markdown.splitlines():
        marks = _FENCE.match(line)
        if fence:
            found.append((True, line))
            if line.strip() == fence:
                fence = ""
        elif marks:
            fence = marks[2]
            found.append((True, line))
        else:
            found.append((False, line))
    return found


def _on_site(link: str, origin: Path, uri: str) -> str:
    """``../distiller_ng/pruning/level.py`` -> ``source/distiller_ng/pruning/level.py.md``, seen from the page."""
    target, _, anchor = link.partition("#")
    if not target or "://" in target or target.startswith("mailto:"):
        return link
    path = Path(os.path.normpath(origin.parent / target))
    if path == ROOT / "README.md":
        wanted = "index.md"
    elif path.is_relative_to(DOCS):
        wanted = path.relative_to(DOCS).as_posix()
    else:
        wanted = _source_uri(path)
        anchor = anchor if path.suffix == ".md" else ""
    relative = posixpath.relpath(wanted, posixpath.dirname(uri) or ".")
    return relative + (f"#{anchor}" if anchor else "")


def _outside(page: Path) -> list[Path]:
    """The files of the repository outside ``docs/`` that a page links to."""
    found = []
    for is_code, line in _lines(page.read_text(encoding="utf-8")):
        for _, link in [] if is_code else _LINK.findall(re.sub(r"`[^`]*`", "``", line)):
            target = link.partition("#")[0]
            if not target or "://" in target or target.startswith("mailto:"):
                continue
            path = Path(os.path.normpath(page.parent / target))
            inside = path.is_relative_to(ROOT) and not path.is_relative_to(DOCS)
            if inside and path.exists() and path != ROOT / "README.md":
                found.append(path)
    return found


def _source_uri(path: Path) -> str:
    return f"source/{path.relative_to(ROOT).as_posix()}.md"


def _source_page(path: Path) -> str:
    """A page that shows a file: Markdown as it reads, anything else with its lines numbered; a folder as a list."""
    name = path.relative_to(ROOT).as_posix()
    head = f"---\nsearch:\n  exclude: true\ntitle: {name}\n---\n"
    if path.is_dir():
        names = sorted(entry.name for entry in path.iterdir() if not entry.name.startswith((".", "__")))
        return f"{head}# {name}\n\n" + "\n".join(f"- `{entry}`" for entry in names)
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        return head + text
    if len(text) > _LONGEST:
        return f"{head}# {name}\n\nThis file has {len(text):,} characters: see it in the repository."
    fence = "~" * (3 + max((len(run) for run in re.findall(r"~+", text)), default=0))
    language = _LANGUAGES.get(path.suffix, "text")
    return f"{head}# {path.name}\n\n`{name}`\n\n{fence}{language}\n{text.rstrip()}\n{fence}\n"
