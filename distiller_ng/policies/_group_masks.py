"""Masks of filters and channels, extended to everything that belongs to them (layer 3)."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from distiller_ng.core.context import StepContext
from distiller_ng.errors import GraphError
from distiller_ng.graph.dependency import DependencyGraph
from distiller_ng.pruning.base import Pruner
from distiller_ng.pruning.groups import expand_to_groups

__all__ = ["GroupMasks"]

logger = logging.getLogger(__name__)


class GroupMasks:
    """Extends one pruner's masks to whole dependency groups; ``required``: it is an error where that cannot be done.

    Where nobody said what the model is called with, masks wait for the next forward pass (:meth:`late`).
    """

    def __init__(self, pruner: Pruner, required: bool) -> None:
        self._pruner, self._required = pruner, required
        self._waiting: dict[str, Tensor] = {}
        self._given_up = False

    @property
    def is_structural(self) -> bool:
        """Whether the pruner masks anything whole."""
        return any(self._pruner.structure_dim(name) is not None for name in self._pruner.names)

    def extend(self, ctx: StepContext, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``masks``, and those of everything that belongs to the same channels."""
        if self._given_up or ctx.graph is None or not masks:
            return dict(masks)
        if not ctx.graph.is_ready:
            self._waiting = dict(masks)
            return dict(masks)
        self._waiting = {}
        graph = self._graph(ctx)
        if graph is None:
            return dict(masks)
        followed = {name: mask for name, mask in masks.items() if self._can_follow(graph, name)}
        dims = {name: dim for name in followed if (dim := self._pruner.structure_dim(name)) is not None}
        followed = {name: self._dead_first(ctx, name, mask, dims[name]) for name, mask in followed.items()}
        return {**masks, **expand_to_groups(graph, followed, dims, {name: ctx.weight(name) for name in followed})}

    @property
    def is_waiting(self) -> bool:
        """Whether there are masks that wait for a forward pass."""
        return bool(self._waiting)

    def _dead_first(self, ctx: StepContext, name: str, mask: Tensor, dim: int) -> Tensor:
        """As many structures as ``mask`` prunes, but those this pruner masked before go first.

        A channel whose whole group is masked gets no gradient, so it cannot come back to life; a ranking that prefers
        others (by signed gradients, at random) would only mask more and more.
        """
        before = ctx.masks[name].owners.get(self._pruner.owner)
        if before is None or before.shape != mask.shape:
            return mask
        dead, chosen = _whole(before, dim), _whole(mask, dim)
        if not (dead & ~chosen).any():
            return mask
        order = torch.argsort(2 * dead.int() + chosen.int(), descending=True, stable=True)
        keep = torch.ones_like(chosen)
        keep[order[: int(chosen.sum())]] = False
        shape = [-1 if d == dim else 1 for d in range(mask.dim())]
        return torch.ones_like(mask) * keep.reshape(shape).to(mask.dtype)

    def late(self, ctx: StepContext) -> dict[str, Tensor]:
        """The extended masks that waited for a forward pass."""
        masks, self._waiting = self._waiting, {}
        return self.extend(ctx, masks)

    def state_dict(self) -> dict[str, Any]:
        """Masks that wait for a forward pass, and whether following the model has failed."""
        return {"waiting": dict(self._waiting), "given_up": self._given_up}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`state_dict`."""
        self._waiting = dict(state.get("waiting", {}))
        self._given_up = bool(state.get("given_up", False))

    def _graph(self, ctx: StepContext) -> DependencyGraph | None:
        try:
            return ctx.dependency()
        except GraphError as error:
            if self._required:
                raise
            self._given_up = True
            logger.warning(
                "pruner %r masks weights alone, because the model cannot be followed: %s. Write mask_group: false to "
                "have it so",
                self._pruner.owner,
                error,
            )
            return None

    def _can_follow(self, graph: DependencyGraph, name: str) -> bool:
        dim = self._pruner.structure_dim(name)
        if dim is None:
            return False
        try:
            if not graph.removable(name, dim).any():  # a layer whose channels all have to stay is masked by itself
                graph.check(graph.channels_of(name, dim).tolist(), name)
        except GraphError:
            if self._required:
                raise
            return False
        return True


def _whole(mask: Tensor, dim: int) -> Tensor:
    """Which entries of a dimension are masked throughout."""
    return (mask == 0).movedim(dim, 0).flatten(1).all(1)
