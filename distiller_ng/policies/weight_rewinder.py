"""The extension that puts surviving weights back to what they were early in training (layer 3)."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

from distiller_ng.core.context import StepContext
from distiller_ng.core.policy import Policy
from distiller_ng.core.window import PolicyWindow
from distiller_ng.errors import ArgumentError, LifecycleError
from distiller_ng.graph.changes import changes_of
from distiller_ng.names import ALL, ParameterIndex, canonical_name, unwrap
from distiller_ng.policies.extensions import EXTENSIONS

__all__ = ["WeightRewinder"]

logger = logging.getLogger(__name__)


@EXTENSIONS.register("WeightRewinder")
class WeightRewinder(Policy):
    """Takes a snapshot of the weights at one epoch, and puts the surviving ones back to it at later ones.

    In the first active epoch of its policy the snapshot is taken, before the first step; in every later one weights
    return to it, after that epoch's pruning decisions: what is masked stays masked, the rest trains again from there.
    ``snapshot_epoch`` and ``rewind_epochs`` (one or a list) name other epochs of the window.

    ``weights``: names, patterns or tokens of what returns (default: every parameter). ``buffers``: return the buffers
    of those layers too, such as the statistics of batch norms. ``reset_optimizer_state``: momentum and the like of what
    returned is dropped, as it belongs to another trajectory. Filters removed in between are removed from the snapshot.

    Sources: J. Frankle and M. Carbin, "The Lottery Ticket Hypothesis", https://arxiv.org/abs/1803.03635 (snapshot at
    epoch 0); J. Frankle et al., "Stabilizing the Lottery Ticket Hypothesis", https://arxiv.org/abs/1903.01611 (a little
    later). Weights 1 and 2 at epoch 0, trained to 0.1 and 3, of which the first is pruned, become 0 and 2::

        extensions:
          ticket:
            class: WeightRewinder
        pruners:
          half: {class: MagnitudePruner, sparsity: 0.5, weights: __ALL_PRUNABLE__}
        policies:
          - pruner: {instance_name: half}
            epochs: [10, 20]
          - extension: {instance_name: ticket}
            epochs: [1, 10, 20]   # snapshot at 1, rewind at 10 and 20

    Learning-rate rewinding (A. Renda et al., "Comparing Rewinding and Fine-tuning", https://arxiv.org/abs/2003.02389)
    needs no extension: keep the weights and let an LR policy that begins at epoch 10 go through the rates of epochs 1
    to 10 again. With this extension, do both.

    Raises :class:`ArgumentError` for impossible epochs, :class:`TargetError` for names that match nothing, and while
    training :class:`LifecycleError` when there is no snapshot, or the model changed in a way that cannot be followed.
    """

    def __init__(
        self,
        snapshot_epoch: int | None = None,
        rewind_epochs: int | Sequence[int] | None = None,
        *,
        weights: str | Sequence[str] = ALL,
        buffers: bool = True,
        reset_optimizer_state: bool = True,
    ) -> None:
        self.snapshot_epoch = None if snapshot_epoch is None else _epoch(snapshot_epoch, ("snapshot_epoch",))
        self.rewind_epochs = None if rewind_epochs is None else _epochs(rewind_epochs)
        if self.snapshot_epoch is not None and self.rewind_epochs and min(self.rewind_epochs) <= self.snapshot_epoch:
            message = f"rewind_epochs {list(self.rewind_epochs)} must come after snapshot_epoch {self.snapshot_epoch}"
            raise ArgumentError(message, argument=("rewind_epochs",))
        for name, value in (("buffers", buffers), ("reset_optimizer_state", reset_optimizer_state)):
            if not isinstance(value, bool):
                raise ArgumentError(f"{name} is true or false, got {value!r}", argument=(name,))
        self.weights, self.buffers, self.reset_optimizer_state = weights, buffers, reset_optimizer_state
        self._snapshot: dict[str, Tensor] | None = None
        self._changes = 0  # structural changes the model had when the snapshot was taken
        self._due = False

    # -- hooks ------------------------------------------------------------------------------------------------------

    def on_epoch_begin(self, ctx: StepContext) -> None:
        """Take the snapshot; a rewind waits for the epoch's pruning decisions."""
        if ctx.epoch == self._first(ctx.window):
            self._snapshot = {name: tensor.detach().cpu().clone() for name, tensor in self._tensors(ctx).items()}
            self._changes = len(changes_of(ctx.model))
            logger.info("%s: snapshot of %d tensors at epoch %d", self.describe(), len(self._snapshot), ctx.epoch)
        else:
            self._due = self.rewind_epochs is None or ctx.epoch in self.rewind_epochs
            self._due = self._due and ctx.epoch > self._first(ctx.window)

    def on_minibatch_begin(self, ctx: StepContext) -> None:
        """Rewind, once in an epoch, before its first forward pass."""
        if self._due and ctx.is_step:
            self._rewind(ctx)

    def on_epoch_end(self, ctx: StepContext) -> None:
        """A loop that calls the epoch hooks only rewinds here."""
        if self._due:
            self._rewind(ctx)

    def check(self, window: PolicyWindow, parameters: ParameterIndex) -> None:
        """The window must have the epochs that are named, and one after the snapshot."""
        parameters.select(self.weights, argument=("weights",))
        if window.is_fractional:
            message = "weights are rewound at whole epochs: give whole numbers"
            raise ArgumentError(message, argument=("starting_epoch",))
        first = self._first(window)
        named = [("snapshot_epoch", self.snapshot_epoch), *(("rewind_epochs", e) for e in self.rewind_epochs or ())]
        for argument, epoch in named:
            if epoch is not None and not window.is_active(epoch):
                message = f"{argument} {epoch} is no active epoch of its policy ({window})"
                raise ArgumentError(message, argument=(argument,))
        if self.rewind_epochs and min(self.rewind_epochs) <= first:
            message = f"rewind_epochs {list(self.rewind_epochs)} must come after the snapshot at epoch {first}"
            raise ArgumentError(message, argument=("rewind_epochs",))
        if window.last_epoch is not None and window.last_epoch <= first:
            argument = "epochs" if window.epochs is not None else "ending_epoch"
            message = f"the policy takes its snapshot at epoch {first} and has no later epoch to rewind at ({window})"
            raise ArgumentError(message, argument=(argument,))

    # -- state ------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The snapshot, and whether the open epoch still has to rewind."""
        snapshot = None if self._snapshot is None else dict(self._snapshot)
        return {"snapshot": snapshot, "changes": self._changes, "due": self._due}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`state_dict`."""
        snapshot = state["snapshot"]
        self._snapshot = None if snapshot is None else {name: tensor.cpu() for name, tensor in snapshot.items()}
        self._changes, self._due = int(state["changes"]), bool(state["due"])

    # -- internals --------------------------------------------------------------------------------------------------

    def _first(self, window: PolicyWindow) -> int:
        if self.snapshot_epoch is not None:
            return self.snapshot_epoch
        return window.epochs[0] if window.epochs is not None else int(window.start)

    def _tensors(self, ctx: StepContext) -> dict[str, Tensor]:
        """What returns: parameters by canonical name, and the buffers of their layers."""
        chosen = ctx.parameters.select(self.weights, argument=("weights",))
        found: dict[str, Tensor] = {name: ctx.parameters[name] for name in chosen}
        if self.buffers:
            layers = {name.rpartition(".")[0] for name in chosen}
            for raw, buffer in unwrap(ctx.model).named_buffers():
                name = canonical_name(raw)
                if name.rpartition(".")[0] in layers and name not in found:
                    found[name] = buffer
        return found

    @torch.no_grad()
    def _rewind(self, ctx: StepContext) -> None:
        self._due = False
        if self._snapshot is None:
            raise LifecycleError(
                f"{self.describe()} has no snapshot to rewind to in epoch {ctx.epoch}: training began after epoch "
                f"{self._first(ctx.window)}. Resume from a checkpoint of this schedule, or begin earlier"
            )
        self._follow(ctx.model)
        tensors = self._tensors(ctx)
        for name, tensor in tensors.items():
            self._check(name, tensor)
        ctx.masks.apply_changes_()
        ctx.masks.revert_()
        for name, tensor in tensors.items():
            tensor.copy_(self._snapshot[name])
        ctx.masks.project_()
        ctx.masks.apply_forward_()
        if self.reset_optimizer_state:
            self._reset(ctx, [tensor for tensor in tensors.values() if isinstance(tensor, nn.Parameter)])
        logger.info("%s: weights are back at their snapshot in epoch %d", self.describe(), ctx.epoch)

    def _follow(self, model: nn.Module) -> None:
        """Remove from the snapshot what was removed from the model since."""
        changes = changes_of(model)
        snapshot = self._snapshot or {}
        for change in changes[self._changes :]:
            for name, dim, removed, size in change["config"].get("cuts", ()):
                if name in snapshot and snapshot[name].shape[dim] == size:
                    kept = [index for index in range(size) if index not in set(removed)]
                    snapshot[name] = snapshot[name].index_select(dim, torch.tensor(kept))
        self._changes = len(changes)

    def _check(self, name: str, tensor: Tensor) -> None:
        saved = (self._snapshot or {}).get(name)
        if saved is None or saved.shape != tensor.shape:
            what = "is not in it" if saved is None else f"was {list(saved.shape)} and is {list(tensor.shape)}"
            raise LifecycleError(
                f"{self.describe()} cannot return to its snapshot: {name!r} {what}. Rewind before the model's modules "
                "are replaced, or leave it out (weights: [...])"
            )

    @staticmethod
    def _reset(ctx: StepContext, parameters: Sequence[Tensor]) -> None:
        optimizers = list(ctx.masks.optimizers)
        if ctx.optimizer is not None and all(known is not ctx.optimizer for known in optimizers):
            optimizers.append(ctx.optimizer)
        for optimizer in optimizers:
            for parameter in parameters:
                optimizer.state.pop(parameter, None)


def _epoch(value: Any, argument: tuple[str | int, ...]) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 0:
        raise ArgumentError(f"{argument[0]} holds whole numbers from 0, got {value!r}", argument=argument)
    return int(value)


def _epochs(value: Any) -> tuple[int, ...]:
    if isinstance(value, Integral):
        return (_epoch(value, ("rewind_epochs",)),)
    if isinstance(value, str | Mapping) or not isinstance(value, Sequence) or not value:
        message = f"rewind_epochs is an epoch or a list of epochs, got {value!r}"
        raise ArgumentError(message, argument=("rewind_epochs",))
    return tuple(sorted({_epoch(epoch, ("rewind_epochs", position)) for position, epoch in enumerate(value)}))
