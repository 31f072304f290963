"""The extensions that write values into parameters: at once, or step by step (layer 3)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from distiller_ng.core.context import StepContext
from distiller_ng.core.policy import Policy
from distiller_ng.core.window import PolicyWindow
from distiller_ng.errors import ArgumentError
from distiller_ng.names import ParameterIndex
from distiller_ng.policies.extensions import EXTENSIONS
from distiller_ng.pruning.sparsity_schedules.curves import Curve, check_curve, interpolate
from distiller_ng.registry import RecipeTag

__all__ = ["GradualParam", "SetParam", "Values"]

#: A number for the whole parameter, or lists nested as its shape is.
Values: TypeAlias = float | Sequence[Any]


@EXTENSIONS.register(
    "SetParam",
    recipe_tag=RecipeTag(
        "SetParamModifier",
        start_epoch=0.0,
        ends="ignored",
        update_frequency=0.0,
        fixed_frequency=True,
        strict="params_strict",
    ),
)
class SetParam(Policy):
    """Writes ``val`` into parameters when its window starts; they learn on from there.

    ``weights``: targets, all of the shape that ``val`` (nested lists) has; a single number fills parameters of any
    shape. Masked weights stay zero.

    Source: SparseML's ``SetParamModifier``. Two biases at zero again in epoch 3::

        extensions:
          reset: {class: SetParam, weights: [fc.bias], val: [0.0, 0.0]}
        policies:
          - extension: {instance_name: reset}
            epochs: [3]

    Raises :class:`ArgumentError` for values that are no numbers or have another shape.
    """

    def __init__(self, weights: str | Sequence[str], val: Values) -> None:
        self.weights = weights
        self.val = _tensor("val", val)
        self._is_done = False

    def on_epoch_begin(self, ctx: StepContext) -> None:
        """In a window of whole epochs: once, in its first."""
        if not self._is_done:
            self.on_update(ctx)

    def on_update(self, ctx: StepContext) -> None:
        """Write."""
        self._is_done = True
        _write(ctx, self.weights, self.val)

    def check(self, window: PolicyWindow, parameters: ParameterIndex) -> None:
        """The value fits every parameter."""
        _check_shapes(parameters, self.weights, {"val": self.val})

    def state_dict(self) -> dict[str, Any]:
        """Whether it was written."""
        return {"is_done": self._is_done}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`state_dict`."""
        self._is_done = bool(state["is_done"])


@EXTENSIONS.register(
    "GradualParam",
    recipe_tag=RecipeTag("GradualParamModifier", ends="after_start", strict="params_strict"),
)
class GradualParam(Policy):
    """Writes into parameters what lies between ``init_val`` and ``final_val``, at every update of its window.

    ``weights``: targets, all of the shape that the values (nested lists, or numbers for any shape) have.
    ``inter_func``: linear, cubic or inverse_cubic. At the end of the window ``final_val`` is written. Between updates
    the parameters learn.

    Source: SparseML's ``GradualParamModifier`` (which knows linear only). From 1 to 0 in epochs 0 to 4: 1, 0.75, 0.5,
    0.25, 0::

        extensions:
          fade: {class: GradualParam, weights: [gate.bias], init_val: [1.0], final_val: [0.0]}
        policies:
          - extension: {instance_name: fade}
            starting_epoch: 0
            ending_epoch: 4
            frequency: 1
            trigger: step

    Raises :class:`ArgumentError` for values that are no numbers or have another shape, and for a window without end.
    """

    def __init__(
        self, weights: str | Sequence[str], init_val: Values, final_val: Values, *, inter_func: Curve = "linear"
    ) -> None:
        self.weights = weights
        self.init_val, self.final_val = _tensor("init_val", init_val), _tensor("final_val", final_val)
        self.inter_func = check_curve(inter_func)

    def on_epoch_begin(self, ctx: StepContext) -> None:
        """Write what this epoch's progress says."""
        self.on_update(ctx)

    def on_update(self, ctx: StepContext) -> None:
        """Write what the progress says."""
        share = interpolate(0.0, 1.0, ctx.progress, self.inter_func)
        _write(ctx, self.weights, self.init_val * (1 - share) + self.final_val * share)

    def on_window_end(self, ctx: StepContext) -> None:
        """Write the last value."""
        _write(ctx, self.weights, self.final_val)

    def check(self, window: PolicyWindow, parameters: ParameterIndex) -> None:
        """The values fit every parameter, and the window ends."""
        if math.isinf(window.end):
            raise ArgumentError("GradualParam needs a window that ends: give ending_epoch", argument=("ending_epoch",))
        _check_shapes(parameters, self.weights, {"init_val": self.init_val, "final_val": self.final_val})


def _tensor(argument: str, value: Any) -> Tensor:
    try:
        found = torch.as_tensor(value, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        found = None
    if found is None or isinstance(value, str | bool):
        message = f"{argument} is a number, or lists of numbers nested as the parameter's shape; got {value!r}"
        raise ArgumentError(message, argument=(argument,))
    return found


def _check_shapes(parameters: ParameterIndex, targets: str | Sequence[str], values: Mapping[str, Tensor]) -> None:
    for name in parameters.select(targets, argument=("weights",)):
        for argument, value in values.items():
            if value.dim() and value.shape != parameters[name].shape:
                message = f"{argument} has the shape {list(value.shape)}, {name!r} {list(parameters[name].shape)}"
                raise ArgumentError(message, argument=(argument,))


@torch.no_grad()
def _write(ctx: StepContext, targets: str | Sequence[str], value: Tensor) -> None:
    for name in ctx.parameters.select(targets, argument=("weights",)):
        parameter = ctx.parameters[name]
        parameter.copy_(value.to(device=parameter.device, dtype=parameter.dtype).expand_as(parameter))
    ctx.masks.project_()
