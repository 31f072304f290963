"""Lets the importance of a group pruner look at training (layer 2)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from torch import nn

from distiller_ng.core.context import StepContext
from distiller_ng.graph.dependency import DependencyGraph
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
        provider = ctx.graph or ModelGraph(ctx.model)
        provider.watch()
        self.importance.start(ctx.model, _graph_of(provider), ctx.optimizer)

    def stop_observing(self) -> None:
        """Stop looking."""
        self.importance.stop()

    @contextlib.contextmanager
    def observing(self, model: nn.Module, example_inputs: ExampleInputsLike | None = None) -> Iterator[None]:
        """Let the importance look while the block trains or runs ``model``: ``with pruner.observing(model): ...``.

        Importances that look at gradients take every backward pass in the block for a sample.
        """
        provider = ModelGraph(model, example_inputs)
        provider.watch(provider.dependency)
        self.importance.start(model, _graph_of(provider), by_hand=True)
        try:
            yield
        finally:
            self.stop_observing()


def _graph_of(provider: ModelGraph) -> Callable[[], DependencyGraph | None]:
    """The graph, once the model's inputs are known."""
    return lambda: provider.dependency() if provider.is_ready else None
