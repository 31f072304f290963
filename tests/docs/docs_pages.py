"""Reading the documentation's pages: fenced fragments, the directives before them, headings and links.

Directives are HTML comments, invisible to readers: ``<!-- model: resnet20_cifar digits -->`` (holds until the next one)
names the model that schedules load on, ``<!-- file: schedule.yaml -->`` gives the next fragment to later Python
fragments as a file, ``<!-- output -->`` marks a text fragment that must be what the Python fragment before it printed,
``<!-- error -->`` one that must be the error of the ``yaml wrong`` fragment before it, ``<!-- warns -->`` a schedule
that loads with warnings, ``<!-- slow -->`` a slow page. ``<!-- tutorial -->`` marks a page whose files and commands
``test_tutorials.py`` follows in a folder of their own; its directives are told there.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

_FENCE = re.compile(r"(```+)(.*)")
_DIRECTIVE = re.compile(r"<!-- (model|file|output|error|warns|slow|tutorial|take|fails)(?:: (.*?))? -->")
_LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")


@dataclass(frozen=True)
class Fragment:
    """One fenced block: ``line`` is that of its first line of text, counted from 1."""

    page: Path
    line: int
    info: tuple[str, ...]
    text: str
    directives: dict[str, str] = field(default_factory=dict)

    @property
    def language(self) -> str:
        return self.info[0] if self.info else ""

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


@dataclass(frozen=True)
class Page:
    """A page with its fragments in order, and its text outside of them."""

    path: Path
    fragments: list[Fragment]
    prose: str
    is_slow: bool
    is_tutorial: bool = False

    @property
    def name(self) -> str:
        return str(self.path.relative_to(ROOT))

    def links(self) -> list[str]:
        return _LINK.findall(re.sub(r"`[^`\n]*`", "", self.prose))

    def anchors(self) -> set[str]:
        """The anchors GitHub makes of headings."""
        headings = re.findall(r"^#+ (.*)$", self.prose, re.MULTILINE)
        kept = (re.sub(r"[^\w\- ]", "", heading.strip().lower()) for heading in headings)
        return {slug.replace(" ", "-") for slug in kept}


def read_page(path: Path) -> Page:
    """Take a page apart; raises ``ValueError`` for a fence that is never closed."""
    fragments: list[Fragment] = []
    prose: list[str] = []
    directives: dict[str, str] = {}
    model, page_wide, fence, info, body, start = "", set[str](), "", (), [], 0
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if fence:
            if line.strip() == fence:
                known = {**({"model": model} if model else {}), **directives}
                fragments.append(Fragment(path, start, info, "\n".join(body) + "\n", known))
                fence, directives = "", {}
            else:
                body.append(line)
            continue
        opening = _FENCE.fullmatch(line.strip())
        if opening:
            fence, info, body, start = opening[1], tuple(opening[2].split()), [], number + 1
            continue
        for name, value in _DIRECTIVE.findall(line):
            if name == "model":
                model = value
            elif name in ("slow", "tutorial"):
                page_wide.add(name)
            else:
                directives[name] = value
        prose.append(line)
    if fence:
        raise ValueError(f"{path}: the fence opened above line {start} is never closed")
    return Page(path, fragments, "\n".join(prose), "slow" in page_wide, "tutorial" in page_wide)


def pages() -> list[Page]:
    return [read_page(path) for path in PAGES]


def following(page: Page, fragment: Fragment, directive: str) -> Fragment | None:
    """The fragment right behind ``fragment``, if it carries the directive."""
    position = page.fragments.index(fragment) + 1
    candidate = page.fragments[position] if position < len(page.fragments) else None
    return candidate if candidate is not None and directive in candidate.directives else None
