"""Which channels go when filters do: ranked once, then counted for any number of choices (layer 4, above reports).

Coupled channels (residual sums, depthwise convolutions, branches of a concatenation) are one family and go together.
"""

from __future__ import annotations

from collections.abc import Mapping

from distiller_ng.errors import GraphError
from distiller_ng.graph.cost import MacsCost
from distiller_ng.graph.dependency import DependencyGraph
from distiller_ng.names import ParameterIndex
from distiller_ng.pruning._families import Family, families_of
from distiller_ng.pruning.groups import keep_one_of_each
from distiller_ng.pruning.importance.base import ImportanceLike, as_importance

__all__ = ["RankedFilters"]

_ALMOST = 1e-9  # 0.29 * 100 is 28.999999999999996: such a level means 29 filters


class RankedFilters:
    """The removable channels of a traced model, family by family, those of lowest importance first."""

    def __init__(self, graph: DependencyGraph, importance: ImportanceLike = "l1") -> None:
        self.graph = graph
        self._macs = MacsCost()
        parameters = ParameterIndex(graph.model)
        families = families_of(graph)
        self._scores = as_importance(importance).scores(graph, families=families)
        self._ranked = [
            sorted(f.channels.tolist(), key=lambda channel: (self._scores[channel], channel)) for f in families
        ]
        #: For each family, the parameters whose filters make its channels (biases and norms follow them).
        self.makers = [_makers(family, parameters) for family in families]

    def coupled(self) -> list[tuple[str, ...]]:
        """Parameters whose filters go together, in model order; each once."""
        found: list[dict[str, None]] = []
        for makers in filter(None, self.makers):
            mine = [names for names in found if names.keys() & set(makers)]
            merged = dict.fromkeys(name for names in (*mine, makers) for name in names)
            found = [names for names in found if names not in mine] + [merged]
        place = {name: position for position, name in enumerate(ParameterIndex(self.graph.model))}
        ordered = (tuple(sorted(names, key=place.__getitem__)) for names in found)
        return sorted(ordered, key=lambda names: place[names[0]])

    def width(self, name: str) -> int:
        """How many channels the parameter makes that can go: those of its narrowest family; 0 if there are none."""
        return min((len(r) for makers, r in zip(self.makers, self._ranked, strict=True) if name in makers), default=0)

    def orders(self, name: str) -> list[float]:
        """The scores of the channels a parameter makes, relative to their mean, lowest first."""
        found = (r for makers, r in zip(self.makers, self._ranked, strict=True) if name in makers)
        return sorted(self._scores[channel] for ranked in found for channel in ranked)

    def removed(self, levels: Mapping[str, float]) -> frozenset[int]:
        """The channels that go; of a family's named parameters the lowest level counts.

        ``{"conv1.weight": 0.5}`` takes ``int(0.5 * width)`` channels of every family that ``conv1`` makes. Raises
        :class:`GraphError` for a level above 0 of a parameter none of whose channels can go.
        """
        free = {name for makers in self.makers for name in makers}
        for name, level in levels.items():
            if level > 0 and name not in free:
                raise GraphError(f"no filter of {name!r} can be removed: {self._why(name)}. Leave its sparsity at 0")
        gone: set[int] = set()
        for makers, ranked in zip(self.makers, self._ranked, strict=True):
            level = min((levels[name] for name in makers if name in levels), default=0.0)
            gone.update(ranked[: int(level * len(ranked) + _ALMOST)])
        return frozenset(keep_one_of_each(self.graph, gone, self._scores))

    def macs(self, removed: frozenset[int]) -> dict[str, float]:
        """Multiply-accumulates of each layer without those channels."""
        return self._macs.by_layer(self.graph, removed)

    def _why(self, name: str) -> str:
        dims = [dim for tensor, dim in self.graph.axes if tensor == name and self.graph.feeds(tensor, dim)]
        if not dims:
            return "its rows are no channels of the model"
        return self.graph.why_frozen(self.graph.channels_of(name, dims[0]).tolist())


def _makers(family: Family, parameters: ParameterIndex) -> tuple[str, ...]:
    found = (parameters.find(member.tensor) for member in family.members if member.feeds)
    return tuple(dict.fromkeys(name for name in found if name is not None and parameters[name].dim() > 1))
