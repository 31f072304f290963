"""Layers by name, for the extensions that act on modules (layer 3)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from torch import nn

from distiller_ng.errors import ArgumentError, TargetError, did_you_mean
from distiller_ng.names import ALL, ALL_PRUNABLE, PATTERN_PREFIX, canonical_name, unwrap

__all__ = ["check_layer_names", "select_layers"]

_PRUNABLE = (nn.Linear, nn.modules.conv._ConvNd)


def check_layer_names(value: Any) -> list[str]:
    """``value`` as a list of names; raises :class:`ArgumentError` for an empty one or anything else."""
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, Sequence) or not names or not all(isinstance(name, str) and name for name in names):
        raise ArgumentError(f"layers is a list of module names, got {value!r}", argument=("layers",))
    return list(names)


def select_layers(model: nn.Module, names: Sequence[str]) -> dict[str, nn.Module]:
    """The modules that names, ``re:`` patterns (from a name's start) and tokens mean, in model order.

    ``__ALL_PRUNABLE__``: convolutions and linear layers; ``__ALL__``: every module without modules inside.

    Raises :class:`TargetError` for a name that matches none.
    """
    inner = unwrap(model)
    modules = {canonical_name(name): module for name, module in inner.named_modules() if module is not inner}
    wanted: set[str] = set()
    for position, name in enumerate(names):
        found = _matching(modules, name, ("layers", position))
        if not found:
            message = f"{name!r} is no module of the model. {did_you_mean(name, modules)}"
            raise TargetError(message, argument=("layers", position))
        wanted |= found
    return {name: module for name, module in modules.items() if name in wanted}


def _matching(modules: dict[str, nn.Module], name: str, argument: tuple[str | int, ...]) -> set[str]:
    if name.upper() == ALL:
        return {known for known, module in modules.items() if not any(module.children())}
    if name.upper() == ALL_PRUNABLE:
        return {known for known, module in modules.items() if isinstance(module, _PRUNABLE)}
    if not name.startswith(PATTERN_PREFIX):
        return {canonical_name(name)} & modules.keys()
    try:
        pattern = re.compile(name[len(PATTERN_PREFIX) :])
    except re.error as error:
        raise ArgumentError(f"{name!r} is not a valid regular expression: {error}", argument=argument) from None
    return {known for known in modules if pattern.match(known)}
