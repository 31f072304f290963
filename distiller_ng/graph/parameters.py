"""Parameters as operators see them: transposed, sliced, or computed from several ones (layer 1).

A layer's weight need not be a parameter: quantizers, masks and parametrizations compute it, entry by entry. A
:class:`ParameterView` says which entry of which parameter each entry of such a weight comes from.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

__all__ = ["ParameterView", "Part"]


@dataclass(frozen=True, slots=True)
class Part:
    """A parameter's share in a value.

    Index ``i`` of the value's dimension ``d`` is index ``starts[d] + i`` of the parameter's own dimension ``dims[d]``;
    -1 where the parameter has no such dimension, or is repeated along it.
    """

    name: str
    dims: tuple[int, ...]
    starts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ParameterView:
    """A value that is computed from parameters and buffers alone, entry by entry.

    ``zero``: an entry is zero where those it comes from are.
    """

    shape: tuple[int, ...]
    parts: tuple[Part, ...]
    zero: bool = True

    @classmethod
    def of(cls, name: str, shape: Sequence[int]) -> ParameterView:
        """The parameter itself."""
        return cls(tuple(shape), (Part(name, tuple(range(len(shape))), (0,) * len(shape)),))

    @classmethod
    def combined(cls, views: Iterable[ParameterView], shape: Sequence[int], *, zero: bool) -> ParameterView:
        """An element-wise operator's result: its operands, broadcast to ``shape``."""
        parts = [part for view in views for part in view.broadcast(shape).parts]
        return cls(tuple(shape), tuple(dict.fromkeys(parts)), zero)

    @property
    def name(self) -> str:
        """The (first) parameter's name."""
        return self.parts[0].name

    @property
    def dims(self) -> tuple[int, ...]:
        """The first parameter's own number of each dimension, -1 for none."""
        return self.parts[0].dims

    def along(self, dim: int) -> Iterator[tuple[str, int, int]]:
        """(parameter, its own dimension, first index) of everything that makes up dimension ``dim``."""
        for part in self.parts:
            if part.dims[dim] >= 0:
                yield part.name, part.dims[dim], part.starts[dim]

    def arranged(self, shape: Sequence[int], sources: Sequence[int]) -> ParameterView:
        """Another order of dimensions: the new dimension d is the old ``sources[d]``, or a new one for -1."""
        parts = tuple(
            Part(
                part.name,
                tuple(-1 if s < 0 else part.dims[s] for s in sources),
                tuple(0 if s < 0 else part.starts[s] for s in sources),
            )
            for part in self.parts
        )
        return ParameterView(tuple(shape), parts, self.zero)

    def broadcast(self, shape: Sequence[int]) -> ParameterView:
        """Repeated along dimensions of size 1 and new ones in front."""
        missing = len(shape) - len(self.shape)
        sources = [-1] * missing + [d if size == shape[d + missing] else -1 for d, size in enumerate(self.shape)]
        return self.arranged(shape, sources)

    def reshaped(self, shape: Sequence[int]) -> ParameterView | None:
        """With other dimensions of size 1; None for any other change of shape."""
        old = [d for d, size in enumerate(self.shape) if size > 1]
        new = [d for d, size in enumerate(shape) if size > 1]
        if [self.shape[d] for d in old] != [shape[d] for d in new]:
            return None
        source_of = dict(zip(new, old, strict=True))
        return self.arranged(shape, [source_of.get(d, -1) for d in range(len(shape))])

    def reduced(self, shape: Sequence[int], dims: Sequence[int]) -> ParameterView:
        """Without ``dims``, or with size 1 there where the result keeps them."""
        if len(shape) == len(self.shape):
            return self.arranged(shape, [-1 if d in dims else d for d in range(len(shape))])
        return self.arranged(shape, [d for d in range(len(self.shape)) if d not in dims])

    def narrowed(self, dim: int, start: int, length: int) -> ParameterView:
        """The entries of ``dim`` from ``start`` on."""
        shape = tuple(length if d == dim else size for d, size in enumerate(self.shape))
        parts = tuple(
            replace(part, starts=tuple(s + start if d == dim else s for d, s in enumerate(part.starts)))
            for part in self.parts
        )
        return ParameterView(shape, parts, self.zero)
