"""Lets the importance of a group pruner look at training (layer 2)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn
from torch.optim import Optimizer

from distiller_ng.core.context import StepContext
from distiller_ng.graph.inputs import ExampleInputsLike
from distiller_ng.graph.provider import ModelGraph
from distiller_ng.pruning.base import Pruner
from distiller_ng.pruning.importance.base import Importance

__all__ = ["WatchingPruner"]


class WatchingPruner(Pruner):
    """A pruner with an ``importance``, which may want to see the epoch before each active one."""

    importance: Importance

    @property
    def observes(self) -> bool:  # type: ignore[override]  # a matter of the importance, not of the class
        """Whether the epoch before each active one must be observed."""
        return self.importance.observes

    def start_observing(self, ctx: StepContext) -> None:
        """Let the importance look at the epoch."""
        self._observe(ctx.model, ctx.graph or ModelGraph(ctx.model), ctx.optimizer)

    def stop_observing(self) -> None:
        """Stop looking."""
        self.importance.stop()

    @contextlib.contextmanager
    def observing(self, model: nn.Module, example_inputs: ExampleInputsLike | None = None) -> Iterator[None]:
        """Let the importance look while the block trains or runs ``model``: ``with pruner.observing(model): ...``."""
        self._observe(model, ModelGraph(model, example_inputs))
        try:
            yield
        finally:
            self.stop_observing()

    def _observe(self, model: nn.Module, provider: ModelGraph, optimizer: Optimizer | None = None) -> None:
        provider.watch()
        self.importance.start(model, lambda: provider.dependency() if provider.is_ready else None, optimizer)
