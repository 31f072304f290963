"""Making a plan: every check of a quantizer against its model, before anything changes (layer 2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from distiller_ng.errors import ArgumentError, listed
from distiller_ng.names import canonical_name
from distiller_ng.quantization._configuration import is_marked
from distiller_ng.quantization._overrides import Overrides, OverrideTypeError
from distiller_ng.quantization._plan import PlanRow, QuantPlan
from distiller_ng.quantization._replacement import check_settings
from distiller_ng.quantization._weights import QuantizedLayer, check_shapes, is_quantizable, why_not_quantizable

if TYPE_CHECKING:
    from distiller_ng.quantization.base import Quantizer

__all__ = ["Planner"]


@dataclass(slots=True)
class Planner:
    """Which override holds for which module of one model. ``rules``: ``{module name: key}``; ``notes``: warnings."""

    rules: dict[str, str]
    notes: list[str]
    aliases: dict[str, list[str]]

    @classmethod
    def of(cls, model: nn.Module, overrides: Overrides) -> Planner:
        """Match the overrides; a shared module gets what its first name does, or else the next."""
        rules, notes = overrides.assign(model)
        first: dict[int, str] = {}
        aliases: dict[str, list[str]] = {}
        for name, module in model.named_modules(remove_duplicate=False):
            owner = first.setdefault(id(module), name)
            if owner == name:
                continue
            aliases.setdefault(owner, []).append(name)
            other = rules.get(name)
            if other is not None and rules.setdefault(owner, other) != other:
                notes.append(
                    f"{owner!r} and {name!r} are one module; override {rules[owner]!r} holds for both, not {other!r}"
                )
        return cls(rules, notes, aliases)

    def plan(self, quantizer: Quantizer, *, is_done: bool) -> QuantPlan:
        """The plan of ``quantizer``; with ``is_done`` the model was prepared before, and settings are not checked."""
        model = quantizer.model
        modules = dict(model.named_modules())
        if not is_done:
            for name, module in modules.items():
                check_shapes(module)
                self._check_finite(quantizer, name, module)
            self._check_settings(quantizer, modules)
        rows = [row for name, module in modules.items() if (row := self._row(quantizer, name, module)) is not None]
        extra = quantizer.extra_rows()
        notes = [] if is_done else self._notes(quantizer, modules, rows)
        return QuantPlan(type(quantizer).__name__, tuple(extra + rows), tuple(notes))

    def _notes(self, quantizer: Quantizer, modules: dict[str, nn.Module], rows: list[PlanRow]) -> list[str]:
        """Everything legal but odd."""
        found = [self._containers(quantizer, modules), self._nothing(quantizer, rows), self._left(quantizer)]
        return [note for notes in (*found, quantizer.extra_notes()) for note in notes]

    def _row(self, quantizer: Quantizer, name: str, module: nn.Module) -> PlanRow | None:
        if name not in quantizer.module_qbits_map:
            return None  # part of what a quantizer put there
        bits, rule = quantizer.module_qbits_map[name], self.rules.get(name)
        function = (
            None if isinstance(module, tuple(quantizer.replacement_blacklist)) else quantizer.replacement_for(module)
        )
        is_ours = is_marked(module) and not isinstance(module, QuantizedLayer)
        acts = bits.acts if is_ours or (function is not None and name) else None
        has = {p for p in ("weight", "bias") if module._parameters.get(p) is not None}
        weights = bits.wts if "weight" in has and quantizer.quantizes_parameters else None
        bias = bits.bias if "bias" in has and quantizer.quantizes_parameters else None
        note = why_not_quantizable(module)
        if (
            not is_ours
            and function is None
            and not is_quantizable(module)
            and not note
            and (rule is None or any(module.children()))
        ):
            return None
        if name in self.aliases:
            note = "; ".join(part for part in (note, f"also called {listed(self.aliases[name])}") if part)
        return PlanRow(
            canonical_name(name) or name or "(model)",
            type(module).__name__,
            weights,
            bias,
            acts,
            rule or "default",
            note,
        )

    @staticmethod
    def _check_finite(quantizer: Quantizer, name: str, module: nn.Module) -> None:
        """Raise :class:`ArgumentError` for NaN and infinity: no range and no step can come of them."""
        bits = quantizer.module_qbits_map[name]
        for parameter, wanted in (("weight", bits.wts), ("bias", bits.bias)):
            tensor = module._parameters.get(parameter)
            if wanted is None or tensor is None or tensor.is_meta:
                continue
            if not bool(torch.isfinite(tensor).all()):
                where = f"{canonical_name(name)}.{parameter}" if name else parameter
                raise ArgumentError(f"{where} holds NaN or infinity and cannot be quantized: did training diverge?")

    def _check_settings(self, quantizer: Quantizer, modules: dict[str, nn.Module]) -> None:
        taken: dict[str, set[str]] = {}
        for name, module in modules.items():
            settings, function = quantizer.module_overrides_map[name], quantizer.replacement_for(module)
            if not settings or function is None or isinstance(module, tuple(quantizer.replacement_blacklist)):
                continue
            key = self.rules[name]
            check_settings(function, settings, key=key, owner=type(quantizer).__name__, kind=type(module))
            taken.setdefault(key, set()).update(settings)
        for key in dict.fromkeys(self.rules.values()):
            names = [name for name, rule in self.rules.items() if rule == key and name in modules]
            settings = quantizer.module_overrides_map[names[0]] if names else {}
            left = [setting for setting in settings if setting not in taken.get(key, set())]
            if left:
                raise OverrideTypeError(
                    f"override {key!r}: no module it matches takes {listed(map(repr, left))}; bits_activations, "
                    "bits_weights and bits_bias can be set for any",
                    argument=("overrides", key, left[0]),
                )

    def _containers(self, quantizer: Quantizer, modules: dict[str, nn.Module]) -> list[str]:
        """Overrides that match only modules which hold others: nothing of those inside follows from them."""
        notes = []
        for key in dict.fromkeys(self.rules.values()):
            names = [name for name, rule in self.rules.items() if rule == key and name in modules]
            if names and all(_only_holds_others(quantizer, modules[name]) for name in names):
                inside = key + r"\..*"
                notes.append(
                    f"override {key!r} matches only {listed(names, limit=3)}, which has nothing of its own to "
                    f"quantize; for the modules inside write {inside!r}"
                )
        return notes

    def _left(self, quantizer: Quantizer) -> list[str]:
        """Weights that should be quantized and cannot be."""
        left = []
        for name, module in quantizer.model.named_modules():
            settings = quantizer.overrides[self.rules[name]] if name in self.rules else {}
            if settings.get("bits_weights", quantizer.default_qbits.wts) is not None and why_not_quantizable(module):
                left.append(f"{name} ({type(module).__name__})")
        if not (left and quantizer.quantizes_parameters):
            return []
        return [f"weights of {listed(left, limit=4)} stay in floating point; the plan says why"]

    @staticmethod
    def _nothing(quantizer: Quantizer, rows: list[PlanRow]) -> list[str]:
        """What was asked for and does not happen."""
        notes = []
        bits, kinds = quantizer.default_qbits, [kind.__name__ for kind, f in quantizer.replacement_factory.items() if f]
        if bits.acts is not None and kinds and not any(row.activations is not None for row in rows):
            found = any(quantizer.replacement_for(module) is not None for module in quantizer.model.modules())
            why = (
                f"overrides leave every module of the types {listed(kinds, limit=4)} alone"
                if found
                else f"the model has no module of the types {listed(kinds, limit=4)} (functions such as torch.relu "
                "cannot be replaced: use modules)"
            )
            notes.append(f"bits_activations={bits.acts}, but no activations will be quantized: {why}")
        if bits.wts is not None and quantizer.quantizes_parameters and not any(row.weights is not None for row in rows):
            notes.append(f"bits_weights={bits.wts}, but no weights will be quantized")
        return notes


def _only_holds_others(quantizer: Quantizer, module: nn.Module) -> bool:
    """Whether nothing about a module itself could be quantized."""
    has_own = is_quantizable(module) or why_not_quantizable(module) or quantizer.replacement_for(module) is not None
    return any(module.children()) and not has_own
