"""Layers that compute with a function of their weight, for as long as a policy's window is open (layer 3)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from distiller_ng.core.context import StepContext
from distiller_ng.core.policy import Policy
from distiller_ng.core.window import PolicyWindow
from distiller_ng.errors import ArgumentError, TargetError
from distiller_ng.names import ALL_PRUNABLE, ALL_PRUNABLE_WITH_EMBEDDINGS, ParameterIndex, has_one_weight, unwrap
from distiller_ng.quantization._derived import Derived, derive_, underive_

__all__ = ["ReparametrizingPolicy", "check_flag"]

#: From the stored weight to the one that the layer computes with.
Function = Callable[[Tensor], Tensor]
_TOKENS = (ALL_PRUNABLE, ALL_PRUNABLE_WITH_EMBEDDINGS)
_FUNCTION, _REPLICA = "_weight_function", "_replica_weight"


class _ComputedWeight(Derived):
    """``weight`` is a function of the parameter of that name, which stays where and what it is."""

    prefix: ClassVar[str] = "Reparametrized"

    @property
    def weight(self) -> Tensor:
        """What the layer computes with."""
        stored = self._parameters.get("weight")
        tensor: Tensor = self.__dict__[_REPLICA] if stored is None else stored
        function: Function = self.__dict__[_FUNCTION]
        return function(tensor)

    @weight.setter
    def weight(self, value: Tensor) -> None:
        self.__dict__[_REPLICA] = value  # DataParallel gives its replicas plain tensors


class ReparametrizingPolicy(Policy):
    """Base: begins before the first forward pass of its window, ends after the last step of it.

    Parameters keep their names, identity and place in the optimizer; what they hold is the stored weight. When the
    window ends, or training does, each parameter becomes what its layer computed with.

    ``weights``: targets, each the ``weight`` of a linear, convolution or embedding layer.
    """

    outlives_window: ClassVar[bool] = True

    def __init__(self, weights: str | Sequence[str] = ALL_PRUNABLE) -> None:
        self.weights = weights
        self._names: list[str] = []
        self._index: ParameterIndex | None = None
        self._is_active = False
        self._is_over = False
        self._ends_now = False

    @abstractmethod
    def function(self, name: str) -> Function:
        """What a target's layer computes with."""

    def begin(self, ctx: StepContext) -> None:
        """The window begins: bring stored weights into form; not called when a run goes on."""

    def finish(self, ctx: StepContext, name: str) -> None:
        """The parameter ``name`` has just become what its layer computed with."""

    # -- hooks ------------------------------------------------------------------------------------------------------

    def on_epoch_begin(self, ctx: StepContext) -> None:
        """A window of whole epochs begins."""
        self._start(ctx)

    def on_minibatch_begin(self, ctx: StepContext) -> None:
        """Begin before this forward pass, or end before it."""
        if self._ends_now:
            self._end(ctx)
        else:
            self._start(ctx)

    def on_window_end(self, ctx: StepContext) -> None:
        """End now, or after the step that is being made: its gradients are those of the stored weights."""
        if ctx.window.is_stepwise and self._is_active:
            self._ends_now = True
        else:
            self._end(ctx)

    def on_finish(self, ctx: StepContext) -> None:
        """Training is over, and with it a window that is still open."""
        if self._is_active:
            self._end(ctx)

    def check(self, window: PolicyWindow, parameters: ParameterIndex) -> None:
        """Every target is the weight of a layer that can compute with a function of it; raises :class:`TargetError`."""
        names, self._index = parameters.select(self.weights, argument=("weights",)), parameters
        fitting = [name for name in names if _owners(parameters, name)]
        self._names = fitting
        if self.weights in _TOKENS and fitting:
            return  # recurrent and attention layers, which compute with several weights, stay as they are
        for name in names:
            if name not in fitting:
                message = f"{name!r} is not the weight of a linear, convolution or embedding layer"
                raise TargetError(message, argument=("weights",))

    def state_dict(self) -> dict[str, Any]:
        """How far the window got."""
        return {"is_active": self._is_active, "is_over": self._is_over, "ends_now": self._ends_now}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`state_dict`; what the parameters hold is in the model's state."""
        self._is_over, self._ends_now = bool(state["is_over"]), bool(state["ends_now"])
        if bool(state["is_active"]) != self._is_active:
            self._is_active = not self._is_active
            (self._derive if self._is_active else self._underive)()

    # -- internals --------------------------------------------------------------------------------------------------

    def _start(self, ctx: StepContext) -> None:
        if not self._is_active and not self._is_over:
            self.begin(ctx)
            self._is_active = True
            self._derive()

    @torch.no_grad()
    def _end(self, ctx: StepContext) -> None:
        self._ends_now, self._is_over = False, True
        if self._is_active:
            self._is_active = False
            computed = {name: self.function(name)(ctx.parameters[name]) for name in self._names}
            self._underive()
            for name, weight in computed.items():
                ctx.parameters[name].copy_(weight)
                self.finish(ctx, name)

    def _layers(self) -> Iterator[tuple[str, nn.Module]]:
        index = self._index
        for name in self._names if index is not None else ():
            for module in _owners(index, name):  # type: ignore[arg-type]
                yield name, module

    def _derive(self) -> None:
        for name, module in self._layers():
            if isinstance(module, _ComputedWeight):
                raise ArgumentError(f"another policy computes {name!r} already", argument=("weights",))
            module.__dict__[_FUNCTION] = self.function(name)
            derive_(module, _ComputedWeight)

    def _underive(self) -> None:
        for _, module in self._layers():
            underive_(module, _ComputedWeight)
            module.__dict__.pop(_FUNCTION, None)


def check_flag(name: str, value: Any) -> bool:
    """``value`` if it is true or false; raises :class:`ArgumentError` otherwise."""
    if not isinstance(value, bool):
        raise ArgumentError(f"{name} is true or false, got {value!r}", argument=(name,))
    return value


def _owners(parameters: ParameterIndex, name: str) -> list[nn.Module]:
    """The layers whose ``weight`` the parameter is: several, where it is tied."""
    found = parameters[name]
    return [
        module
        for module in unwrap(parameters.model).modules()
        if has_one_weight(module) and module._parameters.get("weight") is found
    ]
