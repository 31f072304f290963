"""The extension that makes linear layers low-rank products while a model trains (layer 3)."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from distiller_ng.core.context import StepContext
from distiller_ng.core.policy import Policy
from distiller_ng.core.window import PolicyWindow
from distiller_ng.errors import ArgumentError
from distiller_ng.modules.low_rank import RankRule
from distiller_ng.names import ALL_PRUNABLE, ParameterIndex
from distiller_ng.policies._layers import check_layer_names
from distiller_ng.policies.extensions import EXTENSIONS
from distiller_ng.policies.low_rank import LowRankReport, linear_layers, low_rank_, refuse_wrapped

__all__ = ["LowRankThinning"]

logger = logging.getLogger(__name__)


@EXTENSIONS.register("LowRankThinning")
class LowRankThinning(Policy):
    """Replaces linear layers ``y = x W' + b`` by two smaller ones, from a truncated SVD of ``W``, as its window opens.

    ``layers``: names of modules, ``re:`` patterns from the start of a name, or ``__ALL_PRUNABLE__`` (every linear
    layer). How much is kept is one of: ``preserve_ratio``, the rank as a share of the N outputs; ``energy``, the share
    (0..1] of the sum of squared singular values; ``rank``, a number. ``rank * (N + M)`` weights stand for ``N * M``; a
    layer that would not get smaller stays, and the log says so. It happens once, before the first minibatch; train on
    for some epochs afterwards.

    The factors take the weight's place in the optimizer's parameter group. SGD's momentum goes on: the weight's ``G``
    becomes ``U'G`` and ``G V'``, what it had been with the factors. Second moments, as Adam has them, cannot be split:
    other optimizers begin afresh for the factors. The bias stays the same parameter, with its state. Loading a
    checkpoint replaces the same layers. Pruners, regularizers and the like that name a replaced weight must be over by
    then; new ones can name ``<layer>.fc_sv.weight`` and ``<layer>.fc_u.weight`` in a second run.

    Source: E. Denton et al., "Exploiting Linear Structure Within Convolutional Networks for Efficient Evaluation",
    https://arxiv.org/abs/1404.0736; Distiller's ``TruncatedSVD``. A layer [100, 100] at ``preserve_ratio: 0.2`` has
    4,000 weights in place of 10,000::

        extensions:
          low_rank:
            class: LowRankThinning
            layers: ['re:encoder.*fc']
            energy: 0.9
        policies:
          - extension: {instance_name: low_rank}
            epochs: [10]

    Raises :class:`ArgumentError` for none or several of the three, :class:`TargetError` for names that match no linear
    layer, and :class:`GraphError` below DistributedDataParallel and, when the window opens, for layers that are masked
    or quantized; nothing was changed then.
    """

    def __init__(
        self,
        layers: str | Sequence[str] = ALL_PRUNABLE,
        *,
        preserve_ratio: float | None = None,
        energy: float | None = None,
        rank: int | None = None,
    ) -> None:
        self.layers = check_layer_names(layers)
        self.rule = RankRule(preserve_ratio=preserve_ratio, energy=energy, rank=rank)
        self._done = False
        #: What was replaced; None before.
        self.report: LowRankReport | None = None

    def on_added(self, ctx: StepContext) -> None:
        """Refuses models whose parameters cannot be replaced."""
        refuse_wrapped(ctx.model, ctx.masks.optimizers)

    def on_epoch_begin(self, ctx: StepContext) -> None:
        """A window of whole epochs opens."""
        self._replace(ctx)

    def on_update(self, ctx: StepContext) -> None:
        """A window of fractions opens, or the schedule is applied without training."""
        self._replace(ctx)

    def check(self, window: PolicyWindow, parameters: ParameterIndex) -> None:
        """The names must mean linear layers, and the window must open between two steps."""
        if window.is_stepwise:
            message = "layers are replaced between steps: leave out trigger: step"
            raise ArgumentError(message, argument=("trigger",))
        linear_layers(parameters.model, self.layers)

    def removed_parameters(self, parameters: ParameterIndex) -> list[str]:
        """The weights that will no longer be there, by canonical name: other policies must be done with them."""
        return [f"{name}.weight" for name in linear_layers(parameters.model, self.layers)]

    def describe(self) -> str:
        """The class and how much it keeps."""
        return f"{type(self).__name__} ({self.rule})"

    def state_dict(self) -> dict[str, Any]:
        """Whether the layers are replaced."""
        return {"done": self._done}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`state_dict`; the checkpoint's model has the layers already."""
        self._done = bool(state["done"])

    def _replace(self, ctx: StepContext) -> None:
        if self._done:
            return
        optimizers = list(ctx.masks.optimizers)
        if ctx.optimizer is not None and all(known is not ctx.optimizer for known in optimizers):
            optimizers.append(ctx.optimizer)
        rule = self.rule
        ctx.masks.apply_changes_()
        self.report = low_rank_(
            ctx.model,
            self.layers,
            preserve_ratio=rule.preserve_ratio,
            energy=rule.energy,
            rank=rule.rank,
            optimizer=optimizers,
            masks=ctx.masks,
        )
        self._done = True
        for note in self.report.notes:
            logger.warning("%s: %s", self.describe(), note)
