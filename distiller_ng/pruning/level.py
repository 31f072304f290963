"""Pruning to a sparsity for each parameter (layer 2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from distiller_ng.errors import ArgumentError
from distiller_ng.names import ParameterIndex
from distiller_ng.pruning._checks import check_number
from distiller_ng.pruning._level import ElementLevelPruner
from distiller_ng.pruning.base import PRUNERS, MaskGroup, Scope, Target, targets_of_map
from distiller_ng.pruning.sparsity_schedules.base import ScheduleLike

__all__ = ["SparsityLevelParameterPruner"]


@PRUNERS.register("SparsityLevelParameterPruner", injected=("name",))
class SparsityLevelParameterPruner(ElementLevelPruner):
    """Prunes the weights of lowest magnitude up to each parameter's sparsity: exactly ``int(s * n)`` of ``n``.

    ``levels`` maps parameters (names, ``re:`` patterns, tokens, ``*`` for all others) to a sparsity 0..1; 0 leaves a
    parameter alone, and so does not being named. With ``schedule`` or ``pattern`` a level may be null: the schedule
    replaces every level that is not 0. ``scope: global`` prunes as many weights in all as the levels say, wherever
    they are smallest. A policy's ``levels`` argument replaces the map (or, as one number, every level in it).

    Weights ``[0.2, -0.5, 0.4, 0.1]`` at 0.5 give the mask ``[0, 1, 1, 0]``; equal weights go by index::

        pruners:
          fixed_levels:
            class: SparsityLevelParameterPruner
            levels: {conv1.weight: 0.3, 'layer1.0.conv1.weight': 0.6}

    Raises :class:`ArgumentError` for a level outside 0..1.
    """

    level_argument: ClassVar[str] = "levels"

    def __init__(
        self,
        name: str,
        levels: Mapping[str, float | None],
        *,
        schedule: ScheduleLike | None = None,
        scope: Scope = "layer",
        pattern: str | int | None = None,
    ) -> None:
        self._initial = _check_levels(levels)
        self._bound_levels: Any = None
        super().__init__(name, None, schedule=schedule, scope=scope, pattern=pattern)

    def _given_levels(self) -> list[float | None]:
        return list(self._initial.values())

    def targets(self) -> Sequence[Target]:
        """The keys of ``levels``, of the policy's if it has a map of them."""
        return targets_of_map("levels", self.levels if isinstance(self.levels, Mapping) else self._initial)

    def bind(self, parameters: ParameterIndex, *, strict: bool = True) -> list[str]:
        """As every pruner's; with the keys that hold now."""
        names = super().bind(parameters, strict=strict)
        self._bound_levels = self.levels
        return names

    def groups(self, parameters: ParameterIndex) -> Sequence[MaskGroup]:
        """As every pruner's, after a policy changed ``levels``."""
        if self.levels is not self._bound_levels:
            self.bind(parameters)
        return super().groups(parameters)

    def fixed_level(self, name: str) -> float | None:
        """What the constructor's ``levels`` say."""
        return self._initial.get(self.target_of(name))

    def _level_at(self, name: str, progress: float) -> float | None:
        if not isinstance(self.levels, Mapping) and self.fixed_level(name) == 0:
            return 0.0  # opts out, whatever the schedule says
        return super()._level_at(name, progress)


def _check_levels(levels: Mapping[str, float | None]) -> dict[str, float | None]:
    if not isinstance(levels, Mapping) or not levels:
        message = f"levels must map parameters to sparsities, like {{conv1.weight: 0.5}}; got {levels!r}"
        raise ArgumentError(message, argument=("levels",))
    return {
        str(key): None if level is None else check_number(level, ("levels", str(key)), low=0, high=1)
        for key, level in levels.items()
    }
