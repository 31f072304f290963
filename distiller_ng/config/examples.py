"""Harmless example values of a type, to stand in for values that are wrong (layer 4)."""

from __future__ import annotations

import types
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Annotated, Any, Literal, Union, get_args, get_origin

__all__ = ["element_of", "examples_of"]

_MOST = 8
# The ends of what is usually allowed first: 0 and "very many" of counts, 0 and 1 of fractions.
_FLOATS = (0.0, 1e7, 1.0, 0.5, -1.0)
_INTS = (0, 10_000_000, 1, 2, -1)


def examples_of(annotation: Any, value: Any, others: Iterable[Any] = ()) -> list[Any]:
    """A few values of the type; none for types that are unknown here (objects, functions).

    Lists are as long as ``value`` and the lists among ``others``, and ascend: arguments often belong together.

    >>> examples_of(Literal["floor", "ceil"], None)
    ['floor', 'ceil']
    >>> examples_of(list[int], [3, 1])
    [[1], [1, 2]]
    """
    lengths = {len(v) for v in (value, *others) if isinstance(v, list | tuple)}
    return list(islice(_examples(annotation, sorted({1, *lengths, *(n - 1 for n in lengths if n > 1)})), _MOST))


def element_of(annotation: Any) -> Any:
    """The type of a container's values: ``float`` of ``str | Mapping[str, float]``; None if it holds none."""
    for member in _members(annotation):
        origin, inner = get_origin(member), get_args(member)
        if inner and isinstance(origin, type) and issubclass(origin, Sequence | Mapping):
            return inner[0] if issubclass(origin, tuple) else inner[-1]
    return None


def _members(annotation: Any) -> tuple[Any, ...]:
    """The members of a union, or the type itself."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _members(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return tuple(found for member in get_args(annotation) for found in _members(member))
    return (annotation,)


def _examples(annotation: Any, lengths: Sequence[int]) -> Iterable[Any]:
    for member in _members(annotation):
        origin, inner = get_origin(member), get_args(member)
        if origin is Literal:
            yield from inner
        elif member is float:
            yield from _FLOATS
        elif member is int:
            yield from _INTS
        elif member is bool:
            yield from (False, True)
        elif member is str:
            yield "x"
        elif inner and isinstance(origin, type) and issubclass(origin, tuple | Sequence | Mapping):
            yield from _containers(origin, inner, lengths)


def _containers(origin: type, inner: tuple[Any, ...], lengths: Sequence[int]) -> Iterable[Any]:
    if issubclass(origin, Mapping):
        yield from ({"x": example} for example in _examples(inner[-1], lengths))
    elif issubclass(origin, tuple) and Ellipsis not in inner:
        members = [next(iter(_examples(member, lengths)), None) for member in inner]
        yield tuple(members)
    else:
        yield from (found for n in lengths if (found := _ascending(inner[0], n)) is not None)


def _ascending(element: Any, length: int) -> list[Any] | None:
    """A list of ``length`` values, in ascending order if they are numbers."""
    if element is int:
        return list(range(1, length + 1))
    if element is float:
        return [(at + 1) / (length + 1) for at in range(length)]
    example = next(iter(_examples(element, [1])), None)
    return None if example is None else [example] * length
