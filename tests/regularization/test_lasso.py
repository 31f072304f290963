"""L1, L2, group lasso and group variance against literals and float64 loops over the groups."""

import itertools
import math

import pytest
import torch
from torch import nn

from distiller_ng.errors import ArgumentError, ScheduleWarning, TargetError
from distiller_ng.regularization import (
    GroupLassoRegularizer,
    GroupVarianceRegularizer,
    L1Regularizer,
    L2Regularizer,
)

MATRIX = torch.tensor([[3.0, 4.0, 0.0], [0.0, 0.0, 0.0], [-1.0, 2.0, 2.0]])
GROUP_TYPES_4D = ["2D", "Channels", "3D", "Filters", "4D", "Channels+4D", "4D+Channels"]
GROUP_TYPES_2D = ["Rows", "Cols", "Rows+Cols", "Cols+Rows", "3D", "Channels", "4D"]


def penalty(cls, regim, weight):
    return cls("r", None, {"w": regim}).loss(weight, "w", torch.zeros((), dtype=weight.dtype))


def mask(cls, regim, weight, criteria="Max"):
    regularizer = cls("r", None, {"w": regim}, criteria)
    regularizer.loss(weight, "w", torch.tensor(0.0))
    return regularizer.threshold_mask("w", weight)


def groups(weight, part):
    """Index tuples of every group, by plain enumeration."""
    every = list(itertools.product(*(range(size) for size in weight.shape)))
    key = {
        "2D": lambda i: (i[0], i[1]),
        "Rows": lambda i: i[0],
        "3D": lambda i: i[0],
        "Filters": lambda i: i[0],
        "Cols": lambda i: i[1],
        "Channels": lambda i: i[1],
        "4D": lambda i: 0,
    }[part]
    found = {}
    for index in every:
        found.setdefault(key(index), []).append(index)
    return list(found.values())


def reference_penalty(weight, group_type, strength):
    total = 0.0
    for part in group_type.split("+"):
        epsilon = 1e-8 if part == "Channels" else 0.0
        for members in groups(weight, part):
            total += math.sqrt(sum(float(weight[i]) ** 2 for i in members) + epsilon)
    return strength * total


def reference_mask(weight, group_type, strength, criteria):
    keep = torch.ones_like(weight)
    for part in group_type.split("+"):
        for members in groups(weight, part):
            sizes = [abs(float(weight[i])) for i in members]
            magnitude = max(sizes) if criteria == "Max" else sum(sizes) / len(sizes)
            if magnitude <= strength:
                for i in members:
                    keep[i] = 0
    return keep


# -- single weights ---------------------------------------------------------------------------------------------------


def test_l1_literal():
    assert penalty(L1Regularizer, 0.1, torch.tensor([1.0, -2.0, 0.0])).item() == pytest.approx(0.3)


def test_l2_literal_without_one_half():
    weight = torch.tensor([1.0, -2.0, 0.0], requires_grad=True)
    value = penalty(L2Regularizer, 0.1, weight)
    value.backward()
    assert value.item() == pytest.approx(0.5)
    assert weight.grad.tolist() == pytest.approx([0.2, -0.4, 0.0])


def test_l1_gradient_is_the_sign():
    weight = torch.tensor([1.0, -2.0, 0.0], requires_grad=True)
    penalty(L1Regularizer, 0.5, weight).backward()
    assert weight.grad.tolist() == [0.5, -0.5, 0.0]


@pytest.mark.parametrize("criteria", ["Max", "Mean_Abs"])
def test_l1_threshold_keeps_what_exceeds_the_strength(criteria):
    weight = torch.tensor([0.5, -0.51, 0.2, 0.0, 3.0])
    assert mask(L1Regularizer, 0.5, weight, criteria).tolist() == [0, 1, 0, 0, 1]


def test_without_criterion_there_is_no_mask():
    assert mask(L1Regularizer, 0.5, torch.ones(2), None) is None
    assert mask(GroupLassoRegularizer, [0.5, "Rows"], torch.ones(2, 2), None) is None


