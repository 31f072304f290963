"""Pruning of filters by a first-order Taylor estimate of what they are worth (layer 2)."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from distiller_ng.core.context import StepContext
from distiller_ng.pruning._ranked import FilterScorePruner, GroupDependency
from distiller_ng.pruning._structures import FilterGroup
from distiller_ng.pruning.base import PRUNERS, Scope
from distiller_ng.pruning.sparsity_schedules.base import ScheduleLike

__all__ = ["GradientRankedFilterPruner"]

logger = logging.getLogger(__name__)


@PRUNERS.register("GradientRankedFilterPruner", injected=("name",))
class GradientRankedFilterPruner(FilterScorePruner):
    """Prunes the filters with the lowest ``sum(w * dL/dw)``, signed, by the gradients of the last backward pass.

    Exactly ``int(desired_sparsity * filters)`` filters of each target go. The score is divided by the filter's number
    of weights, so that tensors compare under ``scope: global``. A target without a gradient, as at the start of
    training or after ``zero_grad()`` at the end of a minibatch, is left as it is, with a log message: begin at epoch 1,
    or decide inside the epoch with ``args: {mini_batch_pruning_frequency: 100}``. ``group_dependency``, ``schedule``,
    ``scope``, ``pattern``: see :class:`StructurePruner`.

    Source: P. Molchanov et al., "Pruning Convolutional Neural Networks for Resource Efficient Inference",
    https://arxiv.org/abs/1611.06440. Two filters ``[1, 1]`` and ``[2, 2]`` with gradients ``[1, 1]`` and ``[-1, -1]``
    score 1 and -2: the second goes at 0.5::

        pruners:
          taylor:
            class: GradientRankedFilterPruner
            group_type: Filters
            desired_sparsity: 0.5
            weights: [layer1.0.conv1.weight]
    """

    def __init__(
        self,
        name: str,
        group_type: FilterGroup,
        desired_sparsity: float | None = None,
        weights: str | Sequence[str] = (),
        group_dependency: GroupDependency | None = None,
        *,
        schedule: ScheduleLike | None = None,
        scope: Scope = "layer",
        pattern: str | int | None = None,
    ) -> None:
        arguments = (group_type, desired_sparsity, weights, group_dependency)
        super().__init__(name, *arguments, schedule=schedule, scope=scope, pattern=pattern)
        # Gradients are in no checkpoint: these are the scores they gave when the state was saved.
        self._restored: dict[str, Tensor] = {}

    def scores(self, name: str, ctx: StepContext) -> Tensor | None:
        """``mean(w * grad)`` of each filter."""
        scores = _taylor(ctx.weight(name), ctx.parameters[name].grad)
        if scores is not None:
            self._restored.pop(name, None)
            return scores
        if name in self._restored:
            return self._restored[name].to(ctx.parameters[name].device)
        logger.warning("pruner %r: %r has no gradient yet and is not pruned in epoch %d", self.owner, name, ctx.epoch)
        return None

    def state_dict(self) -> dict[str, Any]:
        """The scores that the present gradients give, as a resumed run has none at first."""
        scores = dict(self._restored)
        parameters = self._parameters
        for name in self.names if parameters is not None else ():
            parameter = parameters[name]  # type: ignore[index]
            now = _taylor(parameter.detach(), parameter.grad)
            if now is not None:
                scores[name] = now
        return {**super().state_dict(), "scores": scores}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`state_dict`."""
        super().load_state_dict(state)
        self._restored = dict(state["scores"])


def _taylor(weight: Tensor, gradient: Tensor | None) -> Tensor | None:
    if gradient is None:
        return None
    with torch.no_grad():
        product = weight.float() * gradient.float() if weight.element_size() < 4 else weight * gradient
        return product.flatten(1).mean(dim=1)
