"""The extension that removes what structured pruning left empty (layer 3)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any, Literal, TypeAlias

from torch import nn

from distiller_ng.core.context import StepContext
from distiller_ng.core.policy import Policy
from distiller_ng.core.window import PolicyWindow
from distiller_ng.errors import ArgumentError, TargetError, did_you_mean
from distiller_ng.names import ParameterIndex
from distiller_ng.policies.extensions import EXTENSIONS
from distiller_ng.registry import RecipeTag
from distiller_ng.thinning.apply import ThinningReport
from distiller_ng.thinning.functions import remove_channels, remove_filters

__all__ = ["LayerThinning", "StructureType"]

StructureType: TypeAlias = Literal["filter", "channel"]
_FUNCTIONS: dict[str, Callable[..., ThinningReport]] = {"filter": remove_filters, "channel": remove_channels}
_TOLERANCE = 1e-9  # epochs

logger = logging.getLogger(__name__)


@EXTENSIONS.register(
    "LayerThinning",
    recipe_tag=RecipeTag(
        "LayerThinningModifier",
        start_epoch=-1.0,
        end_epoch=-1.0,
        ends="never",
        update_frequency=0.0,
        fixed_frequency=True,
        params=None,
    ),
)
class LayerThinning(Policy):
    """Physically removes filters (or channels) that are zero, at the given epochs, with everything that follows them.

    ``structure_type``: ``filter`` or ``channel``. ``update_epochs``: when (fractions too); where training ends before
    any of them was reached, or none is given, at the end of training. ``param_group_dependency_map``: SparseML's map
    ``{"a.weight,b.weight": [c.weight]}`` of what depends on what; its names are looked at (``strict``: each must
    exist), but what is cut follows from the model's own graph, which is traced on the inputs of training.

    Parameters, gradients, masks and optimizer state are cut; outputs stay what they were, and where they would not,
    nothing is removed and an error says why. Source: SparseML's ``LayerThinningModifier``. After structured pruning
    until epoch 20::

        extensions:
          thin: {class: LayerThinning, update_epochs: [20]}
        policies:
          - extension: {instance_name: thin}
            starting_epoch: 0
            ending_epoch: -1

    Raises :class:`ArgumentError` for epochs that are no numbers, :class:`TargetError` for unknown parameters, and while
    training :class:`GraphError` where the model cannot be followed.
    """

    def __init__(
        self,
        *,
        structure_type: StructureType = "filter",
        update_epochs: Sequence[float] = (),
        param_group_dependency_map: Mapping[str, Sequence[str]] | None = None,
        strict: bool = True,
    ) -> None:
        if structure_type not in _FUNCTIONS:
            message = f"structure_type is filter or channel, got {structure_type!r}"
            raise ArgumentError(message, argument=("structure_type",))
        if param_group_dependency_map is not None and not isinstance(param_group_dependency_map, Mapping):
            message = f"param_group_dependency_map is a map of names, got {param_group_dependency_map!r}"
            raise ArgumentError(message, argument=("param_group_dependency_map",))
        self.structure_type: StructureType = structure_type
        self.update_epochs = _epochs(update_epochs)
        self.param_group_dependency_map = param_group_dependency_map or {}
        self.strict = strict
        self._done = 0
        #: What the last removal did; None before the first.
        self.report: ThinningReport | None = None

    def on_added(self, ctx: StepContext) -> None:
        """Refuses models whose parameters cannot change their shape."""
        if isinstance(ctx.model, nn.parallel.DistributedDataParallel):
            message = "LayerThinning cannot act below DistributedDataParallel: thin model.module between epochs instead"
            raise ArgumentError(message)

    def on_minibatch_begin(self, ctx: StepContext) -> None:
        """Remove, where an epoch was reached; between optimizer steps only."""
        if ctx.graph is not None and not ctx.graph.is_ready:
            ctx.graph.watch()
        elif ctx.is_step and self._is_due(ctx):
            self._remove(ctx)

    def on_finish(self, ctx: StepContext) -> None:
        """Remove at last, if nothing was removed yet."""
        if self._done == 0:
            self._remove(ctx)

    def check(self, window: PolicyWindow, parameters: ParameterIndex) -> None:
        """The map's names must exist."""
        for key, dependents in self.param_group_dependency_map.items():
            for name in [part.strip() for part in key.split(",")] + list(dependents) if self.strict else ():
                if parameters.find(name) is None and not _is_module(parameters, name):
                    message = f"{name!r} is no parameter of the model. {did_you_mean(name, parameters)}"
                    raise TargetError(message, argument=("param_group_dependency_map", key))

    def state_dict(self) -> dict[str, Any]:
        """How many of the epochs are done."""
        return {"done": self._done}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`state_dict`."""
        self._done = int(state["done"])

    def _is_due(self, ctx: StepContext) -> bool:
        reached = sum(ctx.position.fraction >= epoch - _TOLERANCE for epoch in self.update_epochs)
        return reached > self._done

    def _remove(self, ctx: StepContext) -> None:
        example = None if ctx.graph is None else ctx.graph.example_inputs
        if example is None:
            logger.warning("LayerThinning removed nothing: it is not known what the model is called with")
            return
        self._done = max(1, sum(ctx.position.fraction >= epoch - _TOLERANCE for epoch in self.update_epochs))
        ctx.masks.apply_changes_()
        remove = _FUNCTIONS[self.structure_type]
        self.report = remove(ctx.model, ctx.masks, optimizer=ctx.masks.optimizers, example_inputs=example)
        ctx.masks.follow()


def _is_module(parameters: ParameterIndex, name: str) -> bool:
    return any(known.startswith(name + ".") for known in parameters)


def _epochs(value: Any) -> tuple[float, ...]:
    entries = [value] if isinstance(value, Real) else value
    if isinstance(entries, str | Mapping) or not isinstance(entries, Sequence):
        raise ArgumentError(f"update_epochs is a list of epochs, got {value!r}", argument=("update_epochs",))
    for position, epoch in enumerate(entries):
        if isinstance(epoch, bool) or not isinstance(epoch, int | float) or epoch < 0:
            message = f"update_epochs holds epochs from 0, got {epoch!r}"
            raise ArgumentError(message, argument=("update_epochs", position))
    return tuple(sorted({float(epoch) for epoch in entries}))
