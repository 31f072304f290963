"""The graph of a model in training: traced when somebody asks, again when its structure changed (layer 1)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
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
        self._waiting: list[Callable[[], object]] = []
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

    def watch(self, then: Callable[[], object] | None = None) -> None:
        """Remember the inputs of the next forward pass, unless some are known, and call ``then`` before it runs.

        Watching breaks the graph of a compiled model once; with ``fullgraph=True`` the inputs have to be given instead,
        which the name of the hook says in torch's own message.
        """
        if self._inputs is not None:
            return
        if then is not None and then not in self._waiting:
            self._waiting.append(then)
        if self._watching is None:
            self._watching = unwrap(self._model).register_forward_pre_hook(
                torch.compiler.disable(self._give_example_inputs_to_the_scheduler),  # type: ignore[no-untyped-call]
                with_kwargs=True,
            )

    def _give_example_inputs_to_the_scheduler(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        self._inputs = ExampleInputs(*tree_map_only(Tensor, Tensor.detach, (args, kwargs)))
        if self._watching is not None:
            self._watching.remove()
            self._watching = None
        waiting, self._waiting = self._waiting, []
        for then in waiting:
            then()

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

    def state_dict(self) -> dict[str, Any] | None:
        """The shapes of the example inputs, which are all that decisions depend on; None where none are known."""
        if self._inputs is None:
            return None
        return {"args": _described(list(self._inputs.args)), "kwargs": _described(dict(self._inputs.kwargs))}

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        """Go on with inputs of the same shapes, unless some are known already."""
        if state is not None and self._inputs is None:
            device = next((p.device for p in self._model.parameters()), torch.device("cpu"))
            args, kwargs = (_made(state[part], device) for part in ("args", "kwargs"))
            self._inputs = ExampleInputs(tuple(args), kwargs)

    def __getstate__(self) -> dict[str, Any]:
        """Copies trace for themselves."""
        return {**self.__dict__, "_watching": None, "_waiting": [], "_graph": None}


def _described(value: Any) -> Any:
    """A nest with every tensor as ``{tensor: shape, dtype}``; anything that is no plain value as None."""
    if isinstance(value, Tensor):
        return {"tensor": list(value.shape), "dtype": str(value.dtype).removeprefix("torch.")}
    if isinstance(value, Mapping):
        return {"mapping": {str(key): _described(item) for key, item in value.items()}}
    if isinstance(value, tuple | list):
        return {"tuple" if isinstance(value, tuple) else "list": [_described(item) for item in value]}
    return {"value": value if isinstance(value, bool | int | float | str) else None}


def _made(state: Mapping[str, Any], device: torch.device) -> Any:
    """A nest of tensors of the described shapes."""
    if "tensor" in state:
        dtype = getattr(torch, state["dtype"])
        shape = tuple(state["tensor"])
        if not dtype.is_floating_point:
            return torch.zeros(shape, dtype=dtype, device=device)
        return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    if "mapping" in state:
        return {key: _made(item, device) for key, item in state["mapping"].items()}
    for kind in (tuple, list):
        if kind.__name__ in state:
            return kind(_made(item, device) for item in state[kind.__name__])
    return state["value"]
