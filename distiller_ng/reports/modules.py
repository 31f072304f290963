"""The layers of a model and their attributes (layer 4)."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from torch import nn

from distiller_ng.names import canonical_name, unwrap
from distiller_ng.ops.modules import has_children
from distiller_ng.reports.table import Table

__all__ = ["attributes_summary", "attributes_summary_tbl", "modules_summary", "modules_tbl_summary"]


def modules_summary(model: nn.Module) -> Table:
    """Name and type of every module that contains no other."""
    rows = tuple((name, type(module).__name__) for name, module in _leaves(model))
    return Table("Modules:", ("Name", "Type"), rows)


def modules_tbl_summary(model: nn.Module) -> str:
    """:func:`modules_summary` as text."""
    return str(modules_summary(model))


def attributes_summary(model: nn.Module | Any, ignore_attrs: Collection[str] = ()) -> Table:
    """Name, type and attributes of every layer, without the attributes named in ``ignore_attrs``.

    Given a model, the attributes are what ``print(model)`` shows of a layer; given a graph with Distiller's ``ops``
    (``{name: {"name", "type", "attrs"}}``), they are its operations' attributes.
    """
    if isinstance(model, nn.Module):
        rows = [(name, type(module).__name__, _shown(module, ignore_attrs)) for name, module in _leaves(model)]
    else:
        operations: Mapping[str, Mapping[str, Any]] = model.ops
        rows = [
            (op["name"], op["type"], ", ".join(f"{k}={v}" for k, v in op["attrs"].items() if k not in ignore_attrs))
            for op in operations.values()
        ]
    return Table("Attributes:", ("Name", "Type", "Attributes"), tuple(rows))


def attributes_summary_tbl(model: nn.Module | Any, ignore_attrs: Collection[str] = ()) -> str:
    """:func:`attributes_summary` as text."""
    return str(attributes_summary(model, ignore_attrs))


def _leaves(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, module in unwrap(model).named_modules():
        if not has_children(module):
            yield canonical_name(name) or name, module


def _shown(module: nn.Module, ignore_attrs: Collection[str]) -> str:
    """``extra_repr`` without some ``name=value`` parts; commas inside brackets do not separate."""
    parts: list[str] = []
    for piece in module.extra_repr().split(", "):
        inside = parts and parts[-1].count("(") > parts[-1].count(")")
        if inside:
            parts[-1] += f", {piece}"
        else:
            parts.append(piece)
    return ", ".join(part for part in parts if part.partition("=")[0] not in ignore_attrs)
