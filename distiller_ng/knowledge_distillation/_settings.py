"""Reading the arguments of distillers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from distiller_ng.errors import ArgumentError
from distiller_ng.graph.inputs import ExampleInputs
from distiller_ng.knowledge_distillation.base import DistillationLoss, check_positive, create_loss
from distiller_ng.knowledge_distillation.teachers import AutocastType
from distiller_ng.names import unwrap

__all__ = ["read_autocast", "read_input_keys", "read_logits_loss", "read_output_keys", "read_shares", "usual_inputs"]


def read_logits_loss(spec: Any, temperature: float, class_dim: int | None) -> DistillationLoss | None:
    """The loss on the models' outputs, None for ``none``; raises :class:`ArgumentError`."""
    if spec in (None, "none"):
        return None
    try:
        loss = create_loss(spec, temperature=temperature, class_dim=class_dim)
    except ArgumentError as error:
        where = error.argument if error.argument[:1] == ("class_dim",) else ("logits", *error.argument)
        raise ArgumentError(str(error), argument=where) from None
    if loss.layers != 1:
        raise ArgumentError(f"{type(loss).__name__} compares layers, not logits", argument=("logits",))
    return loss


def read_output_keys(keys: Any) -> tuple[list[str], list[str]]:
    """The student's and the teacher's keys, none for the output itself; raises :class:`ArgumentError`."""
    if keys is None:
        return [], []
    if isinstance(keys, str | int) and not isinstance(keys, bool):
        keys = [keys]
    pairs = list(keys.items()) if isinstance(keys, Mapping) else [(k, k) for k in keys] if _is_list(keys) else []
    if not pairs or any(isinstance(k, bool) or not isinstance(k, str | int) for pair in pairs for k in pair):
        raise ArgumentError(
            f"output_keys is a list of names or positions, or {{student's: teacher's}}; got {keys!r}",
            argument=("output_keys",),
        )
    return [str(mine) for mine, _ in pairs], [str(theirs) for _, theirs in pairs]


def read_autocast(value: Any) -> AutocastType | None:
    """The type a teacher is computed in; raises :class:`ArgumentError`."""
    if value not in (None, "float16", "bfloat16"):
        raise ArgumentError(f"autocast is float16, bfloat16 or none, got {value!r}", argument=("autocast",))
    chosen: AutocastType | None = value
    return chosen


def read_input_keys(keys: Any) -> list[str]:
    """The named inputs a teacher is given, none for all; raises :class:`ArgumentError`."""
    if keys is None:
        return []
    if not _is_list(keys) or not all(isinstance(key, str) for key in keys):
        raise ArgumentError(f"teacher_input_keys is a list of names, got {keys!r}", argument=("teacher_input_keys",))
    return list(keys)


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def read_shares(weights: Any, count: int) -> list[float]:
    """How much each teacher counts, summing to 1; raises :class:`ArgumentError`.

    >>> read_shares([3, 1], 2)
    [0.75, 0.25]
    """
    if weights is None:
        return [1 / count] * count
    if not _is_list(weights) or len(weights) != count:
        raise ArgumentError(
            f"teacher_weights needs one number for each of {count} teacher{'s' * (count > 1)}, got {weights!r}",
            argument=("teacher_weights",),
        )
    checked = [check_positive("teacher_weights", weight) for weight in weights]
    return [weight / sum(checked) for weight in checked]


def usual_inputs(model: nn.Module) -> ExampleInputs | None:
    """Zeros of the model's ``input_shape``, where it has that attribute, as models of ``create_model`` do."""
    shape = getattr(unwrap(model), "input_shape", None)
    first = next(iter(model.parameters()), None)
    if not isinstance(shape, tuple) or not shape or not all(isinstance(size, int) for size in shape) or first is None:
        return None
    return ExampleInputs((torch.zeros(shape, device=first.device, dtype=first.dtype),))
