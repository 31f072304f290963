"""Recipes one after the other: a second recipe for a model that was trained with a first (layer 4)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from distiller_ng.config.frontends.recipe.timing import END, START, latest_epoch, number_of
from distiller_ng.config.spec import ModifierSpec, RecipeSpec
from distiller_ng.core.window import OPEN_END
from distiller_ng.errors import ArgumentError, listed

__all__ = ["compose", "max_epochs", "min_epochs"]

_EPOCHS = ("freeze_bn_stats_epoch", "disable_quantization_observer_epoch")
_EPOCH_LISTS = ("update_epochs",)
#: What never ends, whatever comes after it.
_ENDLESS = ("QuantizationModifier",)


def max_epochs(modifiers: Iterable[ModifierSpec]) -> int:
    """The latest start or end of all modifiers, rounded up; -1 if none has one.

    >>> max_epochs([ModifierSpec("EpochRangeModifier", {"start_epoch": 0.0, "end_epoch": 2.3}, ())])
    3
    """
    return max([latest_epoch(modifier.properties) for modifier in modifiers] or [-1])


def min_epochs(modifiers: Iterable[ModifierSpec]) -> int:
    """The earliest start of all modifiers, rounded down; -1 if none has one."""
    starts = [number_of(modifier.properties.get(START)) for modifier in modifiers]
    return min([int(start) for start in starts if start is not None and start > -1] or [-1])


def compose(base: RecipeSpec, additional: RecipeSpec, *, keep_original_epochs: bool = False) -> RecipeSpec:
    """The stages of ``base`` followed by those of ``additional``.

    Recipes without stages become ``stage_0`` and ``stage_1`` (``stage_{n + 1}`` behind ``n`` stages; one before stages
    ``pre_<first stage>``). The second begins where the first ends: its epochs move by ``max_epochs`` of the first,
    whose open ends end there; quantization goes on. ``keep_original_epochs`` leaves all epochs as they are. Raises
    :class:`ArgumentError` for stages of the same name.
    """
    first, second = _names(base, additional)
    both = sorted(set(first.values()) & set(second.values()))
    if both:
        raise ArgumentError(f"both recipes have a stage {listed(map(repr, both))}: give one of them another name")
    length = max_epochs(base.modifiers)
    before = [m if keep_original_epochs else _closed(m, length) for m in base.modifiers]
    after = [m if keep_original_epochs else _moved(m, length) for m in additional.modifiers]
    metadata = {first[stage]: content for stage, content in base.metadata.items()}
    metadata |= {second[stage]: content for stage, content in additional.metadata.items()}
    return RecipeSpec(
        (
            *(replace(m, stage=first[m.stage], group=f"{first[m.stage]}_modifiers") for m in before),
            *(replace(m, stage=second[m.stage], group=f"{second[m.stage]}_modifiers") for m in after),
        ),
        metadata,
    )


def _names(base: RecipeSpec, additional: RecipeSpec) -> tuple[Mapping[str, str], Mapping[str, str]]:
    """New names of the stages of both."""
    first = {stage: stage for stage in base.stages}
    second = {stage: stage for stage in additional.stages}
    if not second:
        second = {"": f"stage_{len(first) + 1}" if first else "stage_1"}
    if not first:
        first = {"": f"pre_{additional.stages[0]}" if additional.stages else "stage_0"}
    return first, second


def _closed(modifier: ModifierSpec, length: int) -> ModifierSpec:
    end = number_of(modifier.properties.get(END))
    if end != OPEN_END or modifier.tag in _ENDLESS or length < 0:
        return modifier
    return replace(modifier, properties={**modifier.properties, END: float(length)})


def _moved(modifier: ModifierSpec, length: int) -> ModifierSpec:
    by = max(length, 0)
    properties: dict[str, Any] = dict(modifier.properties)
    start, end = number_of(properties.get(START)), number_of(properties.get(END))
    properties[START] = max(start or 0.0, 0.0) + by
    if end is not None and end != OPEN_END:
        properties[END] = end + by
    for name in _EPOCHS:
        if number_of(properties.get(name)) is not None:
            properties[name] = float(properties[name]) + by
    for name in _EPOCH_LISTS:
        if isinstance(properties.get(name), list):
            properties[name] = [epoch + by for epoch in properties[name]]
    return replace(modifier, properties=properties)
