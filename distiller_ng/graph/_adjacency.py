"""Entries of the summary graph's adjacency map (layer 1)."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["AdjacentsEntry", "OpSimpleMetadata"]


@dataclass(slots=True)
class OpSimpleMetadata:
    """An operation's name (the module's own, with wrapper parts) and type."""

    name: str
    type: str


@dataclass(slots=True)
class AdjacentsEntry:
    """An operation with those right before and right behind it.

    Also, not compared: ``module`` it runs in, ``call`` (which call of that module), ``shape`` of its first result, and
    whether

    - its result goes to something that is not listed, such as the model's output (``escapes``),
    - it reads an input of the model or from an operation that is not listed (``joined``),
    - a dropout, which is no operation here, comes behind it (``dropped``),
    - other modules read a parameter or buffer that it reads (``shares``),
    - it reads a tensor computed from parameters, which is no operation either (``computed``).
    """

    op_meta: OpSimpleMetadata
    predecessors: list[OpSimpleMetadata] = field(default_factory=list)
    successors: list[OpSimpleMetadata] = field(default_factory=list)
    module: str = field(default="", compare=False, repr=False)
    call: str = field(default="", compare=False, repr=False)
    shape: tuple[int, ...] = field(default=(), compare=False, repr=False)
    escapes: bool = field(default=False, compare=False, repr=False)
    joined: bool = field(default=False, compare=False, repr=False)
    dropped: bool = field(default=False, compare=False, repr=False)
    shares: bool = field(default=False, compare=False, repr=False)
    computed: bool = field(default=False, compare=False, repr=False)
