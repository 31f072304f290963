"""What a pruner does around the real optimizer steps, gradients unscaled and skipped steps left out (layer 3)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from distiller_ng.core.context import StepContext

__all__ = ["StepHooks"]


class StepHooks:
    """Calls ``before(ctx)`` and ``after(ctx)`` around the step of each optimizer, once for one :meth:`arm`.

    The optimizers' own hooks are used, as only they see gradients the way they are applied: after gradient scaling was
    undone, and never in a step that is skipped.
    """

    def __init__(self, before: Callable[[StepContext], None], after: Callable[[StepContext], None]) -> None:
        self._before, self._after = before, after
        self._handles: list[tuple[Optimizer, RemovableHandle]] = []
        self._armed: dict[int, StepContext] = {}

    def arm(self, ctx: StepContext) -> None:
        """Wait for the next step of every optimizer of the run."""
        self._armed.clear()
        for optimizer in ctx.masks.optimizers:
            self._armed[id(optimizer)] = replace(ctx, optimizer=optimizer)
            if all(known is not optimizer for known, _ in self._handles):
                self._handles.append((optimizer, optimizer.register_step_pre_hook(self._enter)))
                self._handles.append((optimizer, optimizer.register_step_post_hook(self._leave)))

    def disarm(self) -> None:
        """Wait no longer; the optimizers' hooks stay, as one of them may be running."""
        self._armed.clear()

    def remove(self) -> None:
        """Remove the optimizers' hooks."""
        self.disarm()
        for _, handle in self._handles:
            handle.remove()
        self._handles.clear()

    @torch.no_grad()
    def _enter(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        ctx = self._armed.get(id(optimizer))
        if ctx is not None and not _is_skipped(optimizer):
            self._before(ctx)

    @torch.no_grad()
    def _leave(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        ctx = self._armed.pop(id(optimizer), None)
        if ctx is not None and not _is_skipped(optimizer):
            self._after(ctx)

    def __getstate__(self) -> dict[str, Any]:
        """Hooks belong to one run; copies wait anew from their next minibatch on."""
        return {**self.__dict__, "_handles": [], "_armed": {}}


def _is_skipped(optimizer: Optimizer | None) -> bool:
    """Whether a fused optimizer will skip this step inside, having found infinite gradients."""
    found_inf = getattr(optimizer, "found_inf", None)
    return found_inf is not None and bool(torch.as_tensor(found_inf).any())
