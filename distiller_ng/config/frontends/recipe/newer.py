"""Recipes without tags, as the framework that followed SparseML writes them (layer 4)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from distiller_ng.config.frontends.recipe.tags import known_tags
from distiller_ng.config.problems import Report, shown
from distiller_ng.config.spec import ModifierSpec
from distiller_ng.errors import listed
from distiller_ng.names import ALL, ALL_PRUNABLE, PATTERN_PREFIX

__all__ = ["as_tagged"]

_RENAMED = {
    "start": "start_epoch",
    "end": "end_epoch",
    "update": "update_frequency",
    "update_scheduler": "inter_func",
    "mask_structure": "mask_type",
    "apply_globally": "global_sparsity",
}
#: Properties that change nothing here, and why.
_WITHOUT_EFFECT = {
    "sequential_update": "layers are always taken in the order they run",
    "sequential_targets": "layers are always taken in the order they run",
    "offload_hessians": "only one layer's statistics are in memory",
    "preserve_sparsity_mask": "what is zero already stays zero",
}
_TYPES = ("Linear", "Conv1d", "Conv2d", "Conv3d", "Embedding")
_UNSTRUCTURED = "0:0"


def as_tagged(modifier: ModifierSpec, report: Report) -> ModifierSpec:
    """The modifier as SparseML's tag and properties; one without a component here is refused by name."""
    if modifier.tag not in known_tags():
        message = (
            f"{modifier.tag} belongs to the newer framework (llm-compressor) and has no counterpart here; there are "
            f"{listed(known_tags(), limit=40)}"
        )
        report.error(modifier.path, message, at_key=True)
        return modifier
    properties = {_RENAMED.get(name, name): value for name, value in modifier.properties.items()}
    for name, why in _WITHOUT_EFFECT.items():
        if name in properties:
            report.warn((*modifier.path, name), f"{name} is ignored: {why}", at_key=True)
            del properties[name]
    _drop_usual(properties, modifier, report)
    if "targets" in properties and "Quantization" not in modifier.tag:
        properties["params"] = _parameters(properties.pop("targets"), modifier, report)
    return replace(modifier, properties=properties)


def _drop_usual(properties: dict[str, Any], modifier: ModifierSpec, report: Report) -> None:
    """Values that say what holds anyway, and those for which there is nothing."""
    if str(properties.get("mask_type")) == _UNSTRUCTURED:
        del properties["mask_type"]
    if properties.get("quantize") is False:
        del properties["quantize"]
    elif "quantize" in properties:
        where = (*modifier.path, "quantize")
        report.error(where, f"{modifier.tag} prunes only: write a modifier of its own for quantization")
        del properties["quantize"]
    if properties.get("ignore") == [] and "Quantization" not in modifier.tag:
        del properties["ignore"]


def _parameters(targets: Any, modifier: ModifierSpec, report: Report) -> list[str] | str:
    """Modules by type, name or pattern as the weights in them."""
    path = (*modifier.path, "targets")
    entries = [targets] if isinstance(targets, str) else targets
    if not isinstance(entries, list):
        report.error(path, f"targets is a list of modules, got {shown(targets)}")
        return []
    found: list[str] = []
    for position, entry in enumerate(entries):
        if not isinstance(entry, str):
            report.error((*path, position), f"expected a module's name, type or pattern, got {shown(entry)}")
        elif entry in _TYPES:
            report.warn((*path, position), f"{entry} is taken for {ALL_PRUNABLE}: every layer with a weight to prune")
            found.append(ALL_PRUNABLE)
        elif entry.upper() in (ALL, ALL_PRUNABLE):
            found.append(entry)
        else:
            found.append(_weights_in(entry))
    return list(dict.fromkeys(found))


def _weights_in(module: str) -> str:
    """A pattern of the weights of a module, or of all modules inside but norms."""
    is_pattern = module.startswith(PATTERN_PREFIX)
    name = module[len(PATTERN_PREFIX) :].removesuffix("$") if is_pattern else module.replace(".", "\\.")
    return f"{PATTERN_PREFIX}(?:{name})(?:\\.(?!.*[nN]orm).*)?\\.weight$"
