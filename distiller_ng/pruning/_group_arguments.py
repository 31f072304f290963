"""Arguments of the group pruner: budgets, caps, widths (layer 2)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from distiller_ng.errors import ArgumentError, did_you_mean
from distiller_ng.names import ParameterIndex
from distiller_ng.pruning._checks import check_map, check_number
from distiller_ng.pruning._families import Family
from distiller_ng.pruning.base import DEFAULT_TARGET

__all__ = ["BUDGETS", "Caps", "check_round_to", "check_target"]

#: What a budget can be measured in.
BUDGETS = ("macs", "params", "latency")


def check_target(target: Any) -> dict[str, float]:
    """``{macs: 0.5}``: the shares of the original costs that remain.

    Raises :class:`ArgumentError` for another key, or a share that is not above 0 and at most 1.
    """
    example = "{macs: 0.5}: half of the original multiply-accumulates remain"
    if not isinstance(target, Mapping) or not target:
        raise ArgumentError(f"target must be a mapping like {example}; got {target!r}", argument=("target",))
    checked = {}
    for key, value in target.items():
        if key not in BUDGETS:
            message = f"target has no budget {key!r}. {did_you_mean(str(key), BUDGETS)}"
            raise ArgumentError(message, argument=("target", str(key)))
        checked[str(key)] = check_number(value, ("target", str(key)), low=0, high=1)
        if checked[str(key)] == 0:
            raise ArgumentError(f"target {key}: 0 leaves nothing; write {example}", argument=("target", str(key)))
    return checked


def check_round_to(round_to: Any) -> int:
    """A whole number from 1; raises :class:`ArgumentError` for anything else."""
    if isinstance(round_to, bool) or not isinstance(round_to, int) or round_to < 1:
        message = f"round_to is a whole number from 1 (8: widths are multiples of 8), got {round_to!r}"
        raise ArgumentError(message, argument=("round_to",))
    return round_to


def step_of(family: Family, round_to: int) -> int:
    """In what multiples a family's channels stay, so that widths are multiples of ``round_to``.

    A channel of 4 entries along the weights that make it (an attention head) counts for 4.
    """
    makers = [member for member in family.members if member.feeds] or list(family.members)
    entries = [int((member.index >= 0).sum()) // max(len(family), 1) for member in makers]
    return round_to // math.gcd(round_to, *entries)


class Caps:
    """The largest share of its original channels a layer may lose: one for all, or one by target."""

    def __init__(self, value: float | Mapping[str, float] | None, default: float) -> None:
        self._shares: dict[str, float] = {DEFAULT_TARGET: default}
        if isinstance(value, Mapping):
            example = "{layer1.0.conv1.weight: 0.5, '*': 0.8}"
            self._shares |= check_map("max_layer_sparsity", value, low=0, high=1, example=example)
        elif value is not None:
            self._shares[DEFAULT_TARGET] = check_number(value, ("max_layer_sparsity",), low=0, high=1)
        self._by_name: dict[str, float] = {}

    def bind(self, parameters: ParameterIndex, *, strict: bool) -> None:
        """Resolve the keys, exact names before patterns; raises :class:`TargetError` for one that matches nothing."""
        self._by_name = {}
        exact = {key: found for key in self._shares if (found := parameters.find(key)) is not None}
        for key, share in self._shares.items():
            if key == DEFAULT_TARGET or key in exact or not (strict or _matches(parameters, key)):
                continue
            for name in parameters.match(key, argument=("max_layer_sparsity", key)):
                self._by_name.setdefault(name, share)
        self._by_name.update({name: self._shares[key] for key, name in exact.items()})

    def of(self, names: Iterable[str]) -> float:
        """The cap of channels that parameters of these names make or read: the smallest of theirs."""
        found = [self._by_name[name] for name in names if name in self._by_name]
        return min(found, default=self._shares[DEFAULT_TARGET])


def _matches(parameters: ParameterIndex, key: str) -> bool:
    try:
        return bool(parameters.match(key))
    except ArgumentError:
        return False
