"""The extension that freezes parameters, or lets them learn, for a while (layer 3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from distiller_ng.core.context import StepContext
from distiller_ng.core.policy import Policy
from distiller_ng.core.window import PolicyWindow
from distiller_ng.errors import ArgumentError
from distiller_ng.names import ParameterIndex
from distiller_ng.policies._held import HeldValues
from distiller_ng.policies._step_hooks import StepHooks
from distiller_ng.policies.extensions import EXTENSIONS
from distiller_ng.registry import RecipeTag

__all__ = ["TrainableParams"]

_HELD = HeldValues[bool]()


@EXTENSIONS.register(
    "TrainableParams",
    recipe_tag=RecipeTag(
        "TrainableParamsModifier",
        start_epoch=-1.0,
        end_epoch=-1.0,
        update_frequency=0.0,
        fixed_frequency=True,
        strict="params_strict",
    ),
)
class TrainableParams(Policy):
    """Sets ``requires_grad`` of parameters while its window is open, and puts it back when the window ends.

    ``weights``: targets. ``trainable``: true or false; text is false if it contains an ``f`` or a ``0``, as in recipes.
    A parameter that is frozen loses its gradient, so that the optimizer leaves it alone (below DistributedDataParallel
    that is all: the flag stays). A window that never ends leaves what it set. Of several windows that are open the last
    one counts.

    Source: SparseML's ``TrainableParamsModifier``. The first layer learns from epoch 10 on only::

        extensions:
          freeze:
            class: TrainableParams
            weights: ['re:conv1.*']
            trainable: false
        policies:
          - extension: {instance_name: freeze}
            starting_epoch: 0
            ending_epoch: 10

    Raises :class:`ArgumentError` for another ``trainable``.
    """

    def __init__(self, weights: str | Sequence[str], *, trainable: bool | str = True) -> None:
        if not isinstance(trainable, bool | str):
            raise ArgumentError(f"trainable is true or false, got {trainable!r}", argument=("trainable",))
        self.weights = weights
        self.trainable = not set(trainable.lower()) & set("f0") if isinstance(trainable, str) else trainable
        self._before: dict[str, bool] | None = None
        self._is_over = False
        self._index: ParameterIndex | None = None
        self._steps = StepHooks(self._drop_gradients, _nothing)

    def on_epoch_begin(self, ctx: StepContext) -> None:
        """A window of whole epochs begins."""
        self._set(ctx)

    def on_minibatch_begin(self, ctx: StepContext) -> None:
        """Begin before this forward pass."""
        self._set(ctx)
        if self._before is not None and self._drops and ctx.is_step:
            self._steps.arm(ctx)

    def on_finish(self, ctx: StepContext) -> None:
        """Leave nothing on the optimizers."""
        self._steps.remove()

    def on_update(self, ctx: StepContext) -> None:
        """Begin, where nothing came before."""
        self._set(ctx)

    def on_window_end(self, ctx: StepContext) -> None:
        """Put the flags back; a window without an end leaves them."""
        self._is_over = True
        if ctx.window.end != float("inf"):
            for name, flag in (self._before or {}).items():
                self._flag(ctx.parameters, name, _HELD.release(ctx.parameters, id(self), name, flag))
        self._before = None

    def check(self, window: PolicyWindow, parameters: ParameterIndex) -> None:
        """The names must exist."""
        parameters.select(self.weights, argument=("weights",))
        self._index = parameters

    def state_dict(self) -> dict[str, Any]:
        """What was changed, and what it was before; checkpoints of models do not know."""
        return {"before": None if self._before is None else dict(self._before), "is_over": self._is_over}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`state_dict`, on the model too."""
        self._is_over = bool(state["is_over"])
        self._before = None if state["before"] is None else {n: bool(flag) for n, flag in state["before"].items()}
        if self._index is not None:
            _HELD.forget(self._index, id(self))
            self._hold(self._index, self._before or {})

    @property
    def _drops(self) -> bool:
        """Whether freezing means dropping gradients: DistributedDataParallel waits for those of every parameter."""
        model = None if self._index is None else self._index.model
        return not self.trainable and isinstance(model, nn.parallel.DistributedDataParallel)

    def _drop_gradients(self, ctx: StepContext) -> None:
        for name in self._before or ():
            ctx.parameters[name].grad = None

    def _set(self, ctx: StepContext) -> None:
        if self._before is not None or self._is_over:
            return
        names = ctx.parameters.select(self.weights, argument=("weights",))
        self._before = {name: ctx.parameters[name].requires_grad for name in names}
        self._hold(ctx.parameters, self._before)

    def _hold(self, parameters: ParameterIndex, before: dict[str, bool]) -> None:
        for name, flag in before.items():
            before[name] = _HELD.hold(parameters, id(self), name, self.trainable, flag)
            self._flag(parameters, name, self.trainable)

    def _flag(self, parameters: ParameterIndex, name: str, value: bool) -> None:
        if self._drops:
            return
        parameter = parameters[name]
        parameter.requires_grad_(value)
        if not value:
            parameter.grad = None


def _nothing(ctx: StepContext) -> None:
    return None
