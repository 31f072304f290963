"""Finding tensors in what models return: tensors, tuples, mappings, dataclasses (layer 2)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from distiller_ng.errors import ArgumentError, did_you_mean

__all__ = ["batch_size", "find_output", "named_tensors", "tensors_in", "the_logits"]


def find_output(output: Any, path: str | int, *, whose: str, argument: Sequence[str | int] = ()) -> Any:
    """What stands at ``path`` of a model's output: keys, field names and positions, joined by dots.

    ``hidden_states.3`` is the fourth of the tensors called ``hidden_states``; ``""`` is the output itself. Raises
    :class:`ArgumentError` that carries ``argument``, names ``whose`` output it is and what it holds.

    >>> find_output({"hidden_states": ("a", "b")}, "hidden_states.1", whose="student")
    'b'
    """
    here = output
    for part in str(path).split(".") if str(path) else ():
        choices = _parts(here)
        if part not in choices:
            held = f"It is a {type(here).__name__}" if not choices else did_you_mean(part, choices)
            raise ArgumentError(f"the {whose}'s output has no {part!r} (of {str(path)!r}). {held}", argument=argument)
        here = choices[part]
        if here is None:
            raise ArgumentError(
                f"the {whose}'s output has {str(path)!r}, but it is None: does the model have to be asked for it "
                "(output_hidden_states=True, output_attentions=True)?",
                argument=argument,
            )
    return here


def the_logits(output: Any, keys: Sequence[str], *, whose: str, argument: Sequence[str | int] = ()) -> list[Tensor]:
    """The tensors to compare: those at ``keys``, or without any the output itself, or its ``logits``.

    The key ``logits`` means the output itself where that is a tensor: models differ in how they return them.

    Raises :class:`ArgumentError` when the output holds several tensors and nothing says which.
    """
    if not keys or (list(keys) == ["logits"] and isinstance(output, Tensor)):
        if isinstance(output, Tensor):
            return [output]
        parts = {name: value for name, value in _parts(output).items() if value is not None}
        tensors = [value for value in parts.values() if isinstance(value, Tensor) and value.is_floating_point()]
        if isinstance(parts.get("logits"), Tensor):
            return [parts["logits"]]
        if len(tensors) == 1 == len(parts):
            return tensors
        raise ArgumentError(
            f"the {whose}'s output is a {type(output).__name__} of {sorted(parts)}: say what to compare, "
            "output_keys=['logits']",
            argument=argument or ("output_keys",),
        )
    found = []
    for key in keys:
        value = find_output(output, key, whose=whose, argument=argument)
        if not isinstance(value, Tensor) or not value.is_floating_point():
            raise ArgumentError(
                f"the {whose}'s output {key!r} is no floating-point tensor but a {type(value).__name__}",
                argument=argument or ("output_keys",),
            )
        found.append(value)
    return found


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Every tensor in nested tuples, lists, mappings and dataclasses."""
    if isinstance(value, Tensor):
        yield value
    else:
        for part in _parts(value).values():
            yield from tensors_in(part)


def named_tensors(value: Any, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every floating-point tensor in a structure with its path, ``""`` for a tensor alone."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield path, value
        return
    for key, part in _parts(value).items():
        yield from named_tensors(part, f"{path}.{key}" if path else key)


def batch_size(value: Any) -> int:
    """The first dimension of the first tensor that has one; 1 if there is none."""
    return next((len(tensor) for tensor in tensors_in(value) if tensor.dim()), 1)


def _parts(value: Any) -> dict[str, Any]:
    if isinstance(value, Mapping):
        return {str(key): part for key, part in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        named = dict(zip(value._fields, value))
        return {**{str(at): part for at, part in enumerate(value)}, **named}
    if isinstance(value, list | tuple):
        return {str(at): part for at, part in enumerate(value)}
    return {}
