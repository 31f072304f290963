"""Base of the pruners that follow a sparsity curve to a final level for each target (layer 2)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Final, Literal, TypeAlias

from torch import Tensor

from distiller_ng.core.context import StepContext
from distiller_ng.core.window import PolicyWindow
from distiller_ng.errors import ArgumentError, ScheduleWarning
from distiller_ng.names import ALL_PRUNABLE, ParameterIndex
from distiller_ng.ops.mask_types import MaskType, MaskTypeLike
from distiller_ng.pruning._checks import check_number, check_weights
from distiller_ng.pruning._level import ElementLevelPruner
from distiller_ng.pruning._recipes import gradual_from_recipe, gradual_to_recipe
from distiller_ng.pruning.base import MaskGroup, Scope, Target, targets_of_list
from distiller_ng.pruning.sparsity_schedules.base import ScheduleLike
from distiller_ng.pruning.sparsity_schedules.curves import Curve, check_curve, interpolate

__all__ = ["FROM_PARAM", "FinalSparsity", "GradualPruner", "InitSparsity"]

#: Begin with the share of zeros that each parameter has when the first decision is made.
FROM_PARAM: Final = "__FROM_PARAM__"

InitSparsity: TypeAlias = float | Literal["__FROM_PARAM__"]
FinalSparsity: TypeAlias = float | Mapping[float, str | Sequence[str]]

_PATTERN_TOLERANCE = 0.01


class GradualPruner(ElementLevelPruner):
    """What gradual pruners share: from ``init_sparsity`` to ``final_sparsity`` over the policy's window.

    ``init_sparsity``: 0..1, or ``__FROM_PARAM__`` for the zeros a parameter has already. ``final_sparsity``: 0..1, or
    a map of sparsities to the targets that get them, ``{0.6: [conv1.weight], 0.8: ['re:layer.*']}``; ``weights``
    (default: ``__ALL_PRUNABLE__``) is left out then. ``inter_func``: linear, cubic or inverse_cubic. ``mask_type``:
    what is pruned together (:class:`~distiller_ng.ops.mask_types.MaskType`). Exactly ``round(s * groups)`` groups are
    pruned, in each tensor or, with ``scope: global``, over all of them. ``schedule`` replaces the curve, ``pattern``
    the mask type.

    From 0.05 to 0.85 the cubic curve passes 0.5125, 0.75 and 0.8375 at a quarter, half and three quarters.
    """

    level_argument: ClassVar[str] = "final_sparsity"
    #: Mask types that make no sense for this pruner.
    refuses_mask_types: ClassVar[tuple[str, ...]] = ("filter", "channel")

    def __init__(
        self,
        name: str,
        weights: str | Sequence[str] | None = None,
        *,
        init_sparsity: InitSparsity | None = None,
        final_sparsity: FinalSparsity | None = None,
        inter_func: Curve = "cubic",
        mask_type: MaskTypeLike = "unstructured",
        sparsity: float | None = None,
        schedule: ScheduleLike | None = None,
        scope: Scope = "layer",
        pattern: str | int | None = None,
    ) -> None:
        self.mask_type = self._accept_mask_type(mask_type, pattern)
        self.init_sparsity = _check_init(init_sparsity, final_sparsity)
        self._finals, written = _finals(final_sparsity, weights)
        self._written = written
        self.weights = [t.text for t in written] or check_weights(ALL_PRUNABLE if weights is None else weights)
        self.inter_func = check_curve(inter_func)
        self._measured: dict[str, float] = {}
        if self.mask_type.pattern is not None and not self._finals and sparsity is None and schedule is None:
            sparsity = self.mask_type.pattern.sparsity
        if self._finals and sparsity is not None:
            raise ArgumentError("give sparsity or final_sparsity, not both", argument=("sparsity",))
        super().__init__(name, sparsity, schedule=schedule, scope=scope, pattern=pattern)

    def targets(self) -> Sequence[Target]:
        """``weights``, or what ``final_sparsity`` maps to."""
        return self._written or targets_of_list("weights", self.weights)

    def rounding(self, number: float) -> int:
        """To the nearest whole number, halves to the even one."""
        return round(number)

    def compute_masks(self, group: MaskGroup, ctx: StepContext) -> Mapping[str, Tensor]:
        """As the curve says; the first time, the parameters' own zeros are counted where the curve starts there."""
        if self.init_sparsity == FROM_PARAM:
            for name in group.names:
                if name not in self._measured:
                    weight = ctx.weight(name)
                    self._measured[name] = float((weight == 0).sum()) / max(weight.numel(), 1)
        return super().compute_masks(group, ctx)

    def final_level(self, name: str) -> float | None:
        """Where the curve of a bound parameter ends; None without ``final_sparsity``."""
        return self._finals.get(self.target_of(name), self._finals.get(""))

    def first_level(self, name: str) -> float:
        """Where the curve of a bound parameter starts."""
        if isinstance(self.init_sparsity, str):
            return self._measured.get(name, 0.0)
        return 0.0 if self.init_sparsity is None else self.init_sparsity

    def planned_sparsity(self, name: str, window: PolicyWindow) -> float | None:
        """The curve's end, as far as the mask type can meet it."""
        shape = self._parameters[name].shape if self._parameters is not None else ()
        if self.mask_type.leaves_alone(shape):
            return 0.0
        level = super().planned_sparsity(name, window)
        pattern = self.mask_type.pattern
        if pattern is None or not level or level < pattern.sparsity - _PATTERN_TOLERANCE:
            return level
        size = self.structures_of(name) or 0
        return size // pattern.m * (pattern.m - pattern.n) / size if size else level

    def check(self, window: PolicyWindow, parameters: ParameterIndex) -> None:
        """Warns about a window without an end and blocks that do not divide; refuses levels a pattern cannot have."""
        super().check(window, parameters)
        pattern = self.mask_type.pattern
        for name in self.names:
            final, shape = self.final_level(name), parameters[name].shape
            if pattern is not None and final is not None and abs(final - pattern.sparsity) > _PATTERN_TOLERANCE:
                message = (
                    f"mask_type '{pattern}' prunes {pattern.sparsity:g}: write final_sparsity: {pattern.sparsity:g}"
                )
                raise ArgumentError(f"{message} instead of {final:g}", argument=("final_sparsity",))
            if not self.mask_type.fits(shape):
                message = f"mask_type {self.mask_type.written()} does not divide {name!r} of shape {list(shape)}"
                warnings.warn(ScheduleWarning(f"pruner {self.owner!r}: {message}: a rest remains"), stacklevel=2)
        if self._finals and self.schedule is None and math.isinf(window.end):
            message = f"pruner {self.owner!r} stays at its initial sparsity: its window never ends"
            warnings.warn(ScheduleWarning(message), stacklevel=2)

    def state_dict(self) -> dict[str, Any]:
        """Where the curves started, with ``__FROM_PARAM__``."""
        return {**super().state_dict(), "measured": dict(self._measured)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`state_dict`."""
        super().load_state_dict({key: value for key, value in state.items() if key != "measured"})
        self._measured = dict(state["measured"])

    @classmethod
    def from_recipe(cls, properties: Mapping[str, Any], note: Callable[[str], None]) -> dict[str, Any]:
        """See :class:`~distiller_ng.registry.RecipeTag`."""
        return gradual_from_recipe(properties, note)

    @classmethod
    def to_recipe(cls, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """See :class:`~distiller_ng.registry.RecipeTag`."""
        return gradual_to_recipe(arguments)

    def _given_levels(self) -> list[float | None]:
        return list(self._finals.values()) or super()._given_levels()

    def _level_at(self, name: str, progress: float) -> float | None:
        final = None if self.schedule is not None or self._override(name) is not None else self.final_level(name)
        if final is None:
            return super()._level_at(name, progress)
        return interpolate(self.first_level(name), final, progress, self.inter_func)

    def _accept_mask_type(self, mask_type: MaskTypeLike, pattern: Any) -> MaskType:
        kind = MaskType.parse(mask_type)
        if kind.kind in self.refuses_mask_types:
            message = (
                f"{type(self).__name__} prunes single weights or blocks; for whole {kind.kind}s use StructuredPruner"
            )
            raise ArgumentError(message, argument=("mask_type",))
        if pattern is not None and kind.kind in ("block", "pattern"):
            raise ArgumentError("give pattern or mask_type, not both", argument=("pattern",))
        return kind


def _check_init(value: Any, final: Any) -> InitSparsity | None:
    if value is None:
        return None
    if final is None:
        raise ArgumentError("init_sparsity needs final_sparsity", argument=("final_sparsity",))
    if isinstance(value, str):
        if value.upper() == FROM_PARAM:
            return FROM_PARAM
        raise ArgumentError(f"init_sparsity is a number or {FROM_PARAM}, got {value!r}", argument=("init_sparsity",))
    return check_number(value, ("init_sparsity",), low=0, high=1)


def _finals(final: Any, weights: Any) -> tuple[dict[str, float], list[Target]]:
    """``{target: final sparsity}`` ("" for all), and the targets where a map names them."""
    if final is None:
        return {}, []
    if not isinstance(final, Mapping):
        return {"": check_number(final, ("final_sparsity",), low=0, high=1)}, []
    if weights:
        message = "final_sparsity names the parameters already: leave weights out (params: [] in a recipe)"
        raise ArgumentError(message, argument=("weights",))
    levels: dict[str, float] = {}
    targets: list[Target] = []
    for key, names in final.items():
        level = check_number(_number(key), ("final_sparsity", key), low=0, high=1)
        for target in targets_of_list("final_sparsity", names):
            if target.text not in levels:
                levels[target.text] = level
                targets.append(Target(target.text, ("final_sparsity", key, *target.argument[1:])))
    if not targets:
        raise ArgumentError("final_sparsity maps nothing: {0.8: [conv1.weight]}", argument=("final_sparsity",))
    return levels, targets


def _number(key: Any) -> Any:
    """Keys of a map may come as text."""
    try:
        return float(key) if isinstance(key, str) else key
    except ValueError:
        return key
