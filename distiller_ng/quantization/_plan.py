"""Who gets which bits, as data, before anything changes (layer 2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from distiller_ng.ops.table import Table

__all__ = ["PlanRow", "QuantPlan"]


@dataclass(frozen=True, slots=True)
class PlanRow:
    """One module: bits of its weight, bias and activations (None: floating point), and which rule decided.

    ``rule`` is the override's key, or ``"default"``. ``note`` says what is special about the module.
    """

    module: str
    type: str
    weights: int | None
    bias: int | None
    activations: int | None
    rule: str = "default"
    note: str = ""

    @property
    def is_quantized(self) -> bool:
        """Whether anything of the module is."""
        return (self.weights, self.bias, self.activations) != (None, None, None)


@dataclass(frozen=True, slots=True)
class QuantPlan:
    """What a quantizer will do to a model; ``str()`` is an aligned table.

    >>> plan = QuantPlan("DorefaQuantizer", (PlanRow("conv1", "Conv2d", 4, None, None),))
    >>> print(plan)
    DorefaQuantizer: bits by module
    Module  Type    Weights  Bias  Activations  Rule     Note
    ------  ------  -------  ----  -----------  -------  ----
    conv1   Conv2d        4  -     -            default
    """

    quantizer: str
    rows: tuple[PlanRow, ...]
    warnings: tuple[str, ...] = ()

    @property
    def table(self) -> Table:
        """The rows as a :class:`~distiller_ng.ops.table.Table`."""
        cells = tuple((r.module, r.type, r.weights, r.bias, r.activations, r.rule, r.note) for r in self.rows)
        columns = ("Module", "Type", "Weights", "Bias", "Activations", "Rule", "Note")
        return Table(f"{self.quantizer}: bits by module", columns, cells)

    def __getitem__(self, module: str) -> PlanRow:
        """The row of one module; raises ``KeyError`` when the plan has none."""
        found = next((row for row in self.rows if row.module == module), None)
        if found is None:
            raise KeyError(module)
        return found

    def with_left(self, reasons: Mapping[str, str]) -> QuantPlan:
        """The plan with the modules that ``reasons`` names in floating point, each with the reason as its note.

        Names the plan has no row for become rows.
        """
        if not reasons:
            return self
        known = {row.module for row in self.rows}
        rows = [
            replace(row, weights=None, bias=None, activations=None, note=_joined(row.note, reasons[row.module]))
            if row.module in reasons
            else row
            for row in self.rows
        ]
        rows += [PlanRow(name, "", None, None, None, "", why) for name, why in reasons.items() if name not in known]
        return replace(self, rows=tuple(rows))

    def with_notes(self, notes: Mapping[str, str]) -> QuantPlan:
        """The plan with notes about modules added to those it has."""
        rows = tuple(replace(row, note="; ".join(filter(None, (row.note, notes.get(row.module))))) for row in self.rows)
        return replace(self, rows=rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __str__(self) -> str:
        return "\n".join([str(self.table), *(f"warning: {text}" for text in self.warnings)])


def _joined(note: str, why: str) -> str:
    return "; ".join(part for part in (note, f"in floating point: {why}") if part)
