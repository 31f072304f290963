"""Pruning of whole dependency groups, to a sparsity or to a budget (layer 2)."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, ClassVar, Literal

from torch import Tensor

from distiller_ng.core.context import StepContext
from distiller_ng.core.window import PolicyWindow
from distiller_ng.errors import ArgumentError, CalibrationError, ScheduleWarning, TargetError
from distiller_ng.graph.cost import CostModel
from distiller_ng.graph.dependency import DependencyGraph
from distiller_ng.names import ALL_PRUNABLE, ParameterIndex, canonical_name
from distiller_ng.pruning._budget import Removal, removals_of, select_by_budget, select_by_count, select_by_total
from distiller_ng.pruning._checks import check_choice, check_weights
from distiller_ng.pruning._group_arguments import Caps, check_round_to, check_target, step_of
from distiller_ng.pruning._group_costs import Costs
from distiller_ng.pruning._group_ranking import Targeted, original_width, ranking_of, scorable, targeted_families
from distiller_ng.pruning._group_watching import WatchingPruner
from distiller_ng.pruning._level import LevelPruner
from distiller_ng.pruning.base import PRUNERS, MaskGroup, Scope, Target, targets_of_list
from distiller_ng.pruning.groups import channel_masks, keep_one_of_each
from distiller_ng.pruning.importance.base import ImportanceLike, as_importance
from distiller_ng.pruning.sparsity_schedules.base import ScheduleLike

__all__ = ["GroupPruner"]

logger = logging.getLogger(__name__)


@PRUNERS.register("GroupPruner", injected=("name",))
class GroupPruner(WatchingPruner, LevelPruner):
    """Prunes the channels of lowest importance with everything that goes with them, to a sparsity or to a budget.

    Filters that are added to each other, their norms and biases, and what the next layers read of them are one group
    with one score, and are masked together: what trains is what remains when the group is removed.

    ``weights``: targets; a token or pattern leaves out what cannot be removed (such as the last layer), an exact name
    that cannot is an error. ``group_type``: ``Filters`` (outputs of the named weights) or ``Channels`` (their inputs).
    ``importance``: a name (l1, l2, bn_scale, taylor, activation, gradient, random, hessian_diagonal, geometric_median,
    shapley) or ``{class: l2, aggregate: mean, normalize: max}``; those that look at data decide on the epoch before an
    active one.

    How much goes, one of: ``sparsity``, the share of each layer's channels (0..1; ``schedule``: the same over the
    window); ``target``, the share of the model's cost that remains: ``{macs: 0.5}``, ``{params: 0.3}``,
    ``{latency: 0.6}``, or several, which all have to be met (with ``schedule``: approached along its curve, in
    proportion to its last value). With ``scope: global`` all channels are ranked together, else each layer loses the
    same share; ``taylor`` with ``scope: global`` keeps most accuracy in our measurements. Levels and budgets are
    relative to the model as first seen: removing what is masked in between does not make them compound.

    ``max_layer_sparsity``: the largest share any layer loses, or a map by target; 0.9 unless given, with a plain
    ``sparsity`` per layer 1. A layer always keeps a channel. ``round_to``: remaining widths are multiples of it where
    possible. ``pattern``: of M consecutive channels those that N:M drops go first. Channels masked before go first too.
    ``latency_model`` (Python only): a :class:`CostModel`; without one latency is taken for MACs.

    Source: G. Fang et al., "DepGraph: Towards Any Structural Pruning", https://arxiv.org/abs/2301.12900. Four channels
    of scores 3, 1, 2 and 4 at 0.5: the second and third go, with their biases, norms and readers' inputs::

        pruners:
          half_the_macs:
            class: GroupPruner
            importance: taylor
            scope: global
            target: {macs: 0.5}
            schedule: {class: AGP, final_sparsity: 1.0}
            max_layer_sparsity: {'*': 0.8, layer1.0.conv1.weight: 0.5}
            round_to: 8

    Raises :class:`ArgumentError` for malformed arguments and for a budget that cannot be met, :class:`TargetError` for
    names that match nothing, :class:`GraphError` for channels that cannot be removed, with the reason.
    """

    follows_channels: ClassVar[bool] = True
    resets_optimizer_state: ClassVar[bool] = True

    def __init__(
        self,
        name: str,
        weights: str | Sequence[str] = ALL_PRUNABLE,
        *,
        importance: ImportanceLike = "l1",
        group_type: Literal["Filters", "3D", "Channels"] = "Filters",
        sparsity: float | None = None,
        target: Mapping[str, float] | None = None,
        max_layer_sparsity: float | Mapping[str, float] | None = None,
        round_to: int = 1,
        latency_model: CostModel | None = None,
        schedule: ScheduleLike | None = None,
        scope: Scope = "layer",
        pattern: str | int | None = None,
    ) -> None:
        self.target = None if target is None else check_target(target)
        if target is not None and sparsity is not None:
            message = "sparsity and target both say how much goes: leave one of the two out"
            raise ArgumentError(message, argument=("target",))
        super().__init__(name, sparsity, schedule=schedule, scope=scope, pattern=pattern)
        self.weights = check_weights(weights)
        self.importance = as_importance(importance)
        check_choice("group_type", group_type, ("Filters", "3D", "Channels"))
        self.group_type = group_type
        self.round_to = check_round_to(round_to)
        self.caps = Caps(max_layer_sparsity, 0.9 if target is not None or scope == "global" else 1.0)
        if self.target is not None and self.schedule is not None and not self.schedule.target(1.0) > 0:
            raise ArgumentError(f"{self.schedule!r} ends at 0, so no target is reached", argument=("schedule",))
        self._costs = Costs()
        self._costs.latency = latency_model
        self._widths: dict[str, int] = {}  # channels each family had at first
        self._reachable = False  # whether the target was found to be
        #: What the last decision leaves of each budget's original cost, as shares.
        self.achieved: dict[str, float] = {}

    @property
    def latency_model(self) -> CostModel | None:
        """What ``target: {latency: ...}`` is measured with."""
        return self._costs.latency

    @latency_model.setter
    def latency_model(self, model: CostModel | None) -> None:
        self._costs.latency = model

    def targets(self) -> Sequence[Target]:
        """``weights``."""
        return targets_of_list("weights", self.weights)

    def check_parameter(self, name: str, parameter: Tensor, target: Target) -> None:
        """Only tensors have channels; what a pattern finds beside them is left out."""
        if parameter.dim() == 0 and canonical_name(target.text) == name:
            raise TargetError(f"GroupPruner cannot prune {name!r}: it is a single number", argument=target.argument)

    def bind(self, parameters: ParameterIndex, *, strict: bool = True) -> list[str]:
        """As every pruner's; the keys of ``max_layer_sparsity`` are resolved too."""
        self.caps.bind(parameters, strict=strict)
        return super().bind(parameters, strict=strict)

    def groups(self, parameters: ParameterIndex) -> Sequence[MaskGroup]:
        """All targets together: one decision."""
        return [MaskGroup(tuple(self.names))] if self.names else []

    def accept_levels(self, levels: Any) -> Any:
        """A sparsity, or one by target; a pruner with a budget has no levels."""
        if self.target is not None:
            message = f"pruner {self.owner!r} prunes to {self.target}, so 'levels' says nothing to it; leave it out"
            raise ArgumentError(message, argument=("levels",))
        return super().accept_levels(levels)

    def _given_levels(self) -> list[float | None]:
        return [] if self.target is not None else super()._given_levels()

    def structures_of(self, name: str) -> int | None:
        """How many channels a pattern sees."""
        shape = self._parameters[name].shape if self._parameters is not None else ()
        return shape[min(int(self.group_type == "Channels"), len(shape) - 1)] if shape else None

    def planned_sparsity(self, name: str, window: PolicyWindow) -> float | None:
        """None: how many of a tensor's weights go depends on its neighbours too."""
        return None

    def check(self, window: PolicyWindow, parameters: ParameterIndex) -> None:
        """Refuses epoch 0 alone for an importance that looks at data first; warns about a window that begins there."""
        super().check(window, parameters)
        if not self.importance.observes or not window.is_active(0):
            return
        why = f"pruner {self.owner!r} decides on what the epoch before shows, and none precedes epoch 0"
        if window.last_epoch == 0:
            argument = "epochs" if window.epochs is not None else "starting_epoch"
            raise ArgumentError(f"{why}: start its policy at epoch 1 or later", argument=(argument,))
        warnings.warn(ScheduleWarning(f"{why}: nothing is pruned there"), stacklevel=2)

    # -- masks ------------------------------------------------------------------------------------------------------

    def compute_masks(self, group: MaskGroup, ctx: StepContext) -> Mapping[str, Tensor]:
        """Masks of every parameter that has a share in the targeted channels; none before inputs are known."""
        self.waits_for_inputs = ctx.graph is not None and not ctx.graph.is_ready
        if ctx.graph is not None and self.waits_for_inputs:
            ctx.graph.watch()
            return {}
        graph = ctx.dependency()
        targeted = targeted_families(graph, self._bound, ctx.parameters, reads=self.group_type == "Channels")
        targeted = scorable(targeted, self.importance, graph)
        families = [item.family for item in targeted]
        try:
            scores = self.importance.scores(graph, ctx, families=families)
        except CalibrationError as error:
            if ctx.epoch > 0 or ctx.window.last_epoch == 0:
                raise
            logger.warning("pruner %r prunes nothing in epoch 0: %s", self.owner, error)
            return {}
        steps = [self._steps(position, item, scores, ctx) for position, item in enumerate(targeted)]
        chosen = self._by_budget(graph, steps, ctx) if self.target else self._by_level(targeted, steps, ctx)
        order = {channel: scores[channel] for family in families for channel in family.channels.tolist()}
        removed = keep_one_of_each(graph, [channel for step in chosen for channel in step.channels], order)
        self._report(graph, removed, len(order))
        return channel_masks(graph, removed, order, ctx.parameters)

    def _steps(self, position: int, item: Targeted, scores: Mapping[int, float], ctx: StepContext) -> list[Removal]:
        family = item.family
        width = self._widths[family.key] = original_width(item, self._widths.get(family.key, 0), ctx)
        return removals_of(
            position,
            ranking_of(item, scores, self._own_mask(item, ctx), self.pattern),
            original=width,
            most=self._cap(item),
            multiple=step_of(family, self.round_to),
        )

    def _cap(self, item: Targeted) -> float:
        return self.caps.of(member.tensor for member in item.family.members)

    def _own_mask(self, item: Targeted, ctx: StepContext) -> Tensor | None:
        """What this pruner masked of a target before, unless those weights live on in between."""
        masker = ctx.masks[item.name]
        return None if masker.is_forward_only else masker.owners.get(self.owner)

    def _by_level(
        self, targeted: Sequence[Targeted], steps: Sequence[Sequence[Removal]], ctx: StepContext
    ) -> list[Removal]:
        wanted = [self._wanted(item, ctx) for item in targeted]
        if self.scope == "global":
            total = int(sum(wanted) + 1e-9)
            most = sum(len(step.channels) for step in chain.from_iterable(steps))
            if total > most:
                why = f"only {most} of {total} channels can go: max_layer_sparsity and round_to keep the others"
                warnings.warn(ScheduleWarning(f"pruner {self.owner!r}: {why}"), stacklevel=2)
            return select_by_total(_ordered(steps, by_score=True), total)
        chosen = (select_by_count(own, int(count + 1e-9)) for own, count in zip(steps, wanted, strict=True))
        return list(chain.from_iterable(chosen))

    def _wanted(self, item: Targeted, ctx: StepContext) -> float:
        """How many channels of a family are still to go, in fractions: they are rounded down last."""
        levels = [self.level(name, ctx) for name in item.names]
        level = min((level for level in levels if level is not None), default=None)
        width, present = self._widths[item.family.key], len(item.family)
        if level is None:  # whatever the pattern drops
            return 0 if self.pattern is None else present // self.pattern.m * (self.pattern.m - self.pattern.n)
        return max(level * width - (width - present), 0.0)

    def _by_budget(self, graph: DependencyGraph, steps: Sequence[Sequence[Removal]], ctx: StepContext) -> list[Removal]:
        target = self.target or {}
        if not self._reachable:
            everything = [channel for step in chain.from_iterable(steps) for channel in step.channels]
            self._costs.check_reachable(graph, target, everything, self.owner)
            self._reachable = True
        share = 1.0
        if self.schedule is not None:
            share = min(max(self.schedule.target(ctx.progress) / self.schedule.target(1.0), 0.0), 1.0)
        now = {budget: 1 - (1 - end) * share for budget, end in target.items()}
        return select_by_budget(_ordered(steps, by_score=self.scope == "global"), self._costs.load(graph, now))

    def _report(self, graph: DependencyGraph, removed: set[int], total: int) -> None:
        self.achieved = self._costs.shares(graph, list(self.target or ("macs", "params")), sorted(removed))
        remains = ", ".join(f"{share:.3f} of the original {budget}" for budget, share in self.achieved.items())
        logger.info("pruner %r masks %d of %d channels; %s remain", self.owner, len(removed), total, remains)

    # -- state ------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The original widths and costs, and what the importance collected."""
        return {
            **super().state_dict(),
            "widths": dict(self._widths),
            "costs": self._costs.state_dict(),
            "reachable": self._reachable,
            "waits": self.waits_for_inputs,
            "importance": self.importance.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`state_dict`."""
        self._widths = {str(key): int(width) for key, width in state["widths"].items()}
        self._costs.load_state_dict(state["costs"])
        self._reachable, self.waits_for_inputs = bool(state["reachable"]), bool(state["waits"])
        self.importance.load_state_dict(state["importance"])


def _ordered(steps: Sequence[Sequence[Removal]], *, by_score: bool) -> list[Removal]:
    """All steps, each family's in order: lowest scores first, or so that every family loses the same share."""
    everything = chain.from_iterable(steps)
    if by_score:
        return sorted(everything, key=lambda step: (step.tier, step.score, step.share))
    return sorted(everything, key=lambda step: (step.share, step.tier, step.score))
