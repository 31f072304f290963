"""Pieces of HTML, and numbers as people read them (layer 4)."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape, unescape
from typing import Any

__all__ = [
    "Cell",
    "bytes_text",
    "count_text",
    "details",
    "finite",
    "heading",
    "mappings",
    "meter",
    "milliseconds_text",
    "pairs",
    "part",
    "percent_text",
    "section",
    "shape_of",
    "slug",
    "table",
    "times_text",
]


@dataclass(frozen=True, slots=True)
class Cell:
    """A table's cell: ``html`` as it is; ``number`` cells stand to the right."""

    html: str
    number: bool = False

    @classmethod
    def of(cls, value: Any) -> Cell:
        """Text as text, None as an empty cell, a cell as it is."""
        return value if isinstance(value, Cell) else cls("" if value is None else escape(str(value)))


def finite(value: Any) -> float | None:
    """A number from a file, None for anything else, NaN, infinity and what no float can hold too."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def mappings(value: Any) -> list[Mapping[str, Any]]:
    """The mappings of a list from a file; anything else is left out."""
    return [one for one in value if isinstance(one, Mapping)] if isinstance(value, list) else []


def part(content: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A mapping within a mapping from a file; an empty one for anything else."""
    found = content.get(name)
    return found if isinstance(found, Mapping) else {}


def shape_of(row: Mapping[str, Any]) -> list[int]:
    """The sizes of a row's ``shape``; empty where it has none."""
    sizes = row.get("shape")
    return [one for one in sizes if type(one) is int and 0 <= one < 2**63] if isinstance(sizes, list) else []


def bytes_text(value: float) -> str:
    """``41.3 KiB``."""
    for unit in ("bytes", "KiB", "MiB"):
        if value < 1024 or unit == "MiB":
            break
        value /= 1024
    else:
        unit = "MiB"
    return f"{value:,.0f} bytes" if unit == "bytes" else f"{value:,.{1 if value < 100 else 0}f} {unit}"


def count_text(value: float) -> str:
    """``9,999``, ``27.1 k``, ``1.35 M``, ``4.11 G``."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e4)):
        if value >= size:
            scaled = value / min(size, {"G": 1e9, "M": 1e6, "k": 1e3}[unit])
            return f"{scaled:,.{2 if scaled < 10 else 1 if scaled < 100 else 0}f} {unit}"
    return f"{value:,.0f}"


def milliseconds_text(value: float) -> str:
    """``0.084 ms``, ``12.3 ms``, ``2.10 s``."""
    if value >= 1000:
        return f"{value / 1000:.2f} s"
    return f"{value:.3f} ms" if value < 1 else f"{value:.2f} ms" if value < 10 else f"{value:.1f} ms"


def percent_text(fraction: float, decimals: int = 1) -> str:
    """A fraction as percent: ``0.8`` -> ``80.0 %``."""
    return f"{100 * fraction:.{decimals}f} %"


def times_text(before: float, after: float, better: str, worse: str) -> str:
    """How many times less: ``(4, 1, "smaller", "larger")`` -> ``4.0x smaller``."""
    if before <= 0 or after <= 0:
        return ""
    factor = before / after
    if 0.995 < factor < 1.005:
        return "unchanged"
    word, factor = (better, factor) if factor > 1 else (worse, 1 / factor)
    return f"{factor:.{2 if factor < 1.995 else 1}f}x {word}"


def slug(*texts: str) -> str:
    """An id: ``slug("Run 1", "Layers")`` -> ``run-1-layers``."""
    kept = "".join(letter if letter.isalnum() and letter.isascii() else "-" for letter in "-".join(texts).lower())
    return "-".join(part for part in kept.split("-") if part) or "part"


def heading(level: int, text: str) -> str:
    """A heading."""
    return f"<h{level}>{escape(text)}</h{level}>"


def section(level: int, title: str, body: str, anchor: str) -> str:
    """A section with its heading; empty text for an empty body."""
    if not body:
        return ""
    return f'<section aria-labelledby="{anchor}"><h{level} id="{anchor}">{escape(title)}</h{level}>\n{body}\n</section>'


def details(title: str, body: str) -> str:
    """Something to unfold; empty text for an empty body."""
    return f"<details><summary>{escape(title)}</summary>{body}</details>" if body else ""


def meter(fraction: float) -> Cell:
    """A fraction as a small bar and as percent."""
    share = min(max(fraction, 0.0), 1.0)
    bar = f'<span class="meter" aria-hidden="true"><i style="width:{100 * share:.1f}%"></i></span>'
    return Cell(f"{bar}{percent_text(fraction)}", number=True)


def table(
    columns: Sequence[str],
    rows: Sequence[Sequence[Any]],
    *,
    label: str,
    numbers: Sequence[int] = (),
    marked: Sequence[int] = (),
) -> str:
    """A table that scrolls sideways by itself where it is too wide; the first cell of a row is its heading.

    ``numbers``: columns that stand to the right. ``marked``: rows to highlight. Columns without any content are left
    out.
    """
    cells = [[Cell.of(one) for one in row] for row in rows]
    kept = [at for at in range(len(columns)) if at == 0 or any(row[at].html for row in cells)]
    head = "".join(_tag("th", columns[at], at in numbers, ' scope="col"') for at in kept)
    body = []
    for number, row in enumerate(cells):
        first = _cell("th", row[0], 0 in numbers, ' scope="row"')
        rest = "".join(_cell("td", row[at], at in numbers, "") for at in kept[1:])
        kind = ' class="off"' if number in marked else ""
        body.append(f"<tr{kind}>{first}{rest}</tr>")
    header = f"<thead><tr>{head}</tr></thead>" if any(columns) else ""
    longest = max((len(unescape(re.sub("<[^>]*>", "", row[0].html))) for row in cells if row), default=0)
    return _scrolling(f"{header}<tbody>{''.join(body)}</tbody>", label, longest)


def pairs(values: Mapping[str, Any], label: str) -> str:
    """Names and values as a table."""
    rows = "".join(
        f'<tr><th scope="row">{escape(str(name))}</th><td class="text">{escape(str(value))}</td></tr>'
        for name, value in values.items()
    )
    return _scrolling(f"<tbody>{rows}</tbody>", label)


def _scrolling(content: str, label: str, longest: int = 0) -> str:
    """``longest``: letters of a row's heading, which is not broken as long as there is room for it."""
    name = escape(label, quote=True)
    style = f' style="--name:{longest}ch"' if longest else ""
    return f'<div class="wide" role="region" aria-label="{name}" tabindex="0"><table{style}>{content}</table></div>'


def _tag(tag: str, text: str, number: bool, attributes: str) -> str:
    kind = ' class="number"' if number else ""
    return f"<{tag}{kind}{attributes}>{escape(text)}</{tag}>"


def _cell(tag: str, cell: Cell, number: bool, attributes: str) -> str:
    kind = ' class="number"' if number or cell.number else ""
    return f"<{tag}{kind}{attributes}>{cell.html}</{tag}>"
