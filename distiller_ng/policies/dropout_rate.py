"""The extension that changes dropout while a model trains (layer 3)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import nn

from distiller_ng.core.context import StepContext
from distiller_ng.core.policy import Policy
from distiller_ng.core.window import PolicyWindow
from distiller_ng.errors import ArgumentError, TargetError
from distiller_ng.names import ParameterIndex, canonical_name, unwrap
from distiller_ng.policies._held import HeldValues
from distiller_ng.policies.extensions import EXTENSIONS

__all__ = ["DropoutRate"]

_Dropout = nn.modules.dropout._DropoutNd
_HELD = HeldValues[float]()


@EXTENSIONS.register("DropoutRate")
class DropoutRate(Policy):
    """Sets the probability of every dropout layer while its window is open, and puts it back when the window ends.

    ``probability``: from 0 to 1, that an activation is dropped. A pruned network has less capacity to overfit with and
    needs less dropout: S. Han et al. scale it by the square root of the share of weights that is left. A window that
    never ends leaves what it set. Of several windows that are open the last one counts.

    Source: Distiller's ``adjust_dropout``; S. Han et al., "Learning both Weights and Connections for Efficient Neural
    Networks", https://arxiv.org/abs/1506.02626, section 3.3. With a quarter of the weights left, 0.5 becomes
    ``0.5 * sqrt(0.25) = 0.25``::

        extensions:
          less_dropout:
            class: DropoutRate
            probability: 0.25
        policies:
          - extension: {instance_name: less_dropout}
            starting_epoch: 10
            ending_epoch: 30

    Raises :class:`ArgumentError` for a probability out of range, :class:`TargetError` for a model without dropout
    layers (``nn.Dropout`` and the like; the dropout inside attention and recurrent layers is theirs).
    """

    def __init__(self, probability: float) -> None:
        is_number = isinstance(probability, int | float) and not isinstance(probability, bool)
        if not (is_number and 0 <= probability <= 1):
            message = f"a dropout probability lies between 0 and 1, got {probability!r}"
            raise ArgumentError(message, argument=("probability",))
        self.probability = float(probability)
        self._index: ParameterIndex | None = None
        self._before: dict[str, float] | None = None

    def on_epoch_begin(self, ctx: StepContext) -> None:
        """A window of whole epochs begins."""
        self._set(ctx)

    def on_update(self, ctx: StepContext) -> None:
        """A window of fractions begins."""
        self._set(ctx)

    def on_window_end(self, ctx: StepContext) -> None:
        """Put the probabilities back; a window without an end leaves them."""
        if not math.isinf(ctx.window.end):
            layers = _dropouts(ctx.model)
            for name, probability in (self._before or {}).items():
                found = _HELD.release(ctx.parameters, id(self), name, probability)
                if name in layers:
                    layers[name].p = found
        self._before = None

    def check(self, window: PolicyWindow, parameters: ParameterIndex) -> None:
        """The model must have dropout."""
        if not _dropouts(parameters.model):
            raise TargetError("the model has no dropout layers, so there is nothing to set: leave the extension out")
        self._index = parameters

    def describe(self) -> str:
        """The class and the probability."""
        return f"{type(self).__name__} ({self.probability:g})"

    def state_dict(self) -> dict[str, Any]:
        """The probabilities that return when the window ends; checkpoints of models do not know them."""
        return {"before": None if self._before is None else dict(self._before)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`state_dict`, on the model too."""
        before = state["before"]
        self._before = None if before is None else {name: float(p) for name, p in before.items()}
        if self._index is not None:
            _HELD.forget(self._index, id(self))
            self._hold(self._index, self._before or {})

    def _set(self, ctx: StepContext) -> None:
        if self._before is None:
            self._before = {name: layer.p for name, layer in _dropouts(ctx.model).items()}
            self._hold(ctx.parameters, self._before)

    def _hold(self, parameters: ParameterIndex, before: dict[str, float]) -> None:
        for name, layer in _dropouts(parameters.model).items():
            if name in before:
                before[name] = _HELD.hold(parameters, id(self), name, self.probability, before[name])
                layer.p = self.probability


def _dropouts(model: nn.Module) -> dict[str, nn.modules.dropout._DropoutNd]:
    return {
        canonical_name(name): module for name, module in unwrap(model).named_modules() if isinstance(module, _Dropout)
    }
