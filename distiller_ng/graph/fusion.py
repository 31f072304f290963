"""Chains of modules and putting one module in place of each (layer 1).

Modules belong together by what reads whose output in a traced pass, not by the order they run in: branches whose
operations take turns are kept apart.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from torch import nn

from distiller_ng.errors import ArgumentError
from distiller_ng.graph._summary_ops import ModuleNames
from distiller_ng.graph.inputs import ExampleInputsLike
from distiller_ng.graph.summary_graph import AdjacentsEntry, SummaryGraph
from distiller_ng.ops.modules import has_parts, normalize_module_name

__all__ = ["Chain", "ModuleTypes", "connections_of", "find_chains", "fuse_modules", "put_in_place_"]

_logger = logging.getLogger(__name__)

#: One place of a sequence: a module type, or several of which any will do.
ModuleTypes: TypeAlias = "type[nn.Module] | Sequence[type[nn.Module]]"
#: Decides by the module alone whether it may stand at a place of a sequence.
Matcher: TypeAlias = "Callable[[nn.Module], bool]"


@dataclass(frozen=True, slots=True)
class Chain:
    """Modules that read nothing but each other's output, first to last, with their names in the model.

    ``entries``: the adjacency entries of each module's operations, in the order they run.
    """

    names: tuple[str, ...]
    modules: tuple[nn.Module, ...]
    entries: tuple[tuple[AdjacentsEntry, ...], ...]


def fuse_modules(
    model: nn.Module,
    types_sequence: Sequence[ModuleTypes],
    fuse_fn: Callable[[list[nn.Module]], nn.Module | None],
    dummy_input: ExampleInputsLike | None = None,
    adjacency_map: Mapping[str, AdjacentsEntry] | None = None,
) -> nn.Module:
    """Replace every chain of modules of given types by one module, in place; ``model`` is returned.

    ``types_sequence``: the type of each module of a chain, or a tuple of types: ``((nn.Conv1d, nn.Conv2d), nn.ReLU)``.
    ``fuse_fn(modules)`` returns the module that takes the place of the first (it may be the first itself), the others
    become ``nn.Identity``; or None to leave a chain as it is. The new module's attribute ``fused_modules`` lists the
    names of the others. The connections come from ``adjacency_map`` (of :meth:`SummaryGraph.adjacency_map` with all
    operations) or from tracing the model on ``dummy_input``.

    A chain is unbroken: each module is called once, its output goes to the next module only and is not returned by the
    model. Modules with children and modules called twice are never part of one. All chains are fused before the first
    is put in place, so that an error of ``fuse_fn`` leaves the model's structure as it was.

    Raises :class:`ArgumentError` when neither source of connections is given and for a sequence that is not made of
    module types, :class:`GraphError` when the model cannot be traced. Example::

        fuse_modules(model, (nn.Conv2d, nn.ReLU), lambda pair: nn.Sequential(*pair), dummy_input=x)
    """
    matchers = [_matcher(types, place) for place, types in enumerate(_as_sequence(types_sequence))]
    connections = connections_of(model, dummy_input, adjacency_map)
    fused = []
    for chain in find_chains(model, matchers, connections):
        module = fuse_fn(list(chain.modules))
        if module is None:
            _logger.debug("%s are left apart", ", ".join(chain.names))
            continue
        if not isinstance(module, nn.Module):
            raise ArgumentError(
                f"fuse_fn returns a module or None; for {', '.join(chain.names)} it returned {type(module).__name__}",
                argument=("fuse_fn",),
            )
        fused.append((chain, module))
    for chain, module in fused:
        put_in_place_(model, chain, module)
    return model


def put_in_place_(model: nn.Module, chain: Chain, module: nn.Module) -> None:
    """``module`` where the first of a chain is, ``nn.Identity`` where the others are."""
    for old in chain.modules[1:]:
        _replace_module_(model, old, nn.Identity().train(old.training))
    # Last: the new module may hold the old ones.
    if module is not chain.modules[0]:
        _replace_module_(model, chain.modules[0], module)
    # Distiller's callers read which modules a fused one stands for.
    setattr(module, "fused_modules", list(chain.names[1:]))  # noqa: B010 - nn.Module declares no such attribute


def _replace_module_(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Register ``new`` wherever ``old`` is registered below ``model``."""
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if child is old:
                parent._modules[name] = new


