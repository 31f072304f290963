"""Which layers a recipe quantizes, and by which scheme: by name, by prefix, by type (layer 2)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from distiller_ng.errors import ArgumentError, TargetError, did_you_mean
from distiller_ng.names import canonical_name, unwrap
from distiller_ng.quantization._derived import original_class
from distiller_ng.quantization._weights import QUANTIZABLE_LAYERS
from distiller_ng.quantization.schemes import QuantizationScheme, SchemeLike

__all__ = ["check_names", "choose_layers"]


def check_names(argument: str, value: Any) -> list[str]:
    """A list of names (one alone is a list of one); raises :class:`ArgumentError`."""
    names = [value] if isinstance(value, str) else value
    if names is None:
        return []
    if not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        raise ArgumentError(f"{argument} is a list of module names and types, got {value!r}", argument=(argument,))
    return list(names)


def choose_layers(
    model: nn.Module,
    scheme: QuantizationScheme,
    overrides: Mapping[str, SchemeLike],
    *,
    ignore: Sequence[str],
    submodules: Sequence[str],
    strict: bool,
) -> dict[str, QuantizationScheme]:
    """``{module name: scheme}`` of the layers to quantize: convolutions, linear layers and embeddings.

    ``ignore`` and the keys of ``overrides`` name a type (``Linear``), a module, or a part of the model with all in it;
    the longest name wins, and any name wins over a type. ``submodules``: only in these parts; empty: anywhere. Raises
    :class:`TargetError` for a name that matches nothing, unless ``strict`` is False.
    """
    modules = {canonical_name(name): module for name, module in unwrap(model).named_modules()}
    if strict:
        _check_known(modules, "ignore", enumerate(ignore))
        _check_known(modules, "scheme_overrides", ((key, key) for key in overrides))
        _check_known(modules, "submodules", enumerate(submodules))
    named = {key: QuantizationScheme.read(text, ("scheme_overrides", key), scheme) for key, text in overrides.items()}
    parts = [canonical_name(name) for name in submodules]
    chosen: dict[str, QuantizationScheme] = {}
    for name, module in modules.items():
        if not isinstance(module, QUANTIZABLE_LAYERS) or (parts and not any(_inside(name, part) for part in parts)):
            continue
        kind = original_class(type(module)).__name__
        rule = _closest(name, kind, [*ignore, *named])
        if rule is None or rule not in ignore:
            chosen[name] = scheme if rule is None else named[rule]
    return chosen


def _closest(name: str, kind: str, rules: Iterable[str]) -> str | None:
    by_name = [rule for rule in rules if _inside(name, canonical_name(rule))]
    if by_name:
        return max(by_name, key=len)
    return kind if kind in rules else None


def _inside(name: str, part: str) -> bool:
    return name == part or name.startswith(part + ".")


def _check_known(modules: Mapping[str, nn.Module], argument: str, given: Iterable[tuple[Any, str]]) -> None:
    kinds = {original_class(type(module)).__name__ for module in modules.values()}
    for position, rule in given:
        if rule not in kinds and not any(_inside(name, canonical_name(rule)) for name in modules):
            hint = did_you_mean(rule, [*modules, *kinds])
            message = f"{rule!r} is no module of the model and none of its types. {hint}"
            raise TargetError(message, argument=(argument, position))