def test_float64_is_kept():
    weight = torch.full((1000,), 1 / 3, dtype=torch.float64)
    assert penalty(L1Regularizer, 3.0, weight).item() == pytest.approx(1000.0, rel=1e-14)
    assert penalty(L2Regularizer, 9.0, weight).item() == pytest.approx(1000.0, rel=1e-14)


def test_large_float32_weights_lose_no_digits():
    weight = torch.randn(1_000_000, generator=torch.Generator().manual_seed(0)).reshape(1000, 1000)
    exact = weight.double()
    assert penalty(L1Regularizer, 1.0, weight).item() == pytest.approx(exact.abs().sum().item(), rel=1e-6)
    assert penalty(GroupLassoRegularizer, [1.0, "4D"], weight).item() == pytest.approx(exact.norm().item(), rel=1e-6)


# -- groups -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("group_type", "norms"),
    [
        ("Rows", 5 + 0 + 3),
        ("Cols", math.sqrt(10) + math.sqrt(20) + 2),
        ("Rows+Cols", 8 + math.sqrt(10) + math.sqrt(20) + 2),
        ("3D", 8),
        ("4D", math.sqrt(34)),
    ],
)
def test_group_lasso_literals(group_type, norms):
    assert penalty(GroupLassoRegularizer, [0.5, group_type], MATRIX).item() == pytest.approx(0.5 * norms)


@pytest.mark.parametrize(
    ("shape", "group_type"),
    [((3, 4, 2, 3), kind) for kind in GROUP_TYPES_4D]
    + [((4, 3), kind) for kind in GROUP_TYPES_2D]
    + [((2, 3, 4), "2D"), ((2, 3, 4), "Channels"), ((5,), "4D")],
)
def test_group_lasso_against_enumerated_groups(shape, group_type):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    weight[0] = 0
    expected = reference_penalty(weight, group_type, 0.03)
    assert penalty(GroupLassoRegularizer, [0.03, group_type], weight).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("group_type", GROUP_TYPES_4D)
@pytest.mark.parametrize("criteria", ["Max", "Mean_Abs"])
def test_group_masks_against_enumerated_groups(group_type, criteria):
    weight = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(2))
    strength = 1.4 if criteria == "Max" else 0.75
    if group_type in ("Channels", "3D", "Filters", "Channels+4D", "4D+Channels", "4D"):
        strength = 1.9 if criteria == "Max" else 0.8
    found = mask(GroupLassoRegularizer, [strength, group_type], weight, criteria)
    assert torch.equal(found, reference_mask(weight, group_type, strength, criteria))
    assert found.dtype == weight.dtype


@pytest.mark.parametrize(
    ("group_type", "criteria", "strength", "expected"),
    [
        ("Rows", "Max", 2.5, [[1, 1, 1], [0, 0, 0], [0, 0, 0]]),
        ("Rows", "Mean_Abs", 1.5, [[1, 1, 1], [0, 0, 0], [1, 1, 1]]),
        ("Cols", "Max", 2.0, [[1, 1, 0], [1, 1, 0], [1, 1, 0]]),
        ("Rows+Cols", "Max", 2.5, [[1, 1, 0], [0, 0, 0], [0, 0, 0]]),
        ("Cols+Rows", "Max", 1.5, [[1, 1, 1], [0, 0, 0], [1, 1, 1]]),
        ("4D", "Max", 3.9, [[1, 1, 1]] * 3),
        ("4D", "Max", 4.0, [[0, 0, 0]] * 3),
    ],
)
def test_group_mask_literals(group_type, criteria, strength, expected):
    assert mask(GroupLassoRegularizer, [strength, group_type], MATRIX, criteria).tolist() == expected


@pytest.mark.parametrize("group_type", ["2D", *GROUP_TYPES_4D[1:]])
def test_zero_groups_have_finite_gradients(group_type):
    weight = torch.zeros(3, 4, 2, 2, requires_grad=True)
    penalty(GroupLassoRegularizer, [0.1, group_type], weight).backward()
    assert torch.equal(weight.grad, torch.zeros_like(weight))


