"""Pruning of filters by a first-order Taylor estimate of what they are worth (layer 2)."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from distiller_ng.core.context import StepContext
from distiller_ng.pruning._ranked import FilterScorePruner, GroupDependency
from distiller_ng.pruning._structures import FilterGroup
from distiller_ng.pruning.base import PRUNERS, Scope
from distiller_ng.pruning.sparsity_schedules.base import ScheduleLike

__all__ = ["GradientRankedFilterPruner"]

logger = logging.getLogger(__name__)


@PRUNERS.register("GradientRankedFilterPruner", injected=("name",))
class GradientRankedFilterPruner(FilterScorePruner):
    """Prunes the filters with the lowest ``sum(w * dL/dw)``, signed, by the gradients of the last optimizer step.

    Exactly ``int(desired_sparsity * filters)`` filters of each target go. The score is divided by the filter's number
    of weights, so that tensors compare under ``scope: global``. Gradients still there when the pruner decides are used;
    where the loop has cleared them, the last ones of the epoch before, which the pruner watches. With neither, as in
    epoch 0, nothing is pruned and a warning is logged: begin at epoch 1. ``group_dependency``, ``schedule``, ``scope``,
    ``pattern``: see :class:`StructurePruner`.

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

    observes: ClassVar[bool] = True

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
        self._last: dict[str, Tensor] = {}  # scores of the last gradients seen; gradients are in no checkpoint
        self._hooks: list[RemovableHandle] = []

    def scores(self, name: str, ctx: StepContext) -> Tensor | None:
        """``mean(w * grad)`` of each filter."""
        parameter = ctx.parameters[name]
        self._see(name, ctx.weight(name), parameter.grad)
        if name in self._last:
            return self._last[name].to(parameter.device)
        logger.warning("pruner %r: %r has no gradient yet and is not pruned in epoch %d", self.owner, name, ctx.epoch)
        return None

    def start_observing(self, ctx: StepContext) -> None:
        """Score every gradient of this epoch as it is accumulated; the last one counts."""
        if self._hooks:
            return  # another policy of this pruner observes the same epoch
        for name in self.names:
            if ctx.parameters[name].requires_grad:
                hook = partial(self._accumulated, name)
                handle = ctx.parameters[name].register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]
                self._hooks.append(handle)

    def stop_observing(self) -> None:
        """Remove the hooks."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def state_dict(self) -> dict[str, Any]:
        """The last scores."""
        parameters = self._parameters
        for name in self.names if parameters is not None else ():
            parameter = parameters[name]  # type: ignore[index]
            self._see(name, parameter.detach(), parameter.grad)
        return {**super().state_dict(), "scores": dict(self._last)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`state_dict`."""
        super().load_state_dict({key: value for key, value in state.items() if key != "scores"})
        self._last = dict(state["scores"])

    def _accumulated(self, name: str, parameter: Tensor) -> None:
        self._see(name, parameter.detach(), parameter.grad)

    def _see(self, name: str, weight: Tensor, gradient: Tensor | None) -> None:
        scores = _taylor(weight, gradient)
        # A step that GradScaler is about to skip has infinite gradients: they say nothing.
        if scores is not None and bool(torch.isfinite(scores).all()):
            self._last[name] = scores


def _taylor(weight: Tensor, gradient: Tensor | None) -> Tensor | None:
    if gradient is None:
        return None
    with torch.no_grad():
        product = weight.float() * gradient.float() if weight.element_size() < 4 else weight * gradient
        return product.flatten(1).mean(dim=1)
