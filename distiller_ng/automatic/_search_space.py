"""What a search chooses from: a sparsity for each coupled group of parameters, bits for each parameter (layer 4)."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from distiller_ng.automatic.candidates import Candidates, LayerChoice
from distiller_ng.errors import ArgumentError
from distiller_ng.ops.linear_quantization import check_bits

__all__ = ["Genome", "SearchSpace", "Unit"]

_FINEST = 100  # levels are hundredths, or whole channels where there are fewer
_FLOAT = 32


@dataclass(frozen=True, slots=True)
class Unit:
    """Parameters that share one sparsity: ``step`` of ``steps`` parts of them go, at most ``top``."""

    names: tuple[str, ...]
    steps: int
    top: int

    def level(self, step: int) -> float:
        """The sparsity of a step, rounded up to four digits, so that as many channels go as the step says."""
        return math.ceil(step / self.steps * 1e4 - 1e-6) / 1e4

    def step(self, level: float) -> int:
        """The last step that is not above a sparsity."""
        return min(self.top, math.floor(level * self.steps + 1e-9))


@dataclass(frozen=True, slots=True)
class Genome:
    """One candidate: a step for each unit, bits for each parameter that has a choice of them."""

    steps: tuple[int, ...]
    bits: tuple[int, ...] = ()

    @property
    def key(self) -> str:
        """What names the candidate in files."""
        return " ".join(map(str, self.steps)) + (" | " + " ".join(map(str, self.bits)) if self.bits else "")


class SearchSpace:
    """The units and parameters that the search decides on.

    ``params``: names, patterns or tokens. ``bits``: what each may be stored in; none: floating point. Raises
    :class:`TargetError` for names that match nothing, :class:`ArgumentError` for bits or a sparsity that cannot be, and
    where there is nothing to decide.
    """

    def __init__(
        self, candidates: Candidates, params: str | Sequence[str], bits: Sequence[int], max_sparsity: float
    ) -> None:
        chosen = set(candidates.parameters.select(params, argument=("params",)))
        self.bits = _checked_bits(bits)
        prunable = [tuple(name for name in names if name in chosen) for names in candidates.coupled]
        units = []
        for names in filter(None, prunable) if _checked_level(max_sparsity) > 0 else ():
            steps = min(_FINEST, *(candidates.width(name) for name in names))
            top = min(steps - 1, math.floor(max_sparsity * steps + 1e-9))
            if top > 0:
                units.append(Unit(names, steps, top))
        self.units = tuple(units)
        weights = candidates.parameters.prunable()
        self.quantized = tuple(name for name in weights if name in chosen) if self.bits else ()
        if not self.units and not self.quantized:
            message = (
                f"nothing can be decided about {params!r}: none of them loses {candidates.group}s, and bits are none"
            )
            raise ArgumentError(message, argument=("params",))

    def choices(self, genome: Genome) -> dict[str, LayerChoice]:
        """What a genome means."""
        levels = {
            name: unit.level(step) for unit, step in zip(self.units, genome.steps, strict=True) for name in unit.names
        }
        bits = dict(zip(self.quantized, genome.bits, strict=True))
        return {
            name: LayerChoice(levels.get(name, 0.0), bits.get(name, _FLOAT)) for name in dict.fromkeys((*levels, *bits))
        }

    @property
    def dense(self) -> Genome:
        """Nothing goes; the most bits."""
        return self.uniform(0.0, self.bits[0] if self.bits else _FLOAT)

    def uniform(self, level: float, bits: int) -> Genome:
        """The same sparsity and bits everywhere."""
        return Genome(tuple(unit.step(level) for unit in self.units), (bits,) * len(self.quantized))

    def of_levels(self, levels: Sequence[float], bits: Sequence[int]) -> Genome:
        """A sparsity for each unit."""
        steps = (unit.step(max(level, 0.0)) for unit, level in zip(self.units, levels, strict=True))
        return Genome(tuple(steps), tuple(bits))

    def scaled(self, genome: Genome, factor: float) -> Genome:
        """With ``factor`` times as much kept everywhere (rounded to less)."""
        kept = (1 - step / unit.steps for unit, step in zip(self.units, genome.steps, strict=True))
        steps = (
            min(unit.top, max(0, math.ceil(unit.steps * (1 - share * factor) - 1e-9)))
            for unit, share in zip(self.units, kept, strict=True)
        )
        return replace(genome, steps=tuple(steps))

    def fewer_bits(self, genome: Genome, rng: random.Random) -> Genome | None:
        """With the next fewer bits for one parameter; None if all have the fewest."""
        places = [at for at, bits in enumerate(genome.bits) if bits > self.bits[-1]]
        if not places:
            return None
        at = rng.choice(places)
        fewer = self.bits[self.bits.index(genome.bits[at]) + 1]
        return replace(genome, bits=(*genome.bits[:at], fewer, *genome.bits[at + 1 :]))

    # -- variation --------------------------------------------------------------------------------------------------

    def drawn(self, rng: random.Random, around: Genome) -> Genome:
        """Every sparsity anywhere between 0 and twice that of ``around``; any bits."""
        steps = (
            rng.randint(0, min(unit.top, 2 * step + 1)) for unit, step in zip(self.units, around.steps, strict=True)
        )
        return Genome(tuple(steps), tuple(rng.choice(self.bits) for _ in self.quantized))

    def mutated(self, genome: Genome, rng: random.Random) -> Genome:
        """With some sparsities moved, by a tenth or so, and some bits drawn anew; at least one thing changes."""
        total = len(genome.steps) + len(genome.bits)
        rate = max(0.15, 1.5 / total)
        forced = rng.randrange(total)
        changes = [rng.random() < rate or place == forced for place in range(total)]
        steps = [
            self._moved(unit, step, rng) if change else step
            for unit, step, change in zip(self.units, genome.steps, changes, strict=False)
        ]
        drawn = zip(genome.bits, changes[len(steps) :], strict=True)
        return Genome(tuple(steps), tuple(rng.choice(self.bits) if change else bits for bits, change in drawn))

    def crossed(self, one: Genome, other: Genome, rng: random.Random) -> Genome:
        """Each gene of one or the other."""
        return Genome(
            tuple(rng.choice(pair) for pair in zip(one.steps, other.steps, strict=True)),
            tuple(rng.choice(pair) for pair in zip(one.bits, other.bits, strict=True)),
        )

    def _moved(self, unit: Unit, step: int, rng: random.Random) -> int:
        by = round(rng.gauss(0.0, 0.12) * unit.steps)
        return min(unit.top, max(0, step + (by if by else rng.choice((-1, 1)))))


def _checked_bits(bits: Sequence[int]) -> tuple[int, ...]:
    if isinstance(bits, int | str) or not isinstance(bits, Sequence):
        raise ArgumentError(f"bits is a list like [4, 8], got {bits!r}", argument=("bits",))
    for place, one in enumerate(bits):
        if one != _FLOAT or isinstance(one, bool):
            try:
                check_bits(one, low=2, high=8, argument="bits")
            except ArgumentError as error:
                raise ArgumentError(f"{error}, or 32 for floating point", argument=("bits", place)) from None
    return () if set(bits) == {_FLOAT} else tuple(sorted({int(one) for one in bits}, reverse=True))


def _checked_level(level: object) -> float:
    if isinstance(level, bool) or not isinstance(level, int | float) or not 0 <= level < 1:
        raise ArgumentError(f"max_sparsity is a number from 0 to below 1, got {level!r}", argument=("max_sparsity",))
    return float(level)
