"""Which channels go: so many, or as many as a budget takes, in whole steps of the allowed widths (layer 2)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["Ranked", "Removal", "removals_of", "select_by_budget", "select_by_count", "select_by_total"]

#: A budget counts as met this close below it; a finer search gives nothing back.
_CLOSE = 0.995
#: Farther below than this another way is looked for, so many times.
_NEAR, _DETOURS = 0.98, 16
#: How many steps are tried to be given back, at one evaluation of the cost each.
_TRIES = 256


@dataclass(frozen=True, slots=True)
class Ranked:
    """One channel: lower tiers go first, within a tier lower scores."""

    channel: int
    tier: int
    score: float


@dataclass(frozen=True, slots=True)
class Removal:
    """The next channels of a family to go, as many as the next allowed width takes.

    ``share``: of the family's original channels, how many are gone after it.
    """

    family: int
    channels: tuple[int, ...]
    tier: int
    score: float
    share: float


def removals_of(family: int, ranked: Sequence[Ranked], *, original: int, most: float, multiple: int) -> list[Removal]:
    """Everything that could go of a family whose channels are given in the order they go.

    ``original``: how many there were at first; at most the share ``most`` of them may go, and one always stays. Widths
    in between are multiples of ``multiple``; the present width is allowed, whatever it is.

    Of 20 channels with ``multiple=8``: first 4 together, then 8.
    """
    present = len(ranked)
    # Rounding errors of a share must not cost a channel.
    least = max(original - int(most * original + 1e-9), 1, min(multiple, present))
    steps = []
    start = 0
    for width in range(present - 1, least - 1, -1):
        if width % multiple:
            continue
        part = ranked[start : present - width]
        start = present - width
        tier = max(item.tier for item in part)
        score = float(np.mean([item.score for item in part if item.tier == tier]))
        channels = tuple(item.channel for item in part)
        steps.append(Removal(family, channels, tier, score, (original - width) / original))
    return steps


def select_by_count(steps: Sequence[Removal], count: int) -> list[Removal]:
    """The first steps of one family that take as near to ``count`` channels as they can, of two as near the fewer."""
    chosen: list[Removal] = []
    gone = 0
    for step in steps:
        if abs(gone + len(step.channels) - count) >= abs(gone - count):
            break
        chosen.append(step)
        gone += len(step.channels)
    return chosen


def select_by_total(steps: Iterable[Removal], count: int) -> list[Removal]:
    """Steps in the given order as long as they take no more than ``count`` channels in all."""
    chosen: list[Removal] = []
    closed: set[int] = set()
    for step in steps:
        if step.family in closed:
            continue
        if len(step.channels) <= count:
            chosen.append(step)
            count -= len(step.channels)
        else:
            closed.add(step.family)  # a family's steps go in order
    return chosen


def select_by_budget(steps: Sequence[Removal], load: Callable[[Sequence[int]], float]) -> list[Removal]:
    """The shortest beginning of ``steps`` that meets the budget, less what turns out not to be needed.

    Where its last step is so large that the cost ends up more than 2 % below the budget, that family is left as it is
    and the others are asked for the rest, if that ends nearer; where nothing ends within 2 % below, what ends within
    2 % above will do. ``load(channels)`` is the cost without them over the budget, 1 or less where it is met; removing
    more never makes it larger. Everything goes where even that does not meet it.
    """

    def loaded(chosen: Sequence[Removal]) -> float:
        return load([channel for step in chosen for channel in step.channels])

    best: list[Removal] = list(steps)
    nearest = 0.0
    order = list(steps)
    for _ in range(_DETOURS):
        met = _shortest(order, loaded)
        if met > len(order):
            break
        found = _given_back(order[:met], loaded)
        now = loaded(found)
        if now > nearest:
            best, nearest = found, now
        if nearest >= _NEAR or met == 0:
            break
        last = order[met - 1].family
        order = order[: met - 1] + [step for step in order[met:] if step.family != last]
    return best if nearest >= _NEAR else _just_above(steps, loaded) or best


def _just_above(steps: Sequence[Removal], loaded: Callable[[Sequence[Removal]], float]) -> list[Removal] | None:
    """The beginning of ``steps`` one short of the budget, where it misses it by no more than 2 %."""
    met = _shortest(steps, loaded)
    short = list(steps[: met - 1]) if 0 < met <= len(steps) else []
    return short if short and loaded(short) <= 2.0 - _NEAR else None


def _shortest(order: Sequence[Removal], loaded: Callable[[Sequence[Removal]], float]) -> int:
    """How many steps it takes to meet the budget; one more than there are if all of them do not."""
    if loaded(order) > 1:
        return len(order) + 1
    low, high = 0, len(order)
    while low < high:
        middle = (low + high) // 2
        if loaded(order[:middle]) <= 1:
            high = middle
        else:
            low = middle + 1
    return high


def _given_back(chosen: list[Removal], loaded: Callable[[Sequence[Removal]], float]) -> list[Removal]:
    """Without the steps, last ones first, that the budget is met without."""
    now = loaded(chosen)
    kept: set[int] = set()  # families whose last step has to stay
    tries = 0
    for step in reversed(list(chosen)):
        if now > 1 or now >= _CLOSE or tries >= _TRIES:
            break
        if step.family in kept:
            continue
        tries += 1
        rest = [other for other in chosen if other is not step]
        without = loaded(rest)
        if without <= 1:
            chosen, now = rest, without
        else:
            kept.add(step.family)
    return chosen
