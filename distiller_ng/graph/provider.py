"""The graph of a model in training: traced when somebody asks, again when its structure changed (layer 1)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_map_only
from torch.utils.hooks import RemovableHandle

from distiller_ng.errors import GraphError
from distiller_ng.graph.dependency import DependencyGraph
from distiller_ng.graph.inputs import ExampleInputs, ExampleInputsLike, as_example_inputs
from distiller_ng.names import unwrap

__all__ = ["ModelGraph"]


class ModelGraph:
    """Traces ``model`` on its example inputs when they are known, and remembers the result until shapes change.

    Without ``example_inputs``, :meth:`watch` keeps those of the next forward pass.
    """

    def __init__(self, model: nn.Module, example_inputs: ExampleInputsLike | None = None) -> None:
        self._model = model
        self._inputs = None if example_inputs is None else as_example_inputs(example_inputs)
        self._watching: RemovableHandle | None = None
        self._graph: DependencyGraph | None = None
        self._shapes: tuple[Any, ...] = ()

    @property
    def example_inputs(self) -> ExampleInputs | None:
        """What one forward pass is called with, if that is known yet."""
        return self._inputs

    @example_inputs.setter
    def example_inputs(self, value: ExampleInputsLike | None) -> None:
        self._inputs = None if value is None else as_example_inputs(value)
        self._graph = None

    @property
    def is_ready(self) -> bool:
        """Whether the model can be traced."""
        return self._inputs is not None

    def watch(self) -> None:
        """Remember the inputs of the next forward pass, unless some are known."""
        if self._inputs is None and self._watching is None:
            self._watching = unwrap(self._model).register_forward_pre_hook(self._remember, with_kwargs=True)

    def _remember(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._inputs = ExampleInputs(*tree_map_only(Tensor, Tensor.detach, (args, kwargs)))
        if self._watching is not None:
            self._watching.remove()
            self._watching = None

    def dependency(self) -> DependencyGraph:
        """The channel-dependency graph of the model as it is now.

        Raises :class:`GraphError` when no example inputs are known, or the model cannot be traced.
        """
        if self._inputs is None:
            raise GraphError(
                "following the channels of a model takes example inputs: give them as "
                "file_config(..., example_inputs=(x,)) or CompressionScheduler(model, example_inputs=(x,))"
            )
        shapes = tuple((name, tuple(p.shape)) for name, p in unwrap(self._model).named_parameters())
        if self._graph is None or shapes != self._shapes:
            self._graph = DependencyGraph.trace(self._model, self._inputs)
            self._shapes = shapes
        return self._graph

    def __getstate__(self) -> dict[str, Any]:
        """Copies trace for themselves."""
        return {**self.__dict__, "_watching": None, "_graph": None}
