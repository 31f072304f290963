"""From the properties of the newer framework's one-shot modifiers to constructor arguments, and back (layer 2)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from distiller_ng.errors import ArgumentError
from distiller_ng.names import ALL, ALL_PRUNABLE, ALL_PRUNABLE_WITH_EMBEDDINGS, PATTERN_PREFIX

__all__ = ["oneshot_from_recipe", "oneshot_to_recipe"]

_UNSTRUCTURED = "0:0"
_TOKENS = (ALL, ALL_PRUNABLE, ALL_PRUNABLE_WITH_EMBEDDINGS)


def oneshot_from_recipe(properties: Mapping[str, Any], note: Callable[[str], None]) -> dict[str, Any]:
    """``mask_structure: "0:0"`` is unstructured; ``ignore`` names modules whose weights are left out."""
    arguments = dict(properties)
    if arguments.get("mask_type") == _UNSTRUCTURED:
        arguments["mask_type"] = "unstructured"
    if arguments.pop("sparsity_profile", None) is not None:
        message = "sparsity_profile has no counterpart; for a sparsity by layer by one ranking write scope: global"
        raise ArgumentError(message, argument=("sparsity_profile",))
    for name in ("owl_m", "owl_lmbda"):
        arguments.pop(name, None)
    given = arguments.get("weights")
    named = [given] if isinstance(given, str) else list(given or [ALL_PRUNABLE])
    # Nothing is multiplied with an embedding.
    named = [ALL_PRUNABLE if name == ALL_PRUNABLE_WITH_EMBEDDINGS else name for name in named]
    ignored = _listed("ignore", arguments)
    arguments["weights"] = [_without(name, ignored) for name in named] if ignored else named
    if ignored:
        note("ignore: the modules and all inside them are left out")
    return arguments


def oneshot_to_recipe(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The reverse, as far as there are such properties."""
    properties = dict(arguments)
    if properties.get("mask_type") == "unstructured":
        properties["mask_type"] = _UNSTRUCTURED
    return properties


def _listed(name: str, arguments: dict[str, Any]) -> list[str]:
    value = arguments.pop(name, None)
    names = [value] if isinstance(value, str) else list(value or ())
    if not all(isinstance(item, str) for item in names):
        raise ArgumentError(f"{name} lists names of modules, got {value!r}", argument=(name,))
    return names


def _without(target: str, ignored: Sequence[str]) -> str:
    """A pattern for what a target names outside the ignored modules."""
    unless = f"(?!(?:{'|'.join(map(_module, ignored))})(?:\\.|$))"
    if target in _TOKENS:
        return f"{PATTERN_PREFIX}{unless}(?!.*[nN]orm)(?:.*\\.)?weight"
    return f"{PATTERN_PREFIX}{unless}{_module(target)}"


def _module(name: str) -> str:
    """A pattern for names, which match from the start."""
    return name[len(PATTERN_PREFIX) :].removesuffix("$") if name.startswith(PATTERN_PREFIX) else re.escape(name)
