"""A table as data, with its printed, CSV, JSON and rich forms (layer 1; users import it from ``reports``)."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from distiller_ng.errors import ArgumentError, did_you_mean
from distiller_ng.ops.files import write_text_atomically

if TYPE_CHECKING:
    from rich.table import Table as RichTable

__all__ = ["Cell", "Table", "pretty_int", "size_to_str"]

Cell: TypeAlias = "str | int | float | bool | None"


def size_to_str(size: Sequence[int]) -> str:
    """A shape as text: ``torch.Size([16, 3, 3, 3])`` -> ``"(16, 3, 3, 3)"``."""
    return "(" + ", ".join(str(int(dimension)) for dimension in size) + ")"


def pretty_int(i: int) -> str:
    """An integer with thousands separated: ``1234567`` -> ``"1,234,567"``."""
    return f"{i:,}"


@dataclass(frozen=True)
class Table:
    """Rows under named columns. Cells are text, numbers, booleans or None.

    >>> table = Table("Layers", ("Name", "MACs"), (("conv1", 352800), ("fc", 840)))
    >>> print(table)
    Layers
    Name     MACs
    -----  ------
    conv1  352800
    fc        840
    >>> table["MACs"]
    [352800, 840]

    Raises :class:`ArgumentError` when a row has another number of cells than there are columns.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    decimals: int = 5

    def __post_init__(self) -> None:
        for number, row in enumerate(self.rows):
            if len(row) != len(self.columns):
                raise ArgumentError(
                    f"table {self.title!r}: row {number} has {len(row)} cells for {len(self.columns)} columns"
                )

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, name: str) -> list[Cell]:
        return self.column(name)

    def column(self, name: str) -> list[Cell]:
        """The cells of one column, top to bottom. Raises :class:`ArgumentError` for an unknown one."""
        if name not in self.columns:
            raise ArgumentError(f"table {self.title!r} has no column {name!r}. {did_you_mean(name, self.columns)}")
        position = self.columns.index(name)
        return [row[position] for row in self.rows]

    def records(self) -> list[dict[str, Cell]]:
        """One dictionary a row."""
        return [dict(zip(self.columns, row)) for row in self.rows]

    def __str__(self) -> str:
        texts = [[self._text(cell) for cell in row] for row in self.rows]
        widths = [max(len(line[i]) for line in [self.columns, *texts]) for i in range(len(self.columns))]
        right = [self._is_numeric(name) for name in self.columns]
        lines = [
            "  ".join(text.rjust(width) if r else text.ljust(width) for text, width, r in zip(line, widths, right))
            for line in [list(self.columns), ["-" * width for width in widths], *texts]
        ]
        return "\n".join(line.rstrip() for line in ([self.title, *lines] if self.title else lines))

    def to_csv(self, path: str | os.PathLike[str] | None = None) -> str:
        """Comma-separated text with a header line; written to ``path`` too (atomically) if one is given."""
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(self.columns)
        writer.writerows(self.rows)
        return self._deliver(buffer.getvalue(), path)

    def to_json(self, path: str | os.PathLike[str] | None = None) -> str:
        """``{"title", "columns", "rows": [{column: cell}]}``; NaN and infinity, which JSON lacks, become null."""
        rows = [{name: _finite(cell) for name, cell in record.items()} for record in self.records()]
        text = json.dumps({"title": self.title, "columns": list(self.columns), "rows": rows}, indent=2) + "\n"
        return self._deliver(text, path)

    def to_rich(self) -> RichTable:
        """A ``rich.table.Table`` for terminals."""
        from rich.table import Table as RichTable
        from rich.text import Text

        table = RichTable(title=self.title or None)
        for name in self.columns:
            table.add_column(name, justify="right" if self._is_numeric(name) else "left")
        for row in self.rows:
            table.add_row(*(Text(self._text(cell)) for cell in row))  # Text: names may hold square brackets
        return table

    def _is_numeric(self, name: str) -> bool:
        cells = [cell for cell in self.column(name) if cell is not None]
        return bool(cells) and not any(isinstance(cell, str) for cell in cells)

    def _text(self, cell: Cell) -> str:
        if cell is None:
            return "-"
        if isinstance(cell, float):
            return f"{cell:.{self.decimals}f}"
        return str(cell)

    @staticmethod
    def _deliver(text: str, path: str | os.PathLike[str] | None) -> str:
        if path is not None:
            write_text_atomically(path, text)
        return text


def _finite(cell: Cell) -> Cell:
    return None if isinstance(cell, float) and not math.isfinite(cell) else cell
