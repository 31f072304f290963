"""Finding the recipe in a text: a whole YAML document, or the front matter of a Markdown page (layer 4)."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from pathlib import Path as FilePath

from distiller_ng.config.marks import Mark
from distiller_ng.config.problems import file_problem, problem
from distiller_ng.errors import Problem

__all__ = ["RecipeText", "find_recipe", "looks_like_recipe"]

_FENCES = ("---", "+++")
_TAG = re.compile(r"(?:^|[\s\[,-])!(?:pytorch\.)?[A-Za-z_]\w*Modifier\b", re.MULTILINE)
_TAGGED_ITEM = re.compile(r"^\s*-\s*!(?!!)[A-Za-z_][\w.]*", re.MULTILINE)
_GROUP = re.compile(r"""^[ \t]*["']?[\w.-]*modifiers[\w.-]*["']?[ \t]*:""", re.MULTILINE)
_STAGE = re.compile(r"^\w+_stage[ \t]*:", re.MULTILINE)
_SCHEDULE = re.compile(r"^policies[ \t]*:", re.MULTILINE)
_CODE_BLOCK = re.compile(r"^[ \t]*```ya?ml", re.MULTILINE)
_MARKDOWN = (".md", ".markdown")


@dataclass(frozen=True, slots=True)
class RecipeText:
    """The YAML of a recipe: what stands around it is blank lines, so that line numbers are those of the file."""

    text: str
    warnings: tuple[Problem, ...] = ()


def looks_like_recipe(path: FilePath | None, text: str) -> bool:
    """Whether a text is a recipe: a Markdown file, or one with ``!SomeModifier`` tags or a key such as ``modifiers:``.

    >>> looks_like_recipe(None, "pruning_modifiers: []")
    True
    """
    if path is not None and path.suffix.lower() in _MARKDOWN:
        return True
    if _TAG.search(text):
        return True
    if _SCHEDULE.search(text):
        return False
    return any(pattern.search(text) for pattern in (_GROUP, _TAGGED_ITEM, _STAGE))


def find_recipe(path: FilePath | None, text: str, source: str) -> RecipeText:
    """The recipe in ``text``; raises :class:`ScheduleError` for Markdown without front matter.

    Front matter stands between two whole lines ``---`` (or ``+++``). If the first block has no modifiers and a later
    one has, that one is taken, with a warning.
    """
    is_markdown = path is not None and path.suffix.lower() in _MARKDOWN
    lines = text.splitlines()
    blocks = _blocks(lines, is_markdown)
    if is_markdown and not blocks:
        hint = "the recipe stands between two lines '---' at its top"
        if _CODE_BLOCK.search(text):
            hint += "; the ```yaml blocks of this page are not read: copy the one you want into a file of its own"
        raise file_problem(source, f"this Markdown file has no front matter: {hint}")
    if not blocks:
        return RecipeText(text)
    first, chosen = blocks[0], next((b for b in blocks if _has_modifiers(lines, b)), blocks[0])
    if not is_markdown and len(blocks) == 1 and not _is_front_matter(lines, chosen):
        return RecipeText(text)
    warnings = []
    if chosen != first:
        message = f"the block that begins here has no modifiers: the one in line {chosen[0] + 1} is taken"
        warnings.append(problem(source, Mark(first[0] + 1, 1), (), message))
    start, end = chosen
    return RecipeText("\n" * start + "\n".join(lines[start:end]) + "\n", tuple(warnings))


def _blocks(lines: list[str], is_markdown: bool) -> list[tuple[int, int]]:
    """``[first, last)`` line of each block between fences, counted from 0; plain YAML may lack fences at its ends."""
    fences = [at for at, line in enumerate(lines) if line.strip() in _FENCES]
    if not fences:
        return []
    if is_markdown:
        return [(a + 1, b) for a, b in itertools.pairwise(fences)]
    edges = [-1, *fences, len(lines)]
    found = [(a + 1, b) for a, b in itertools.pairwise(edges)]
    if not _has_modifiers(lines, found[0]):  # a licence, or nothing
        del found[0]
    return [block for block in found if any(_is_content(line) for line in lines[slice(*block)])]


def _is_content(line: str) -> bool:
    return bool(line.strip()) and not line.lstrip().startswith("#")


def _has_modifiers(lines: list[str], block: tuple[int, int]) -> bool:
    text = "\n".join(lines[slice(*block)])
    return bool(_TAG.search(text) or _GROUP.search(text) or _TAGGED_ITEM.search(text))


def _is_front_matter(lines: list[str], block: tuple[int, int]) -> bool:
    """Whether something that is no YAML comment stands outside the block, or it has a closing fence."""
    return block[1] < len(lines) or any(line.strip() == "+++" for line in lines)
