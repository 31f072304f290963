"""Structural changes made to a model, kept with it (layer 1).

A checkpoint must be able to rebuild the structure, and copies of the model (``copy.deepcopy``, an averaged model) must
know how they differ from their source code too. So the list travels with the root module, in a plain attribute of the
name Distiller used, as JSON values.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from distiller_ng.names import unwrap

__all__ = ["ATTRIBUTE", "changes_of", "record_change", "removed_entries", "set_changes"]

#: The attribute of the root module that holds the list.
ATTRIBUTE = "thinning_recipes"


def record_change(model: nn.Module, transform: str, config: Mapping[str, Any], metadata: Mapping[str, Any]) -> None:
    """Remember a change: ``config`` says how to make it again, both hold JSON values only."""
    entry = {"transform": transform, "version": 1, "config": dict(config), "metadata": dict(metadata)}
    set_changes(model, [*changes_of(model), entry])


def changes_of(model: nn.Module) -> list[dict[str, Any]]:
    """Every change made to the model, in order: ``{transform, version, config, metadata}``."""
    return list(getattr(unwrap(model), ATTRIBUTE, []))


def set_changes(model: nn.Module, changes: list[dict[str, Any]]) -> None:
    """Replace the list."""
    setattr(unwrap(model), ATTRIBUTE, changes)


def removed_entries(model: nn.Module, tensor: str, dim: int) -> int:
    """How many entries of a dimension thinning has taken from a parameter so far (its canonical name)."""
    cuts = (cut for change in changes_of(model) for cut in change["config"].get("cuts", ()))
    return sum(len(removed) for name, cut_dim, removed, _ in cuts if name == tensor and cut_dim == dim)
