"""Sharing a budget out among layers by what each of them tolerates; pure functions."""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

__all__ = ["CostOf", "Layer", "allocate", "least_share"]

#: What remains of the cost with these levels, as a share of the original.
CostOf = Callable[[Mapping[str, float]], float]

_STEP, _FINE = 0.05, 0.01
_TINY = 1e-12
#: Weight of the convex term beside what was measured: it decides between layers that measure alike.
_EVENNESS = 0.05


@dataclass(frozen=True)
class Layer:
    """What one decision is about, the damage measured at some levels, and how far it may go.

    ``points``: ``{level: damage}``, 0 < level < 1. ``cap``: the highest level. ``only``: the levels there are, besides
    0 (default: every multiple of 0.05 up to the cap).
    """

    name: str
    points: Mapping[float, float]
    cap: float = 0.95
    only: tuple[float, ...] | None = None
    _curve: tuple[tuple[float, ...], tuple[float, ...]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        levels, damages = [0.0], [0.0]
        for level in sorted(self.points):
            levels.append(level)
            damages.append(max(self.points[level], damages[-1]))  # more pruning never does good
        object.__setattr__(self, "_curve", (tuple(levels), tuple(damages)))

    def damage(self, level: float) -> float:
        """Between measurements along a line, behind the last one twice as steep as before it.

        ``points={0.5: 2.0}``: 1.0 at 0.25 and 4.0 at 0.75.
        """
        levels, damages = self._curve
        at = min(bisect_right(levels, level) - 1, len(levels) - 1)
        if at < len(levels) - 1:
            share = (level - levels[at]) / (levels[at + 1] - levels[at])
            return damages[at] + share * (damages[at + 1] - damages[at])
        slope = (damages[-1] - damages[-2]) / (levels[-1] - levels[-2]) if len(levels) > 1 else 0.0
        return damages[-1] + 2 * slope * (level - levels[-1])

    def grid(self, step: float) -> list[float]:
        """The levels above 0 it may take."""
        if self.only is not None:
            return [level for level in self.only if level <= self.cap + _TINY]
        return [round(step * n, 4) for n in range(1, int(self.cap / step + 1e-9) + 1)]


def least_share(layers: Sequence[Layer], cost: CostOf) -> float:
    """What remains with every layer at its cap."""
    return cost({layer.name: max(layer.grid(_STEP), default=0.0) for layer in layers})


def allocate(layers: Sequence[Layer], cost: CostOf, share: float) -> dict[str, float] | None:
    """A level for each layer so that at most ``share`` of the cost remains and little damage is done; None: impossible.

    Damages of layers are taken to add up. From 0 on, again and again the layer whose next step does the least damage
    for the cost it saves goes on (with a linear cost that is the Lagrangian solution: all layers end at the same damage
    per saved cost). A step leads to the point of the layer's curve from 0.05 to its cap where that ratio is best, so
    that a flat beginning hides no cliff and a bump no plain. At the end what was taken too much is given back where it
    hurts most. A small convex term, ``0.05 * mean damage * level^2 / (1 - level)``, decides between layers that measure
    alike: they share. The result depends on nothing but the arguments.

    Two layers of 100 and 300 weights, ``share`` 0.6, so that 160 weights have to go. Half of the first costs 4.0 points
    (0.08 for each of its 50 weights), half of the second 2.0 (0.013 for each of its 150): the second goes to 0.5, and
    on at twice the price (0.027) to 0.55, which frees 165 weights. The first stays whole: ``{"a": 0.0, "b": 0.54}``,
    as 162 are enough.
    """
    search = _Search(layers, cost)
    return search.levels if search.down_to(share) else None


class _Search:
    def __init__(self, layers: Sequence[Layer], cost: CostOf) -> None:
        self.layers = {layer.name: layer for layer in layers}
        self.cost_of = cost
        self.levels = dict.fromkeys(self.layers, 0.0)
        self.cost = cost(self.levels)
        measured = [damage for layer in layers for damage in layer.points.values()]
        mean = sum(max(damage, 0.0) for damage in measured) / len(measured) if measured else 0.0
        self.evenness = _EVENNESS * (mean if mean > 0 else 1.0)

    def damage(self, name: str, level: float) -> float:
        return self.layers[name].damage(level) + self.evenness * level**2 / max(1 - level, _TINY)

    def down_to(self, share: float) -> bool:
        """Whether the cost could be brought down to the share."""
        order = {name: place for place, name in enumerate(self.layers)}
        waiting = [(step[0], order[name], name) for name in self.layers if (step := self._best_step(name)) is not None]
        heapq.heapify(waiting)
        while self.cost > share + _TINY and waiting:
            _, _, name = heapq.heappop(waiting)
            step = self._best_step(name)  # the one known may be older than other layers' steps
            if step is None:
                continue
            if waiting and step[0] > waiting[0][0] + _TINY:
                heapq.heappush(waiting, (step[0], order[name], name))
                continue
            self._take(name, step[1], share)
            after = self._best_step(name)
            if after is not None:
                heapq.heappush(waiting, (after[0], order[name], name))
        if self.cost > share + _TINY:
            return False
        self._give_back(share)
        return True

    def _best_step(self, name: str) -> tuple[float, float] | None:
        """Damage for each saved cost, and the level it leads to."""
        now = self.levels[name]
        higher = [level for level in self.layers[name].grid(_STEP) if level > now + _TINY]
        if not higher:
            return None
        # Costs are nearly linear in one layer's level, so one price serves all its levels.
        saved = (self.cost - self._cost_with(name, higher[-1])) / (higher[-1] - now)
        if saved <= _TINY:
            return None
        before = self.damage(name, now)
        return min(((self.damage(name, level) - before) / ((level - now) * saved), level) for level in higher)

    def _take(self, name: str, level: float, share: float) -> None:
        """Go to the level, or only as far as is needed."""
        now = self.levels[name]
        between = [other for other in self.layers[name].grid(_STEP) if now < other <= level + _TINY]
        for other in between if self._cost_with(name, level) <= share + _TINY else ():
            if self._cost_with(name, other) <= share + _TINY:
                level = other
                break
        self._set(name, level)

    def _give_back(self, share: float) -> None:
        """Lower levels, by whole and then by small steps, those that hurt most first, as long as the share is kept."""
        for step in (_STEP, _FINE):
            blocked: set[str] = set()
            while True:
                gains = []
                for name, level in self.levels.items():
                    lower = [0.0, *(other for other in self.layers[name].grid(step) if other < level - _TINY)]
                    if level > 0 and name not in blocked:
                        gain = self.damage(name, level) - self.damage(name, lower[-1])
                        gains.append((-gain, name, lower[-1]))
                if not gains:
                    break
                _, name, level = min(gains)
                if self._cost_with(name, level) <= share + _TINY:
                    self._set(name, level)
                    if step == _FINE and self.layers[name].only is None:
                        continue
                else:
                    blocked.add(name)

    def _cost_with(self, name: str, level: float) -> float:
        return self.cost_of({**self.levels, name: level})

    def _set(self, name: str, level: float) -> None:
        self.levels[name] = level
        self.cost = self.cost_of(self.levels)
