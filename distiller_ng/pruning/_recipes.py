"""From the properties that SparseML's pruning modifiers share to constructor arguments, and back (layer 2)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from distiller_ng.errors import ArgumentError
from distiller_ng.ops.recipe_targets import from_recipe_target, to_recipe_target

__all__ = ["gradual_from_recipe", "gradual_to_recipe"]


def gradual_from_recipe(properties: Mapping[str, Any], note: Callable[[str], None]) -> dict[str, Any]:
    """``global_sparsity`` becomes ``scope``; patterns of ``final_sparsity`` match from the start only, as all do there.

    ``phased`` and ``score_type`` are accepted with their default values only, as in SparseML.
    """
    arguments = dict(properties)
    if "global_sparsity" in arguments:
        arguments["scope"] = "global" if _flag("global_sparsity", arguments.pop("global_sparsity")) else "layer"
    if arguments.pop("phased", False):
        message = "phased: true is another algorithm: write !ACDCPruningModifier with compression_sparsity"
        raise ArgumentError(message, argument=("phased",))
    if arguments.pop("score_type", "magnitude") != "magnitude":
        message = "score_type is magnitude; for others write !MovementPruningModifier, !OBSPruningModifier, ..."
        raise ArgumentError(message, argument=("score_type",))
    if isinstance(arguments.get("final_sparsity"), Mapping):
        final = {level: _each(names, from_recipe_target) for level, names in arguments["final_sparsity"].items()}
        arguments["final_sparsity"] = final
        if arguments.get("weights") in ([], (), ""):
            del arguments["weights"]
    return arguments


def gradual_to_recipe(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The reverse of :func:`gradual_from_recipe`."""
    properties = dict(arguments)
    if "scope" in properties:
        properties["global_sparsity"] = properties.pop("scope") == "global"
    if isinstance(properties.get("final_sparsity"), Mapping):
        final = {level: _each(names, to_recipe_target) for level, names in properties["final_sparsity"].items()}
        properties["final_sparsity"] = final
        properties.setdefault("weights", [])
    return properties


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise ArgumentError(f"{name} is true or false, got {value!r}", argument=(name,))
    return value


def _each(names: Any, change: Callable[[str], str]) -> Any:
    if isinstance(names, str):
        return change(names)
    if isinstance(names, Sequence):
        return [change(name) if isinstance(name, str) else name for name in names]
    return names
