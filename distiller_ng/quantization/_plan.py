"""Who gets which bits, as data, before anything changes (layer 2)."""

from __future__ import annotations

from dataclasses import dataclass

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

    def __len__(self) -> int:
        return len(self.rows)

    def __str__(self) -> str:
        return "\n".join([str(self.table), *(f"warning: {text}" for text in self.warnings)])
