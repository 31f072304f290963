"""The extension that leaves whole layers out (layer 3)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import nn

from distiller_ng.core.context import StepContext
from distiller_ng.core.policy import Policy
from distiller_ng.core.window import PolicyWindow
from distiller_ng.names import ParameterIndex, unwrap
from distiller_ng.ops.modules import model_find_module
from distiller_ng.policies._layers import check_layer_names, select_layers
from distiller_ng.policies.extensions import EXTENSIONS
from distiller_ng.quantization._derived import Derived, derive_, underive_
from distiller_ng.registry import RecipeTag

__all__ = ["LayerPruning", "SkippedLayer"]


class SkippedLayer(nn.Module):
    """Stands where a layer was: returns its first argument."""

    def forward(self, value: Any, *args: Any, **kwargs: Any) -> Any:
        """``value``."""
        return value


class _Skipped(Derived):
    """A layer that returns its first argument, until it is itself again."""

    prefix: ClassVar[str] = "Skipped"

    def forward(self, value: Any, *args: Any, **kwargs: Any) -> Any:
        """``value``."""
        return value


@EXTENSIONS.register(
    "LayerPruning",
    recipe_tag=RecipeTag(
        "LayerPruningModifier",
        start_epoch=-1.0,
        end_epoch=-1.0,
        update_frequency=0.0,
        fixed_frequency=True,
        params=None,
    ),
)
class LayerPruning(Policy):
    """Leaves layers out while its window is open: each returns its first argument as it is.

    ``layers``: names of modules, ``re:`` patterns from the start of a name, or ``__ALL_PRUNABLE__``. What they return
    must have the shape of what they take. When the window ends they compute again, with the parameters they had; where
    it never ends, training ends with ``SkippedLayer`` modules in their places, which have no parameters.

    Source: SparseML's ``LayerPruningModifier``; A. Fan et al., "Reducing Transformer Depth on Demand with Structured
    Dropout", https://arxiv.org/abs/1909.11556. Half of a transformer's layers from the start::

        extensions:
          shallow:
            class: LayerPruning
            layers: [encoder.layers.1, encoder.layers.3]
        policies:
          - extension: {instance_name: shallow}
            starting_epoch: 0
            ending_epoch: -1

    Raises :class:`TargetError` for a name that matches no module.
    """

    def __init__(self, layers: str | Sequence[str]) -> None:
        self.layers = check_layer_names(layers)
        self._model: nn.Module | None = None
        self._is_active = False
        self._is_over = False

    def on_added(self, ctx: StepContext) -> None:
        """A window that begins with training begins now, so that a checkpoint's model is the one that trains."""
        self._model = ctx.model
        if ctx.window.start <= 0:
            self._switch(True)

    def on_epoch_begin(self, ctx: StepContext) -> None:
        """A window of whole epochs begins."""
        self._start()

    def on_minibatch_begin(self, ctx: StepContext) -> None:
        """Begin before this forward pass."""
        self._start()

    def on_window_end(self, ctx: StepContext) -> None:
        """The layers compute again; where the window never ends they are gone."""
        if math.isinf(ctx.window.end):
            self.on_finish(ctx)
        self._is_over = True
        self._switch(False)

    def on_finish(self, ctx: StepContext) -> None:
        """A model that was trained without the layers to the end goes without them."""
        if self._is_active:
            self._is_over = True
            layers = select_layers(ctx.model, self.layers)
            self._switch(False)
            for name in layers:
                _replace_(unwrap(ctx.model), name)

    def check(self, window: PolicyWindow, parameters: ParameterIndex) -> None:
        """The names must exist."""
        select_layers(parameters.model, self.layers)

    def state_dict(self) -> dict[str, Any]:
        """Whether the layers are left out."""
        return {"is_active": self._is_active, "is_over": self._is_over}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`state_dict`, on the model too."""
        self._is_over = bool(state["is_over"])
        self._switch(bool(state["is_active"]))

    def _start(self) -> None:
        if not self._is_over:
            self._switch(True)

    def _switch(self, on: bool) -> None:
        if on == self._is_active or self._model is None:
            return
        self._is_active = on
        for module in select_layers(self._model, self.layers).values():
            (derive_ if on else underive_)(module, _Skipped)


def _replace_(model: nn.Module, name: str) -> None:
    parent, _, child = name.rpartition(".")
    holder = model_find_module(model, parent) if parent else model
    if holder is not None and child in holder._modules:  # a part of a layer that is gone has no place of its own
        holder._modules[child] = SkippedLayer()
