"""What a search found (layer 4, above reports)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from distiller_ng.automatic._search_schedule import schedule_text
from distiller_ng.automatic.candidates import Candidates, LayerChoice, PredictedCost

__all__ = ["SearchCandidate", "SearchResult", "rank_of"]


def rank_of(scores: tuple[float, float, float], shares: Mapping[str, float]) -> tuple[float, float, float]:
    """What candidates are ordered by, larger is better: top-1, then loss, then what is left of the costs."""
    top1, _, loss = scores
    return -math.inf if math.isnan(top1) else top1, -math.inf if math.isnan(loss) else -loss, -sum(shares.values())


@dataclass(frozen=True, slots=True)
class SearchCandidate:
    """One candidate that was measured.

    ``origin``: "original" (the model as it is), "uniform" (the same level everywhere), "ranked" (levels of one ranking
    over all layers), "random" or "evolved". ``shares``: what remains of the original's macs, size and params (values
    that are not zero), and of its latency where that was measured. ``top1``, ``top5``, ``loss``: what ``evaluate``
    returned; NaN where it did not say.
    """

    choices: Mapping[str, LayerChoice]
    top1: float
    top5: float
    loss: float
    cost: PredictedCost
    shares: Mapping[str, float]
    generation: int
    origin: str

    @property
    def rank(self) -> tuple[float, float, float]:
        """See :func:`rank_of`."""
        return rank_of((self.top1, self.top5, self.loss), self.shares)

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "top1": self.top1,
            "top5": self.top5,
            "loss": self.loss,
            "shares": dict(self.shares),
            "parameters": self.cost.parameters,
            "nonzero": self.cost.nonzero,
            "macs": self.cost.macs,
            "size_bytes": self.cost.size_bytes,
            "generation": self.generation,
            "origin": self.origin,
            "choices": {name: {"sparsity": one.sparsity, "bits": one.bits} for name, one in self.choices.items()},
        }


@dataclass(frozen=True)
class SearchResult:
    """The outcome of :func:`~distiller_ng.automatic.search_compression`.

    ``original``: the model as it is. ``uniform``: the best of the candidates with the same level everywhere, for
    comparison. ``best``: the best candidate within the budget; never worse than ``uniform``, which is among them.
    ``history``: every candidate within the budget, in the order they were thought of.
    """

    best: SearchCandidate
    uniform: SearchCandidate
    original: SearchCandidate
    history: Sequence[SearchCandidate]
    budget: Mapping[str, float]
    group: str
    coupled: Sequence[Sequence[str]]
    _candidates: Candidates = field(repr=False, compare=False)

    def pareto(self, cost: str | None = None) -> list[SearchCandidate]:
        """Candidates that no other beats in both top-1 and a cost (default: the first of the budget), cheapest first.

        With top-1 and macs of (97, 0.5), (96, 0.4), (95, 0.45): the second and the first.
        """
        name = cost or next(iter(self.budget))
        front: list[SearchCandidate] = []
        for one in sorted(self.history, key=lambda one: (one.shares[name], tuple(-value for value in one.rank))):
            if not math.isnan(one.top1) and (not front or one.top1 > front[-1].top1):
                front.append(one)
        return front

    def compressed_model(self, candidate: SearchCandidate | None = None) -> nn.Module:
        """A compressed copy of the model as it is now (so ask before you train it): of ``best``, or of a candidate."""
        return self._candidates.build((candidate or self.best).choices)

    def schedule_text(self, epochs: int, candidate: SearchCandidate | None = None) -> str:
        """A schedule (YAML) that prunes to the levels of ``best`` (or of another candidate) while the model trains.

        Of ``epochs`` epochs the first half prunes, step by step; the second fine-tunes. Bits become a quantizer that
        trains with rounded weights. Raises :class:`ArgumentError` for fewer than two epochs.
        """
        chosen = candidate or self.best
        about = [
            f"Found by a search within {', '.join(f'{name} <= {limit:g}' for name, limit in self.budget.items())}:",
            f"before training top-1 {chosen.top1:g}, with "
            + ", ".join(f"{share:.3f} of the {name}" for name, share in chosen.shares.items())
            + ".",
            f"The same level everywhere: top-1 {self.uniform.top1:g}. The model as it was: {self.original.top1:g}.",
        ]
        model = self._candidates.model
        return schedule_text(model, chosen.choices, epochs, group=self.group, coupled=self.coupled, about=about)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "budget": dict(self.budget),
            "group": self.group,
            "coupled": [list(names) for names in self.coupled],
            "best": self.best.as_dict(),
            "uniform": self.uniform.as_dict(),
            "original": self.original.as_dict(),
            "pareto": [one.as_dict() for one in self.pareto()],
            "history": [one.as_dict() for one in self.history],
        }
