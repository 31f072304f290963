"""Pruning of whole structures by a threshold on their magnitude (layer 2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias, get_args

from torch import Tensor, nn

from distiller_ng.core.context import StepContext
from distiller_ng.errors import ArgumentError, TargetError
from distiller_ng.names import ParameterIndex
from distiller_ng.ops.norms import channels_norm, filters_norm, kernels_norm, l1_norm, max_norm
from distiller_ng.ops.patterns import nm_mask
from distiller_ng.ops.thresholding import expand_binary_map, group_threshold_binary_map
from distiller_ng.pruning._checks import check_choice, check_number
from distiller_ng.pruning._threshold import ThresholdPruner
from distiller_ng.pruning.base import PRUNERS, MaskGroup, Scope, Target, targets_of_map
from distiller_ng.pruning.sparsity_schedules.base import ScheduleLike

__all__ = ["StructureParameterPruner", "ThresholdGroup"]

#: ``2D`` = kernels, ``3D`` = ``Filters`` (dimension 0), ``Channels`` (dimension 1), ``Rows`` and ``Cols`` of a matrix,
#: ``4D`` = the whole layer.
ThresholdGroup: TypeAlias = Literal["2D", "3D", "4D", "Filters", "Channels", "Rows", "Cols"]
_MAGNITUDES = {
    "2D": kernels_norm,
    "3D": filters_norm,
    "Filters": filters_norm,
    "Rows": filters_norm,
    "Channels": channels_norm,
    "Cols": channels_norm,
}


@PRUNERS.register("StructureParameterPruner", injected=("name", "model"))
class StructureParameterPruner(ThresholdPruner):
    """Prunes structures whose magnitude is not above a threshold: ``mask = magnitude(structure) > t``.

    ``reg_regims`` maps parameters (names, ``re:`` patterns, tokens) to ``[threshold, group type]``; group types are
    ``2D`` (kernels), ``3D`` or ``Filters``, ``Channels``, ``Rows`` and ``Cols`` (of a matrix as it is stored) and
    ``4D`` (the whole layer). With
    ``threshold_criteria: Mean_Abs`` the magnitude is the mean of ``|w|``, with ``Max`` the largest. ``model`` is given
    by the loader; with it targets of wrong dimensions are refused at once. ``schedule``: see :class:`ThresholdPruner`;
    ``scope`` changes nothing; ``pattern``: at most N of M consecutive structures stay.

    Rows ``[[1, 2], [3, 4]]`` with ``[2.0, Rows]``: ``Max`` gives 2 and 4 and keeps the second row, ``Mean_Abs`` 1.5
    and 3.5, likewise::

        pruners:
          small_filters:
            class: StructureParameterPruner
            reg_regims: {'layer1.0.conv1.weight': [0.01, Filters]}
            threshold_criteria: Mean_Abs

    Raises :class:`ArgumentError` for malformed regims, :class:`TargetError` for a parameter without such structures.
    """

    def __init__(
        self,
        name: str,
        model: nn.Module | None,
        reg_regims: Mapping[str, tuple[float, ThresholdGroup]],
        threshold_criteria: Literal["Max", "Mean_Abs"],
        *,
        schedule: ScheduleLike | None = None,
        scope: Scope = "layer",
        pattern: str | int | None = None,
    ) -> None:
        super().__init__(name, schedule=schedule, scope=scope, pattern=pattern)
        check_choice("threshold_criteria", threshold_criteria, ("Max", "Mean_Abs"))
        self.threshold_criteria = threshold_criteria
        self.reg_regims = _check_regims(reg_regims)
        if model is not None:
            self.bind(ParameterIndex(model), strict=False)

    def targets(self) -> Sequence[Target]:
        """The keys of ``reg_regims``."""
        return targets_of_map("reg_regims", self.reg_regims)

    def check_parameter(self, name: str, parameter: Tensor, target: Target) -> None:
        """The group type must fit the parameter's dimensions."""
        try:
            group_threshold_binary_map(parameter, self.reg_regims[target.text][1], 0.0, self.threshold_criteria)
        except ArgumentError as error:
            raise TargetError(f"{name}: {error}", argument=(*target.argument, 1)) from None

    def structure_dim(self, name: str) -> int | None:
        """Filters are dimension 0, channels 1; kernels, rows and columns are nothing that could be removed."""
        return {"3D": 0, "Filters": 0, "Channels": 1}.get(self.reg_regims[self.target_of(name)][1])

    def threshold(self, name: str, group: MaskGroup, ctx: StepContext) -> float:
        """What ``reg_regims`` says."""
        return self.reg_regims[self.target_of(name)][0]

    def compute_masks(self, group: MaskGroup, ctx: StepContext) -> Mapping[str, Tensor]:
        """Each structure against its parameter's threshold."""
        scale = self.scale(ctx)
        masks = {}
        for name in group.names:
            weight = ctx.weight(name)
            group_type = self.reg_regims[self.target_of(name)][1]
            threshold = self.threshold(name, group, ctx) * scale
            keep = group_threshold_binary_map(weight, group_type, threshold, self.threshold_criteria)
            if self.pattern is not None and group_type in _MAGNITUDES:
                norm = max_norm if self.threshold_criteria == "Max" else l1_norm
                keep = keep * nm_mask(_MAGNITUDES[group_type](weight, norm), self.pattern)
            masks[name] = expand_binary_map(weight, group_type, keep)
        return masks


def _check_regims(regims: Mapping[str, tuple[float, ThresholdGroup]]) -> dict[str, tuple[float, ThresholdGroup]]:
    example = "{conv1.weight: [0.01, Filters]}"
    if not isinstance(regims, Mapping) or not regims:
        message = f"reg_regims must map parameters to [threshold, group type], like {example}; got {regims!r}"
        raise ArgumentError(message, argument=("reg_regims",))
    checked: dict[str, tuple[float, ThresholdGroup]] = {}
    for key, regim in regims.items():
        if isinstance(regim, str) or not isinstance(regim, Sequence) or len(regim) != 2:
            message = f"reg_regims[{key!r}] must be [threshold, group type], like {example}; got {regim!r}"
            raise ArgumentError(message, argument=("reg_regims", key))
        threshold = check_number(regim[0], ("reg_regims", key, 0), low=0)
        if regim[1] not in get_args(ThresholdGroup):
            allowed = ", ".join(get_args(ThresholdGroup))
            message = f"reg_regims[{key!r}]: group type {regim[1]!r} is none of {allowed}"
            raise ArgumentError(message, argument=("reg_regims", key, 1))
        checked[key] = (threshold, regim[1])
    return checked
