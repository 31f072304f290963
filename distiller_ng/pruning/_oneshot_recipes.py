"""From the properties of the newer framework's one-shot modifiers to constructor arguments, and back (layer 2)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from distiller_ng.errors import ArgumentError
from distiller_ng.names import ALL, ALL_PRUNABLE, ALL_PRUNABLE_WITH_EMBEDDINGS, PATTERN_PREFIX

__all__ = ["oneshot_from_recipe", "oneshot_to_recipe"]

_UNSTRUCTURED = "0:0"
_CLASS_NAME = re.compile(r"[A-Z]\w*")
#: Properties about how the work is done, which is another here.
_WORKING = ("sequential_targets", "sequential_update", "offload_hessians", "preserve_sparsity_mask", "use_cache")
_PROFILES = ("sparsity_profile", "owl_m", "owl_lmbda")


def oneshot_from_recipe(properties: Mapping[str, Any], note: Callable[[str], None]) -> dict[str, Any]:
    """``mask_structure: "0:0"`` is unstructured; ``targets`` and ``ignore`` name modules, whose weights are meant."""
    arguments = dict(properties)
    if arguments.get("mask_type") == _UNSTRUCTURED:
        arguments["mask_type"] = "unstructured"
    for name in _WORKING:
        if arguments.pop(name, None) not in (None, False, [], {}):
            note(f"{name} has no effect here: layers are always pruned in the order they run")
    for name in _PROFILES:
        if arguments.pop(name, None) is not None and name == "sparsity_profile":
            message = "sparsity_profile has no counterpart; for a sparsity by layer by one ranking write scope: global"
            raise ArgumentError(message, argument=("sparsity_profile",))
    if arguments.get("weights") in (ALL_PRUNABLE_WITH_EMBEDDINGS, [ALL_PRUNABLE_WITH_EMBEDDINGS]):
        arguments["weights"] = [ALL_PRUNABLE]  # nothing is multiplied with an embedding
    targets, ignored = _listed("targets", arguments), _listed("ignore", arguments)
    if targets or ignored:
        arguments["weights"] = _weights(targets, ignored, note)
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


def _weights(targets: Sequence[str], ignored: Sequence[str], note: Callable[[str], None]) -> list[str]:
    everything = [t for t in targets if t in (ALL, ALL_PRUNABLE) or _CLASS_NAME.fullmatch(t)]
    if everything or not targets:
        for name in everything:
            if name not in (ALL, ALL_PRUNABLE):
                note(f"targets {name!r} names a class: every prunable weight is taken")
        if not ignored:
            return [ALL_PRUNABLE]
        named = r".*"
    else:
        named = "|".join(_module(target) for target in targets)
    unless = f"(?!(?:{'|'.join(map(_module, ignored))})(?:\\.|$))" if ignored else ""
    return [f"{PATTERN_PREFIX}{unless}(?:{named})(?:\\..*)?\\.weight"]


def _module(name: str) -> str:
    """A pattern for module names, which match from the start."""
    return name[len(PATTERN_PREFIX) :] if name.startswith(PATTERN_PREFIX) else re.escape(name)
