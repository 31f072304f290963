"""What each class should have done, computed again from the file's numbers with formulas of the tests' own."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

Window = tuple[int, int, int]
TOLERANCE = 1e-6  # of a tensor's elements, for the rounding of the ramp


def agp(definition: Mapping[str, Any], epoch: int, window: Window) -> float:
    """``sf + (si - sf)(1 - (e - start) / span)^3`` with the span that ends at the last active epoch."""
    start, end, frequency = window
    span = (end - start - 1) // frequency * frequency
    first, last = definition["initial_sparsity"], definition["final_sparsity"]
    return last + (first - last) * (1 - (epoch - start) / span) ** 3


def level(definition: Mapping[str, Any], epoch: int, window: Window) -> float:
    if "final_sparsity" in definition:
        return agp(definition, epoch, window)
    return definition["desired_sparsity"]


def structures(mask: Tensor, group_type: str, definition: Mapping[str, Any]) -> Tensor:
    """One row for each structure that is pruned or kept as a whole."""
    if group_type == "Blocks":
        repetitions, depth, _, _ = definition["kwargs"]["block_shape"]
        filters, channels, height, width = mask.shape
        view = mask.reshape(filters * channels // (repetitions * depth), repetitions * depth, height * width)
        return view.transpose(1, 2).reshape(-1, repetitions * depth)
    if group_type in ("Channels", "Rows"):
        return mask.transpose(0, 1).flatten(1)
    return mask.flatten(1)


def assert_whole(groups: Tensor) -> None:
    """Each structure is kept or pruned, never cut."""
    assert bool((groups == groups[:, :1]).all())


def assert_share(pruned: int, share: float, number: int) -> None:
    """``floor(share * number)``, give or take the rounding of ``share``."""
    assert share * number - 1 - TOLERANCE * number <= pruned <= share * number + TOLERANCE * number


def assert_threshold(mask: Tensor, weight: Tensor, threshold: Tensor) -> None:
    """Pruned below the threshold, live above it; a standard deviation in single precision moves it by some 1e-6."""
    distance = weight.double().abs() / float(threshold) - 1
    assert not bool(((distance > 1e-5) & (mask == 0)).any())
    assert not bool(((distance < -1e-5) & (mask != 0)).any())


def check_elements(definition: Mapping[str, Any], masks: list[Tensor], before: list[Tensor], share: float) -> None:
    for mask in masks:
        assert_share(int((mask == 0).sum()), share, mask.numel())


def check_structures(definition: Mapping[str, Any], masks: list[Tensor], before: list[Tensor], share: float) -> None:
    for mask in masks:
        groups = structures(mask, definition["group_type"], definition)
        assert_whole(groups)
        assert_share(int((groups[:, 0] == 0).sum()), share, len(groups))
    if definition.get("group_dependency") == "Leader":
        kept = [structures(mask, definition["group_type"], definition)[:, 0] for mask in masks]
        assert all(torch.equal(kept[0], other) for other in kept)


def check_bernoulli(definition: Mapping[str, Any], masks: list[Tensor], before: list[Tensor], share: float) -> None:
    """Random filters; those that stay are scaled up by the inverse of how many stay."""
    dropped = total = 0
    for mask in masks:
        groups = structures(mask, "Filters", definition)
        assert_whole(groups)
        kept = int((groups[:, 0] != 0).sum())
        assert torch.allclose(groups[groups[:, 0] != 0], torch.tensor(len(groups) / kept))
        dropped, total = dropped + len(groups) - kept, total + len(groups)
    spread = 5 * math.sqrt(share * (1 - share) / total)
    assert abs(dropped / total - share) < spread


def check_random_level(definition: Mapping[str, Any], masks: list[Tensor], before: list[Tensor], share: float) -> None:
    low, high = definition["sparsity_range"]
    for mask in masks:
        groups = structures(mask, "Filters", definition)
        assert_whole(groups)
        pruned = int((groups[:, 0] == 0).sum())
        assert math.floor(low * len(groups)) <= pruned <= high * len(groups)


def check_sensitivity(definition: Mapping[str, Any], masks: list[Tensor], before: list[Tensor], share: float) -> None:
    """``|w| > s * std(w)`` on the weights of the first active epoch."""
    for mask, weight, factor in zip(masks, before, definition["sensitivities"].values(), strict=True):
        assert_threshold(mask, weight, factor * weight.double().std())


def check_splicing(definition: Mapping[str, Any], masks: list[Tensor], before: list[Tensor], share: float) -> None:
    """At first use: pruned below the low threshold, live above it (everything was live before)."""
    for mask, weight, factor in zip(masks, before, definition["sensitivities"].values(), strict=True):
        magnitude = weight.double().abs()
        assert_threshold(mask, weight, (magnitude.mean() + magnitude.std() * factor) * definition["low_thresh_mult"])


def baidu_threshold(definition: Mapping[str, Any], epoch: int, window: Window) -> float:
    start, end, frequency = window
    ramp = start + definition["ramp_epoch_offset"]
    slope = 2 * definition["q"] * frequency / (2 * (ramp - start) + 3 * (end - ramp))
    steep = slope * definition["ramp_slope_mult"]
    if epoch < ramp:
        return slope * (epoch - start + 1) / frequency
    return (slope * (ramp - start + 1) + steep * (epoch - ramp + 1)) / frequency


def check_baidu(definition: Mapping[str, Any], masks: list[Tensor], before: list[Tensor], share: float) -> None:
    """``|w| > eps``; ``share`` is the threshold here."""
    for mask, weight in zip(masks, before, strict=True):
        assert_threshold(mask, weight, torch.tensor(share))


Check = Callable[[Mapping[str, Any], list[Tensor], list[Tensor], float], None]
CHECKS: dict[str, Check] = {
    "AutomatedGradualPruner": check_elements,
    "L1RankedStructureParameterPruner": check_structures,
    "L1RankedStructureParameterPruner_AGP": check_structures,
    "ActivationAPoZRankedFilterPruner_AGP": check_structures,
    "BernoulliFilterPruner": check_bernoulli,
    "BernoulliFilterPruner_AGP": check_bernoulli,
    "RandomLevelStructureParameterPruner": check_random_level,
    "SensitivityPruner": check_sensitivity,
    "SplicingPruner": check_splicing,
    "BaiduRNNPruner": check_baidu,
}
#: Checked in the first active epoch only: later masks depend on how the weights moved in between.
FIRST_ONLY = {"SensitivityPruner", "SplicingPruner"}


def share(definition: Mapping[str, Any], epoch: int, window: Window) -> float:
    """What the class's check compares with: a sparsity, or Baidu's threshold."""
    if definition["class"] == "BaiduRNNPruner":
        return baidu_threshold(definition, epoch, window)
    return level(definition, epoch, window) if {"final_sparsity", "desired_sparsity"} & set(definition) else math.nan


def learning_rate(definition: Mapping[str, Any], base: float, epoch: int) -> float:
    """The closed form at an absolute epoch."""
    kind, gamma = definition["class"], definition.get("gamma", 0.1)
    if kind == "StepLR":
        return base * gamma ** (epoch // definition["step_size"])
    if kind == "ExponentialLR":
        return base * gamma**epoch
    passed = [i for i, milestone in enumerate(definition["milestones"]) if milestone <= epoch]
    if kind == "MultiStepLR":
        return base * gamma ** len(passed)
    assert kind == "MultiStepMultiGammaLR"
    return base * math.prod(definition["gammas"][i] for i in passed)


def lasso_groups(weight: Tensor, group_type: str) -> Tensor:
    """One row for each group of a group lasso."""
    if group_type == "4D":
        return weight.reshape(1, -1)
    return weight.transpose(0, 1).flatten(1) if group_type == "Channels" else weight.flatten(1)


def penalty(definition: Mapping[str, Any], weights: list[Tensor]) -> float:
    """What a regularizer adds to the loss."""
    total = 0.0
    for weight, regim in zip(weights, definition["reg_regims"].values(), strict=True):
        w = weight.double()
        if definition["class"] == "L1Regularizer":
            total += regim * float(w.abs().sum())
            continue
        strength, group_type = regim
        if group_type == "2D":
            norms = w.flatten(0, 1).flatten(1).norm(dim=1)
        else:
            norms = lasso_groups(w, group_type).norm(dim=1)
        if definition["class"] == "GroupVarianceRegularizer":
            total += strength / float(norms.var())
        else:
            total += strength * float(norms.sum())
    return total
