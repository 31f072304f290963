"""Recipes as text: resolved modifiers, in SparseML's own layout (layer 4)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import yaml

from distiller_ng.config.spec import ModifierSpec, RecipeSpec

__all__ = ["VERSION", "recipe_text"]

VERSION = "1.1.0"
_INDENT = "    "


def recipe_text(recipe: RecipeSpec) -> str:
    """A recipe that reads back to an equal one: no variables, properties sorted, None as null.

    >>> print(recipe_text(RecipeSpec((ModifierSpec("EpochRangeModifier", {"end_epoch": 2.0}, ()),))))
    version: 1.1.0
    <BLANKLINE>
    modifiers:
        - !EpochRangeModifier
            end_epoch: 2.0
    """
    lines = [f"version: {VERSION}", ""]
    if not recipe.stages:
        lines += _metadata(recipe.metadata.get(""), "")
        lines += _group("modifiers", recipe.modifiers, "")
    for stage in recipe.stages:
        lines.append(f"{_scalar(stage)}:")
        lines += _metadata(recipe.metadata.get(stage), _INDENT)
        lines += _group(f"{stage}_modifiers", [m for m in recipe.modifiers if m.stage == stage], _INDENT)
        lines.append("")
    return "\n".join(lines).rstrip("\n") + "\n"


def _metadata(content: Any, indent: str) -> list[str]:
    if content is None:
        return []
    text = yaml.safe_dump({"__metadata__": content}, sort_keys=True, default_flow_style=False, allow_unicode=True)
    return [*(indent + line for line in text.splitlines()), ""]


def _group(name: str, modifiers: Iterable[ModifierSpec], indent: str) -> list[str]:
    lines = [f"{indent}{_scalar(name)}:"]
    for modifier in modifiers:
        lines.append(f"{indent}{_INDENT}- !{modifier.tag}")
        for key in sorted(modifier.properties):
            lines.append(f"{indent}{_INDENT * 2}{_scalar(key)}: {_flow(modifier.properties[key])}")
        lines.append("")
    if len(lines) == 1:
        lines[0] += " []"
    elif lines[-1] == "":
        lines.pop()
    return lines


def _flow(value: Any) -> str:
    """A value on one line."""
    if isinstance(value, Mapping | list | tuple):
        return _dumped(value).strip()
    return _scalar(value)


def _scalar(value: Any) -> str:
    return _dumped(value).removesuffix("\n").removesuffix("\n...").strip()


def _dumped(value: Any) -> str:
    options: dict[str, Any] = {"default_flow_style": True, "width": math.inf, "sort_keys": False, "allow_unicode": True}
    return str(yaml.safe_dump(_plain(value), **options))


def _plain(value: Any) -> Any:
    """Types that YAML knows."""
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return value