def connections_of(
    model: nn.Module, dummy_input: ExampleInputsLike | None, adjacency_map: Mapping[str, AdjacentsEntry] | None
) -> Mapping[str, AdjacentsEntry]:
    """The adjacency map to use. Raises :class:`ArgumentError` when there is nothing to make one from."""
    if adjacency_map is not None:
        return adjacency_map
    if dummy_input is None:
        raise ArgumentError(
            "which module follows which takes a traced pass: give dummy_input=x, what the model is called with, or "
            "adjacency_map=SummaryGraph(model, x).adjacency_map()",
            argument=("dummy_input",),
        )
    return SummaryGraph(model, dummy_input).adjacency_map()


# -- chains ---------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Unit:
    """All operations of one module, or a single operation that belongs to no module of its own."""

    name: str
    module: nn.Module | None
    calls: set[str] = field(default_factory=set)
    before: dict[str, None] = field(default_factory=dict)
    after: dict[str, None] = field(default_factory=dict)
    escapes: bool = False
    joined: bool = False
    entries: list[AdjacentsEntry] = field(default_factory=list)


def find_chains(
    model: nn.Module, matchers: Sequence[Matcher], adjacency_map: Mapping[str, AdjacentsEntry]
) -> list[Chain]:
    """Every unbroken chain of modules that match, in the order they run; no module is in two."""
    units = _units(model, adjacency_map)
    used: set[str] = set()
    chains = []
    for unit in units.values():
        members = _follow(unit, units, matchers, used)
        if members:
            used.update(member.name for member in members)
            modules = tuple(member.module for member in members if member.module is not None)
            entries = tuple(tuple(member.entries) for member in members)
            chains.append(Chain(tuple(member.name for member in members), modules, entries))
    return chains


def _follow(
    start: _Unit, units: Mapping[str, _Unit], matchers: Sequence[Matcher], used: Collection[str]
) -> list[_Unit]:
    members: list[_Unit] = []
    unit = start
    for place, matches in enumerate(matchers):
        if place:
            previous = members[-1]
            if previous.escapes or len(previous.after) != 1:
                return []
            unit = units[next(iter(previous.after))]
            if unit.joined or list(unit.before) != [previous.name]:
                return []
        if unit.module is None or unit.name in used or len(unit.calls) != 1 or not matches(unit.module):
            return []
        members.append(unit)
    return members


def _units(model: nn.Module, adjacency_map: Mapping[str, AdjacentsEntry]) -> dict[str, _Unit]:
    names = ModuleNames(model)
    modules = dict(model.named_modules(remove_duplicate=False))
    owner: dict[str, str] = {}
    units: dict[str, _Unit] = {}
    for operation, entry in adjacency_map.items():
        name = names.full(names.plain(entry.module or operation))
        if name not in modules:  # the map may be that of the model inside a wrapper
            name = names.full(normalize_module_name(name))
        module = modules.get(name)
        if module is None or module is model or has_parts(module):
            name, module = operation, None
        owner[operation] = name
        unit = units.setdefault(name, _Unit(name, module))
        unit.calls.add(entry.call)
        unit.escapes |= entry.escapes
        unit.joined |= entry.joined
        unit.entries.append(entry)
    for operation, entry in adjacency_map.items():
        unit = units[owner[operation]]
        for near, found in ((entry.predecessors, unit.before), (entry.successors, unit.after)):
            found.update(dict.fromkeys(owner.get(other.name, other.name) for other in near))
    for unit in units.values():
        unit.before.pop(unit.name, None)
        unit.after.pop(unit.name, None)
    return units


def _as_sequence(types_sequence: Any) -> Iterable[Any]:
    if not isinstance(types_sequence, list | tuple) or not types_sequence:
        raise ArgumentError(
            "types_sequence lists the module type at each place of a chain, e.g. (nn.Conv2d, nn.ReLU) or "
            f"((nn.Conv1d, nn.Conv2d), nn.ReLU); got {types_sequence!r}",
            argument=("types_sequence",),
        )
    return types_sequence


def _matcher(types: Any, place: int) -> Matcher:
    allowed = tuple(types) if isinstance(types, list | tuple) else (types,)
    if not allowed or not all(isinstance(kind, type) for kind in allowed):
        raise ArgumentError(
            f"types_sequence: place {place} must be a module type or a tuple of them; got {types!r}",
            argument=("types_sequence", place),
        )
    return lambda module: isinstance(module, allowed)
