"""Recipes without tags, as the framework that followed SparseML writes them (layer 4)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from distiller_ng.config.frontends.recipe.tags import known_tags
from distiller_ng.config.problems import Report
from distiller_ng.config.spec import ModifierSpec
from distiller_ng.errors import listed

__all__ = ["as_tagged"]

_TIMES = {"start": "start_epoch", "end": "end_epoch", "update": "update_frequency"}


def as_tagged(modifier: ModifierSpec, report: Report) -> ModifierSpec:
    """The modifier with SparseML's names of its times; one this library has no component for is refused by name."""
    if modifier.tag not in known_tags():
        message = (
            f"{modifier.tag} belongs to the newer framework (llm-compressor) and has no counterpart here; there are "
            f"{listed(known_tags(), limit=40)}"
        )
        report.error(modifier.path, message, at_key=True)
        return modifier
    properties: dict[str, Any] = {_TIMES.get(name, name): value for name, value in modifier.properties.items()}
    return replace(modifier, properties=properties)
