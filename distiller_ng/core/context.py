"""What a policy sees when one of its hooks is called (layer 1)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from torch import Tensor, nn
from torch.optim import Optimizer

from distiller_ng.core.position import TrainPosition
from distiller_ng.core.samples import GradientSampler, SampleSource
from distiller_ng.core.window import PolicyWindow
from distiller_ng.errors import ArgumentError, CalibrationError
from distiller_ng.graph.changes import removed_entries
from distiller_ng.graph.dependency import DependencyGraph
from distiller_ng.graph.provider import ModelGraph
from distiller_ng.names import ParameterIndex

if TYPE_CHECKING:
    from distiller_ng.core.masks import MaskRegistry

__all__ = ["Compat", "StepContext", "checked_compat"]

#: Where an ancestor lost accuracy or precision by rule, do as it did (``sparseml``: ``strict_sparseml`` in a recipe).
Compat: TypeAlias = Literal["distiller", "sparseml"]

_NO_METRICS: Mapping[str, float] = MappingProxyType({})
_NO_TENSORS: Mapping[str, Tensor] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class StepContext:
    """Everything a policy or pruner may look at; built only for policies that are due.

    ``is_step`` is False for the micro-batches of gradient accumulation that do not begin (``on_minibatch_begin``) or
    complete (``on_minibatch_end``) an optimizer step. ``metrics`` maps ``"min"``/``"max"`` to the values the loop
    reported. ``graph`` follows the model's channels, ``data`` knows minibatches to sample, ``compat`` asks for the
    ancestor's rules. ``ranking_weights`` replaces weights for ranking only (batch-norm folding).
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
    data: SampleSource = field(default_factory=SampleSource)
    compat: Compat | None = None
    ranking_weights: Mapping[str, Tensor] = field(default_factory=lambda: _NO_TENSORS)

    @property
    def example_inputs(self) -> tuple[Any, ...] | None:
        """Positional arguments of one forward pass, if they are known."""
        known = self.graph.example_inputs if self.graph is not None else None
        return None if known is None else known.args

    def dependency(self) -> DependencyGraph:
        """The channel-dependency graph of the model; raises :class:`GraphError` where it cannot be followed."""
        return (self.graph or ModelGraph(self.model)).dependency()

    def removed(self, name: str, dim: int) -> int:
        """How many entries of a dimension of a parameter thinning has removed so far.

        Levels are relative to the original size, so that pruning again does not compound; Distiller's are not.
        """
        return 0 if self.compat == "distiller" else removed_entries(self.model, name, dim)

    @property
    def epoch(self) -> int:
        """Absolute, 0-based epoch."""
        return self.position.epoch

    @property
    def progress(self) -> float:
        """How much of the policy's window has passed, 0..1; see :meth:`PolicyWindow.progress`."""
        return self.window.progress(self.position, from_minus_one=self.compat == "sparseml")

    @property
    def sampler(self) -> GradientSampler:
        """The sampler of the run; raises :class:`CalibrationError` while there is none."""
        sampler = self.data.sampler
        if sampler is None:
            raise CalibrationError(
                "no data to look at: use the short form (for batch in scheduler.minibatches(loader)), or set "
                "scheduler.grad_sampler = GradientSampler(loader, loss=criterion)"
            )
        return sampler

    def gradients(
        self,
        names: Sequence[str],
        count: int,
        *,
        options: Mapping[str, Any] | None = None,
        weights: Mapping[str, Tensor] | None = None,
    ) -> Iterator[dict[str, Tensor]]:
        """``count`` gradients of the loss by name, each of one minibatch, of masked weights too.

        ``options`` go to the builder of the user's sampler; ``weights`` stand in for the model's own. See
        :meth:`GradientSampler.gradients`; raises :class:`CalibrationError` where there is nothing to sample.
        """
        wanted = {name: self.parameters[name] for name in names}
        with self.masks.gradients_unmasked():
            yield from self.sampler.with_options(options).gradients(self.model, wanted, count, weights)

    def weight(self, name: str) -> Tensor:
        """The tensor to rank for the parameter ``name``: its detached data, or the batch-norm folded version."""
        folded = self.ranking_weights.get(name)
        return self.parameters[name].detach() if folded is None else folded


def checked_compat(value: Any) -> Compat | None:
    """``value`` if it is one; raises :class:`ArgumentError` for anything else."""
    if value not in (None, *get_args(Compat)):
        raise ArgumentError(f"compat is 'distiller', 'sparseml' or left out, got {value!r}", argument=("compat",))
    checked: Compat | None = value
    return checked
