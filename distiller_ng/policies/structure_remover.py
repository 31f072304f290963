"""The extension that makes a model physically smaller while it trains (layer 3)."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Literal, TypeAlias, get_args

from torch import nn

from distiller_ng.core.context import StepContext
from distiller_ng.core.policy import Policy
from distiller_ng.core.window import PolicyWindow
from distiller_ng.errors import ArgumentError, did_you_mean
from distiller_ng.names import ParameterIndex, unwrap
from distiller_ng.ops.dataset_shapes import dataset_shape
from distiller_ng.policies.extensions import EXTENSIONS
from distiller_ng.thinning.apply import ThinningReport
from distiller_ng.thinning.functions import (
    Conflict,
    contract_model,
    example_inputs_for,
    remove_channels,
    remove_filters,
)

__all__ = ["ChannelRemover", "FilterRemover", "StructureRemover", "ThinningFunction"]

logger = logging.getLogger(__name__)

#: ``contract_model`` removes filters, then channels.
ThinningFunction: TypeAlias = Literal["remove_filters", "remove_channels", "contract_model"]
_FUNCTIONS: dict[str, Callable[..., ThinningReport]] = {
    "remove_filters": remove_filters,
    "remove_channels": remove_channels,
    "contract_model": contract_model,
}


@EXTENSIONS.register("StructureRemover")
class StructureRemover(Policy):
    """Removes pruned filters or channels once in every active epoch, before its first minibatch.

    ``thinning_func_str``: what to remove. ``arch`` is ignored; ``dataset`` gives the input's shape where the scheduler
    was not given ``example_inputs`` (else the inputs of the first forward pass are used, and the removal waits for the
    minibatch after it). ``conflict``: what coupled layers with different zeros do, see
    :func:`distiller_ng.thinning.plan_thinning`; by default "group", and "first" with ``compat: distiller``, which
    reports a change of the outputs instead of refusing it. ``round_to``: remaining widths are multiples of it.

    Parameters, gradients, masks and the state of every attached optimizer are cut. 16 filters of which a pruner masked
    3 become 13::

        extensions:
          net_thinner:
            class: FilterRemover
            thinning_func_str: remove_filters
            arch: resnet20_cifar
            dataset: cifar10
        policies:
          - extension: {instance_name: net_thinner}
            epochs: [30]

    Raises :class:`ArgumentError` for an unknown function or data set, and during training :class:`GraphError` where the
    thinned model would not agree with the masked one; then nothing was changed.
    """

    def __init__(
        self,
        thinning_func_str: ThinningFunction,
        arch: str | None = None,
        dataset: str | None = None,
        *,
        conflict: Conflict | None = None,
        round_to: int = 1,
    ) -> None:
        if thinning_func_str not in _FUNCTIONS:
            hint = did_you_mean(str(thinning_func_str), _FUNCTIONS)
            message = f"unknown thinning function {thinning_func_str!r}. {hint}"
            raise ArgumentError(message, argument=("thinning_func_str",))
        if conflict not in (None, *get_args(Conflict)):
            raise ArgumentError(f"conflict is 'group' or 'first', got {conflict!r}", argument=("conflict",))
        if isinstance(round_to, bool) or not isinstance(round_to, int) or round_to < 1:
            raise ArgumentError(f"round_to is a whole number from 1, got {round_to!r}", argument=("round_to",))
        if dataset is not None:
            dataset_shape(dataset)  # refuses unknown names, with the known ones
        self.thinning_func_str: ThinningFunction = thinning_func_str
        self.arch, self.dataset = arch, dataset
        self.conflict: Conflict | None = conflict
        self.round_to = round_to
        self.done = False
        #: What the last removal did; None before the first.
        self.report: ThinningReport | None = None

    def on_added(self, ctx: StepContext) -> None:
        """Raises :class:`ArgumentError` where removal could only fail later."""
        if isinstance(ctx.model, nn.parallel.DistributedDataParallel):
            raise ArgumentError(
                f"{type(self).__name__} cannot act below DistributedDataParallel, which has sized its gradient buckets "
                "for this model: leave the extension out, call remove_filters(model.module, scheduler.masks, ...) "
                "between epochs on every rank, and wrap the result again"
            )

    def on_epoch_begin(self, ctx: StepContext) -> None:
        """Tell the scheduler what the model is called with, if this extension knows and nobody else did."""
        if ctx.graph is None or ctx.graph.is_ready:
            return
        if self.dataset is None and getattr(unwrap(ctx.model), "input_shape", None) is None:
            ctx.graph.watch()
        else:
            ctx.graph.example_inputs = example_inputs_for(ctx.model, None, self.dataset)

    def on_minibatch_begin(self, ctx: StepContext) -> None:
        """Remove, once in an epoch; between optimizer steps only."""
        known = ctx.graph.example_inputs if ctx.graph is not None else None
        if self.done or not ctx.is_step or known is None:
            return
        self.done = True
        ctx.masks.apply_changes_()
        lossy = ctx.compat == "distiller"
        self.report = _FUNCTIONS[self.thinning_func_str](
            ctx.model,
            ctx.masks,
            self.arch,
            self.dataset,
            ctx.masks.optimizers,
            example_inputs=known,
            conflict=self.conflict or ("first" if lossy else "group"),
            round_to=self.round_to,
            verify=not lossy and self.conflict != "first",
        )
        ctx.masks.follow()

    def on_epoch_end(self, ctx: StepContext) -> None:
        """The next active epoch may remove again."""
        if not self.done:
            known = ctx.graph is not None and ctx.graph.is_ready
            why = "the loop calls no minibatch hooks" if known else "the epoch had no second forward pass to learn from"
            logger.warning("%s removed nothing: %s", self.describe(), why)
        self.done = False

    def check(self, window: PolicyWindow, parameters: ParameterIndex) -> None:
        """Removal happens between whole epochs' steps, so fractional windows are refused."""
        if window.is_fractional:
            raise ArgumentError(
                "structures are removed at the first minibatch of an epoch: give whole epochs",
                argument=("starting_epoch",),
            )

    def describe(self) -> str:
        """The class and what it removes."""
        return f"{type(self).__name__} ({self.thinning_func_str})"

    def state_dict(self) -> dict[str, Any]:
        """Whether the open epoch's removal is done."""
        return {"done": self.done}

    def load_state_dict(self, state: Any) -> None:
        """Restore :meth:`state_dict`."""
        self.done = bool(state["done"])


@EXTENSIONS.register("FilterRemover")
class FilterRemover(StructureRemover):
    """Distiller's other name of :class:`StructureRemover`; ``thinning_func_str`` decides what is removed."""


@EXTENSIONS.register("ChannelRemover")
class ChannelRemover(StructureRemover):
    """Distiller's other name of :class:`StructureRemover`; ``thinning_func_str`` decides what is removed.

    Channels of zeros go at the beginning of epoch 30::

        extensions:
          net_thinner:
            class: ChannelRemover
            thinning_func_str: remove_channels
        policies:
          - extension: {instance_name: net_thinner}
            epochs: [30]
    """
