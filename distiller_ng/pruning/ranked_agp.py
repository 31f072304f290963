"""Distiller's ``*_AGP`` names: the structure pruners with an AGP schedule for a level (layer 2).

Each is its parent with ``initial_sparsity`` and ``final_sparsity`` (see :class:`AutomatedGradualPruner`) in place of
``desired_sparsity``. From 0.05 to 0.5 in epochs 0 to 2 a tensor of 16 filters loses 0, then 7 (``0.44375 * 16 = 7.1``),
then 8 of them. In a schedule::

    pruners:
      filters:
        class: L1RankedStructureParameterPruner_AGP
        initial_sparsity: 0.05
        final_sparsity: 0.5
        group_type: Filters
        weights: ['re:layer.*conv1.weight']
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from distiller_ng.pruning._ranked import FilterScorePruner, GroupDependency
from distiller_ng.pruning._structures import FilterGroup, RankedGroup
from distiller_ng.pruning.activation_apoz import ActivationAPoZRankedFilterPruner
from distiller_ng.pruning.activation_mean import ActivationMeanRankedFilterPruner
from distiller_ng.pruning.agp import agp_schedule
from distiller_ng.pruning.base import PRUNERS, Scope
from distiller_ng.pruning.bernoulli import BernoulliFilterPruner
from distiller_ng.pruning.gradient_ranked import GradientRankedFilterPruner
from distiller_ng.pruning.lp_ranked import L1RankedStructureParameterPruner, L2RankedStructureParameterPruner
from distiller_ng.pruning.random_ranked import RandomRankedFilterPruner
from distiller_ng.pruning.sparsity_schedules.base import ScheduleLike

__all__ = [
    "ActivationAPoZRankedFilterPruner_AGP",
    "ActivationMeanRankedFilterPruner_AGP",
    "BernoulliFilterPruner_AGP",
    "GradientRankedFilterPruner_AGP",
    "L1RankedStructureParameterPruner_AGP",
    "L2RankedStructureParameterPruner_AGP",
    "RandomRankedFilterPruner_AGP",
]


@PRUNERS.register("L1RankedStructureParameterPruner_AGP", injected=("name",))
class L1RankedStructureParameterPruner_AGP(L1RankedStructureParameterPruner):
    """Prunes structures of lowest mean absolute value, to a level along the AGP curve.

    It is :class:`L1RankedStructureParameterPruner` otherwise;
    ``initial_sparsity`` and ``final_sparsity`` (0..1, the second larger) are the levels of the window's first and last
    active epoch; ``schedule`` replaces the curve between them::

        pruners:
          gradual:
            class: L1RankedStructureParameterPruner_AGP
            initial_sparsity: 0.05
            final_sparsity: 0.5
            group_type: Filters
            weights: [layer1.0.conv1.weight]
    """

    level_argument: ClassVar[str] = "final_sparsity"

    def __init__(
        self,
        name: str,
        initial_sparsity: float | None = None,
        final_sparsity: float | None = None,
        group_type: RankedGroup = "Filters",
        weights: str | Sequence[str] = (),
        group_dependency: GroupDependency | None = None,
        kwargs: Mapping[str, Sequence[int]] | None = None,
        *,
        schedule: ScheduleLike | None = None,
        scope: Scope = "layer",
        pattern: str | int | None = None,
    ) -> None:
        curve = agp_schedule(initial_sparsity, final_sparsity, schedule)
        arguments = (group_type, None, weights, group_dependency, kwargs)
        super().__init__(name, *arguments, schedule=curve, scope=scope, pattern=pattern)


@PRUNERS.register("L2RankedStructureParameterPruner_AGP", injected=("name",))
class L2RankedStructureParameterPruner_AGP(L2RankedStructureParameterPruner):
    """Prunes structures of lowest Euclidean norm, to a level along the AGP curve.

    It is :class:`L2RankedStructureParameterPruner` otherwise;
    ``initial_sparsity`` and ``final_sparsity`` (0..1, the second larger) are the levels of the window's first and last
    active epoch; ``schedule`` replaces the curve between them::

        pruners:
          gradual:
            class: L2RankedStructureParameterPruner_AGP
            initial_sparsity: 0.05
            final_sparsity: 0.5
            group_type: Filters
            weights: [layer1.0.conv1.weight]
    """

    level_argument: ClassVar[str] = "final_sparsity"

    def __init__(
        self,
        name: str,
        initial_sparsity: float | None = None,
        final_sparsity: float | None = None,
        group_type: RankedGroup = "Filters",
        weights: str | Sequence[str] = (),
        group_dependency: GroupDependency | None = None,
        kwargs: Mapping[str, Sequence[int]] | None = None,
        *,
        schedule: ScheduleLike | None = None,
        scope: Scope = "layer",
        pattern: str | int | None = None,
    ) -> None:
        curve = agp_schedule(initial_sparsity, final_sparsity, schedule)
        arguments = (group_type, None, weights, group_dependency, kwargs)
        super().__init__(name, *arguments, schedule=curve, scope=scope, pattern=pattern)


class _FilterAGP(FilterScorePruner):
    """The constructor that the filter pruners share; stands before the pruner it drives in the list of bases."""

    level_argument: ClassVar[str] = "final_sparsity"

    def __init__(
        self,
        name: str,
        initial_sparsity: float | None = None,
        final_sparsity: float | None = None,
        group_type: FilterGroup = "Filters",
        weights: str | Sequence[str] = (),
        group_dependency: GroupDependency | None = None,
        *,
        schedule: ScheduleLike | None = None,
        scope: Scope = "layer",
        pattern: str | int | None = None,
    ) -> None:
        curve = agp_schedule(initial_sparsity, final_sparsity, schedule)
        arguments = (group_type, None, weights, group_dependency)
        super().__init__(name, *arguments, schedule=curve, scope=scope, pattern=pattern)


@PRUNERS.register("ActivationAPoZRankedFilterPruner_AGP", injected=("name",))
class ActivationAPoZRankedFilterPruner_AGP(_FilterAGP, ActivationAPoZRankedFilterPruner):
    """Prunes filters whose activations are zero most often, to a level along the AGP curve.

    It is :class:`ActivationAPoZRankedFilterPruner` otherwise;
    ``initial_sparsity`` and ``final_sparsity`` (0..1, the second larger) are the levels of the window's first and last
    active epoch; ``schedule`` replaces the curve between them::

        pruners:
          gradual:
            class: ActivationAPoZRankedFilterPruner_AGP
            initial_sparsity: 0.05
            final_sparsity: 0.5
            group_type: Filters
            weights: [layer1.0.conv1.weight]
    """


@PRUNERS.register("ActivationMeanRankedFilterPruner_AGP", injected=("name",))
class ActivationMeanRankedFilterPruner_AGP(_FilterAGP, ActivationMeanRankedFilterPruner):
    """Prunes filters of lowest mean activation, to a level along the AGP curve.

    It is :class:`ActivationMeanRankedFilterPruner` otherwise;
    ``initial_sparsity`` and ``final_sparsity`` (0..1, the second larger) are the levels of the window's first and last
    active epoch; ``schedule`` replaces the curve between them::

        pruners:
          gradual:
            class: ActivationMeanRankedFilterPruner_AGP
            initial_sparsity: 0.05
            final_sparsity: 0.5
            group_type: Filters
            weights: [layer1.0.conv1.weight]
    """


@PRUNERS.register("GradientRankedFilterPruner_AGP", injected=("name",))
class GradientRankedFilterPruner_AGP(_FilterAGP, GradientRankedFilterPruner):
    """Prunes filters of lowest Taylor score, to a level along the AGP curve.

    It is :class:`GradientRankedFilterPruner` otherwise;
    ``initial_sparsity`` and ``final_sparsity`` (0..1, the second larger) are the levels of the window's first and last
    active epoch; ``schedule`` replaces the curve between them::

        pruners:
          gradual:
            class: GradientRankedFilterPruner_AGP
            initial_sparsity: 0.05
            final_sparsity: 0.5
            group_type: Filters
            weights: [layer1.0.conv1.weight]
    """


@PRUNERS.register("RandomRankedFilterPruner_AGP", injected=("name",))
class RandomRankedFilterPruner_AGP(_FilterAGP, RandomRankedFilterPruner):
    """Prunes random filters, to a level along the AGP curve.

    It is :class:`RandomRankedFilterPruner` otherwise;
    ``initial_sparsity`` and ``final_sparsity`` (0..1, the second larger) are the levels of the window's first and last
    active epoch; ``schedule`` replaces the curve between them::

        pruners:
          gradual:
            class: RandomRankedFilterPruner_AGP
            initial_sparsity: 0.05
            final_sparsity: 0.5
            group_type: Filters
            weights: [layer1.0.conv1.weight]
    """


@PRUNERS.register("BernoulliFilterPruner_AGP", injected=("name",))
class BernoulliFilterPruner_AGP(_FilterAGP, BernoulliFilterPruner):
    """Prunes filters by independent draws, to a level along the AGP curve.

    It is :class:`BernoulliFilterPruner` otherwise;
    ``initial_sparsity`` and ``final_sparsity`` (0..1, the second larger) are the levels of the window's first and last
    active epoch; ``schedule`` replaces the curve between them::

        pruners:
          gradual:
            class: BernoulliFilterPruner_AGP
            initial_sparsity: 0.05
            final_sparsity: 0.5
            group_type: Filters
            weights: [layer1.0.conv1.weight]
    """
