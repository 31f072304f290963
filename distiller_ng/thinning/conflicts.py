"""Distiller's rule for coupled layers with different zeros: each loses its own, the first decides the rest (layer 2).

The layers behind a sum then read channels that were not the ones removed, so the model's function changes; only
fine-tuning recovers it. Schedules written for Distiller count on the sizes this gives.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from distiller_ng.errors import GraphError
from distiller_ng.graph.dependency import DependencyGraph
from distiller_ng.graph.labels import LabelArray
from distiller_ng.thinning.plan import Cut, ThinningPlan
from distiller_ng.thinning.zeros import Axis, Wish

__all__ = ["first_wins"]


def first_wins(graph: DependencyGraph, wish: Wish) -> ThinningPlan:
    """The plan in which every layer loses its own zero filters, and layers without any those of the first one coupled.

    Raises :class:`GraphError` where coupled layers would lose different numbers of filters.
    """
    labels = {key: axis.labels for key, axis in graph.label_axes().items()}
    removed: set[int] = set()
    notes = list(wish.notes)
    exact = True
    for family in _families(graph):
        own = {key: np.flatnonzero(wish.zeros[key]) for key in family if key in wish.zeros}
        if not own:
            continue
        first = next(iter(own))
        counts = {key[0]: indices.size for key, indices in own.items()}
        if len(set(counts.values())) > 1:
            raise GraphError(
                f"coupled layers would lose different numbers of filters: {counts}. Prune them to one level, or decide "
                "once for the group (conflict: group)"
            )
        exact = exact and all(np.array_equal(indices, own[first]) for indices in own.values())
        for key in family:
            chosen = own.get(key, own[first])
            removed.update(labels[key][chosen].tolist())
    cuts = _cuts(labels, removed)
    if not exact:
        notes = [note for note in notes if "it is coupled" not in note]
        notes.append("coupled layers lose different filters (conflict: first): the model's function changes")
        return ThinningPlan(cuts, {}, (), tuple(notes), False, wish.asked_by)
    channels = {int(c) for key, zero in wish.zeros.items() for c in graph.axes[key][zero]}
    return ThinningPlan.for_channels(graph, channels, notes=notes, asked_by=wish.asked_by)


def _cuts(labels: Mapping[Axis, LabelArray], removed: Iterable[int]) -> tuple[Cut, ...]:
    gone = np.asarray(sorted(removed), np.int64)
    cuts = []
    for (tensor, dim), own in labels.items():
        hit = np.flatnonzero(np.isin(own, gone))
        if hit.size:
            cuts.append(Cut(tensor, dim, tuple(hit.tolist()), own.size))
    return tuple(cuts)


def _families(graph: DependencyGraph) -> list[list[Axis]]:
    """Weights that produce coupled channels, in model order."""
    axes = graph.axes
    producers = [key for key in axes if graph.feeds(*key) and graph.dims_of(key[0]) > 1]
    family_of: dict[int, int] = {}
    families: list[list[Axis]] = []
    for key in producers:
        numbers = set(axes[key].tolist()) - graph.frozen
        known = sorted({family_of[n] for n in numbers if n in family_of})
        if not known:
            known = [len(families)]
            families.append([])
        for other in known[1:]:
            families[known[0]] += families[other]
            families[other] = []
        families[known[0]].append(key)
        for number, family in list(family_of.items()):
            if family in known[1:]:
                family_of[number] = known[0]
        family_of.update(dict.fromkeys(numbers, known[0]))
    return [family for family in families if family]
