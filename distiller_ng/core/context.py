"""What a policy sees when one of its hooks is called (layer 1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.optim import Optimizer

from distiller_ng.core.position import TrainPosition
from distiller_ng.core.window import PolicyWindow
from distiller_ng.graph.dependency import DependencyGraph
from distiller_ng.graph.provider import ModelGraph
from distiller_ng.names import ParameterIndex

if TYPE_CHECKING:
    from distiller_ng.core.masks import MaskRegistry

__all__ = ["StepContext"]

_NO_METRICS: Mapping[str, float] = MappingProxyType({})
_NO_TENSORS: Mapping[str, Tensor] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class StepContext:
    """Everything a policy or pruner may look at; built only for policies that are due.

    ``is_step`` is False for the micro-batches of gradient accumulation that do not begin (``on_minibatch_begin``) or
    complete (``on_minibatch_end``) an optimizer step. ``metrics`` maps ``"min"``/``"max"`` to the values the loop
    reported. ``ranking_weights`` replaces weights for ranking only (batch-norm folding).
    """

    model: nn.Module
    parameters: ParameterIndex
    masks: MaskRegistry
    window: PolicyWindow
    position: TrainPosition
    optimizer: Optimizer | None = None
    loss: Tensor | None = None
    metrics: Mapping[str, float] = field(default_factory=lambda: _NO_METRICS)
    is_step: bool = True
    is_last_minibatch: bool = False
    graph: ModelGraph | None = None
    ranking_weights: Mapping[str, Tensor] = field(default_factory=lambda: _NO_TENSORS)

    @property
    def example_inputs(self) -> tuple[Any, ...] | None:
        """Positional arguments of one forward pass, if they are known."""
        known = self.graph.example_inputs if self.graph is not None else None
        return None if known is None else known.args

    def dependency(self) -> DependencyGraph:
        """The channel-dependency graph of the model; raises :class:`GraphError` where it cannot be followed."""
        return (self.graph or ModelGraph(self.model)).dependency()

    @property
    def epoch(self) -> int:
        """Absolute, 0-based epoch."""
        return self.position.epoch

    @property
    def progress(self) -> float:
        """How much of the policy's window has passed, 0..1; see :meth:`PolicyWindow.progress`."""
        return self.window.progress(self.position)

    def weight(self, name: str) -> Tensor:
        """The tensor to rank for the parameter ``name``: its detached data, or the batch-norm folded version."""
        folded = self.ranking_weights.get(name)
        return self.parameters[name].detach() if folded is None else folded