def test_b1_4d_with_threshold_works():
    conv = nn.Conv2d(2, 3, 3)
    regularizer = GroupLassoRegularizer("r", conv, {"weight": [100.0, "4D"]}, "Mean_Abs")
    assert torch.equal(regularizer.threshold_mask("weight", conv.weight), torch.zeros(3, 2, 3, 3))
    kept = GroupLassoRegularizer("r", conv, {"weight": [1e-6, "4D"]}, "Mean_Abs")
    assert torch.equal(kept.threshold_mask("weight", conv.weight), torch.ones(3, 2, 3, 3))


@pytest.mark.parametrize("group_type", ["Channels+4D", "4D+Channels"])
def test_b2_channels_and_4d_add_up(group_type):
    weight = torch.ones(2, 3, 2, 2)
    expected = 3 * math.sqrt(8) + math.sqrt(24)
    assert penalty(GroupLassoRegularizer, [1.0, group_type], weight).item() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("shape", "group_type", "fitting"),
    [((4, 3), "2D", "Rows, Cols"), ((4, 3, 2, 2), "Rows", "2D, Channels, 3D"), ((4,), "Channels", "4D")],
)
def test_weights_without_such_groups_are_refused(shape, group_type, fitting):
    holder = nn.Module()
    holder.w = nn.Parameter(torch.zeros(shape))
    with pytest.raises(TargetError, match=f"no groups of type '{group_type}'; types for it: {fitting}") as caught:
        GroupLassoRegularizer("r", holder, {"w": [0.1, group_type]})
    assert caught.value.argument == ("reg_regims", "w", 1)


def test_l1_with_group_types_is_group_lasso_with_a_warning():
    weight = torch.randn(3, 2, 2, 2, generator=torch.Generator().manual_seed(3))
    with pytest.warns(ScheduleWarning, match="taken as group lasso. Write class: GroupLassoRegularizer"):
        mixed = L1Regularizer("r", None, {"w": [0.7, "2D"], "v": 0.7}, "Max")
    as_lasso = GroupLassoRegularizer("r", None, {"w": [0.7, "2D"]}, "Max")
    assert mixed.loss(weight, "w", torch.zeros(())).item() == pytest.approx(
        as_lasso.loss(weight, "w", torch.zeros(())).item()
    )
    assert torch.equal(mixed.threshold_mask("w", weight), as_lasso.threshold_mask("w", weight))
    assert mixed.loss(weight, "v", torch.zeros(())).item() == pytest.approx(0.7 * weight.abs().sum().item())


# -- group variance ---------------------------------------------------------------------------------------------------


def test_group_variance_literal():
    weight = torch.tensor([[1.0, 3.0], [0.0, 0.0]])  # channel norms 1 and 3: unbiased variance 2
    assert penalty(GroupVarianceRegularizer, [0.5, "Channels"], weight).item() == pytest.approx(0.25)


def test_group_variance_against_float64():
    weight = torch.randn(4, 5, 3, 3, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    norms = [math.sqrt(float((weight[:, c] ** 2).sum()) + 1e-8) for c in range(5)]
    mean = sum(norms) / 5
    variance = sum((n - mean) ** 2 for n in norms) / 4
    value = penalty(GroupVarianceRegularizer, [8e-6, "Channels"], weight)
    assert value.item() == pytest.approx(8e-6 / variance, rel=1e-12)


def test_group_variance_of_equal_channels_is_finite_and_flat():
    weight = torch.zeros(2, 3, 2, 2, requires_grad=True)
    value = penalty(GroupVarianceRegularizer, [8e-6, "Channels"], weight)
    value.backward()
    assert math.isfinite(value.item())
    assert torch.equal(weight.grad, torch.zeros_like(weight))


@pytest.mark.parametrize(
    ("regim", "argument"),
    [
        ([0.1, "Filters"], ("reg_regims", "w", 1)),
        ([-1, "Channels"], ("reg_regims", "w", 0)),
        (0.1, ("reg_regims", "w")),
    ],
)
def test_group_variance_refuses(regim, argument):
    with pytest.raises(ArgumentError) as caught:
        GroupVarianceRegularizer("r", None, {"w": regim})
    assert caught.value.argument == argument


def test_group_variance_needs_two_channels():
    with pytest.raises(TargetError, match="it needs two or more"):
        GroupVarianceRegularizer("r", nn.Conv2d(1, 4, 3), {"weight": [0.1, "Channels"]})
