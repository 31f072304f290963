"""Refusing a teacher whose outputs are no numbers, by name, without waiting for the accelerator (layer 2)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from distiller_ng.errors import ArgumentError
from distiller_ng.knowledge_distillation.capture import Call
from distiller_ng.knowledge_distillation.structures import named_tensors
from distiller_ng.knowledge_distillation.teachers import TeacherSource

__all__ = ["FiniteCheck"]


class FiniteCheck:
    """Looks at teachers' outputs where the loss is not finite: at once on the CPU, elsewhere before the step.

    Raises :class:`ArgumentError` that names the teacher and the output or layer. A student that computes NaN is not the
    teacher's fault and passes: GradScaler skips such steps.
    """

    def __init__(self) -> None:
        self._pending: dict[str, Tensor] = {}

    def look(self, value: Tensor, taught: Sequence[Sequence[Call]], sources: Sequence[TeacherSource]) -> None:
        """Look at one step's distance ``value`` and what the teachers computed."""
        if value.device.type == "cpu":
            if not bool(torch.isfinite(value)):
                self._raise({name: _is_bad(t) for name, t in _outputs(taught, sources)})
            return
        self._pending = {name: _is_bad(tensor) for name, tensor in _outputs(taught, sources)}

    def settle(self) -> None:
        """Read what :meth:`look` left on the accelerator."""
        pending, self._pending = self._pending, {}
        if pending and bool(torch.stack(list(pending.values())).any()):
            self._raise(pending)

    def forget(self) -> None:
        """Drop what was not read."""
        self._pending = {}

    @staticmethod
    def _raise(found: dict[str, Tensor]) -> None:
        for name, is_bad in found.items():
            if bool(is_bad):
                raise ArgumentError(
                    f"{name} holds NaN or infinity: the student would learn nothing from it. Check the teacher's "
                    "weights and inputs, and whether it overflows in float16 (autocast: bfloat16)",
                    argument=("teacher",),
                )


def _is_bad(tensor: Tensor) -> Tensor:
    """NaN or +infinity anywhere; -infinity is how classes are masked out."""
    return (torch.isnan(tensor) | (tensor == torch.inf)).any()


def _outputs(taught: Sequence[Sequence[Call]], sources: Sequence[TeacherSource]) -> Iterator[tuple[str, Tensor]]:
    for calls in taught:
        for call, source in zip(calls, sources):
            for path, tensor in named_tensors(call.output):
                yield f"teacher {source.name!r}: its output{' ' + repr(path) if path else ''}", tensor
            for layer, values in call.features.items():
                for path, tensor in named_tensors(values[0] if len(values) == 1 else values):
                    yield f"teacher {source.name!r}: layer {layer!r}{' ' + path if path else ''}", tensor
