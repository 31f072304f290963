"""Pruners written for Distiller (``set_param_mask`` and nothing else) run through one adapter (layer 2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from distiller_ng.core.context import StepContext
from distiller_ng.core.masker import USER, ParameterMasker
from distiller_ng.errors import ArgumentError
from distiller_ng.pruning.base import DEFAULT_TARGET, MaskGroup, Pruner, Target

__all__ = ["LegacyPrunerAdapter", "as_pruner"]


class LegacyPrunerAdapter(Pruner):
    """Asks a Distiller-style pruner about every parameter, one at a time; it sees the model's own names."""

    binary_masks = False  # nothing is known about what the wrapped pruner writes

    def __init__(self, legacy: Any) -> None:
        super().__init__(str(getattr(legacy, "name", "") or type(legacy).__name__))
        self.legacy = legacy

    def accept_levels(self, levels: Any) -> Any:
        """Whatever the wrapped pruner makes of them."""
        return levels

    def targets(self) -> Sequence[Target]:
        """Every parameter."""
        return [Target(DEFAULT_TARGET, ())]

    def compute_masks(self, group: MaskGroup, ctx: StepContext) -> Mapping[str, Tensor]:
        """The masks the wrapped pruner writes into a scratch dictionary."""
        meta = {**ctx.window.meta(ctx.epoch), "model": ctx.model, "optimizer": ctx.optimizer}
        self.legacy.levels = self.levels if self.levels is not None else getattr(self.legacy, "levels", None)
        masks: dict[str, Tensor] = {}
        for name in group.names:
            raw = ctx.parameters.raw_name(name)
            scratch = ParameterMasker(raw)
            scratch.set(ctx.masks[name].owners.get(self.owner), owner=USER)
            before = scratch.mask
            self.legacy.set_param_mask(ctx.parameters[name], raw, {raw: scratch}, meta)
            if scratch.mask is not None and scratch.mask is not before:
                masks[name] = scratch.mask
        return masks


def as_pruner(pruner: Any) -> Pruner:
    """``pruner`` itself, or an adapter around one with Distiller's interface; :class:`ArgumentError` otherwise."""
    if isinstance(pruner, Pruner):
        return pruner
    if isinstance(pruner, type) or not callable(getattr(pruner, "set_param_mask", None)):
        raise ArgumentError(f"not a pruner: {pruner!r}. Give an instance of a subclass of distiller_ng.pruning.Pruner")
    return LegacyPrunerAdapter(pruner)
