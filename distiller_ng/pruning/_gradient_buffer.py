"""The gradients of the last training steps, for pruners without anything to sample from (layer 2)."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from distiller_ng.core.context import StepContext

__all__ = ["GradientBuffer"]


class GradientBuffer:
    """A ring of gradients by parameter; memory: so many times the size of all targets.

    Steps whose gradients are not finite, and parameters without gradient, leave nothing and zeros.
    """

    def __init__(self) -> None:
        self._steps: deque[dict[str, Tensor]] = deque()

    @property
    def count(self) -> int:
        """How many steps are kept."""
        return len(self._steps)

    def add(self, ctx: StepContext, names: Sequence[str], limit: int) -> None:
        """Keep the gradients of the step that is about to be made, and of those before it the last ``limit - 1``."""
        found: dict[str, Tensor] = {}
        for name in names:
            parameter = ctx.parameters[name]
            gradient = parameter.grad
            found[name] = torch.zeros_like(parameter) if gradient is None else gradient.detach().clone()
        is_finite = all(bool(torch.isfinite(gradient).all()) for gradient in found.values())
        if not is_finite or all(ctx.parameters[name].grad is None for name in names):
            return
        self._steps.append(found)
        # Steps from before a weight lost channels say nothing about it any more.
        while len(self._steps) > limit or any(self._steps[0][n].shape != found[n].shape for n in self._steps[0]):
            self._steps.popleft()

    def last(self, count: int) -> Iterator[Mapping[str, Tensor]]:
        """The last ``count`` of them, oldest first."""
        yield from list(self._steps)[-count:]

    def state_dict(self) -> dict[str, Any]:
        """One tensor for each parameter: ``[steps, *shape]``."""
        names = self._steps[0] if self._steps else ()
        return {name: torch.stack([step[name] for step in self._steps]) for name in names}

    @classmethod
    def restored(cls, state: Mapping[str, Tensor]) -> GradientBuffer:
        """From :meth:`state_dict`."""
        buffer = cls()
        for index in range(len(next(iter(state.values()), ()))):
            buffer._steps.append({name: stacked[index].clone() for name, stacked in state.items()})
        return buffer
