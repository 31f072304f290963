"""Exact-count masks, criteria and lowest structures."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distiller_ng.errors import ArgumentError
from distiller_ng.ops.masks import (
    create_mask_level_criterion,
    create_mask_sensitivity_criterion,
    create_mask_threshold_criterion,
    global_threshold_masks,
    lowest_k_mask,
    lowest_structures,
    mask_tensor,
    structures_to_prune,
)


def zeros(mask: torch.Tensor) -> int:
    return mask.numel() - int(mask.count_nonzero())


def test_mask_tensor_in_place_and_not():
    weight = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    mask = torch.tensor([1.0, 0.0, 1.0])
    copy = mask_tensor(weight, mask, inplace=False)
    assert copy.tolist() == [1.0, 0.0, 3.0] and weight.tolist() == [1.0, 2.0, 3.0]
    assert mask_tensor(weight, mask) is weight and weight.tolist() == [1.0, 0.0, 3.0]
    assert mask_tensor(weight, None) is weight


def test_mask_tensor_refuses_to_broadcast():
    with pytest.raises(ArgumentError, match=r"mask of shape \(1,\) does not fit .* \(2, 2\)"):
        mask_tensor(torch.ones(2, 2), torch.ones(1))


def test_threshold_criterion_is_strict_and_on_magnitude():
    weight = torch.tensor([0.4, -0.5, 0.3, -0.4])
    assert create_mask_threshold_criterion(weight, 0.4).tolist() == [0.0, 1.0, 0.0, 0.0]
    ones = torch.ones(3, 4)
    ones[1, 2] = 0.2
    assert zeros(create_mask_threshold_criterion(ones, 0.3)) == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_masks_have_the_dtype_of_the_weight(dtype):
    weight = torch.tensor([1.0, -2.0, 3.0, -4.0], dtype=dtype)
    for mask in (create_mask_level_criterion(weight, 0.5), create_mask_threshold_criterion(weight, 2.5)):
        assert mask.dtype == dtype
        assert mask.tolist() == [0.0, 0.0, 1.0, 1.0]


def test_level_criterion_on_random_weights():
    torch.manual_seed(0)
    mask = create_mask_level_criterion(torch.rand(17, 20), 0.3)
    assert zeros(mask) == int(0.3 * 340)


def test_b10_level_of_less_than_one_element_prunes_nothing():
    assert create_mask_level_criterion(torch.rand(6), 0.1).tolist() == [1.0] * 6


def test_b10_constant_tensor_is_pruned_exactly_by_index():
    assert create_mask_level_criterion(torch.full((2, 4), 0.5), 0.5).tolist() == [[0.0] * 4, [1.0] * 4]


def test_sensitivity_criterion_uses_the_unbiased_deviation():
    weight = torch.tensor([1.0, -1.0, 2.0, -2.0])  # variance 10/3
    assert create_mask_sensitivity_criterion(weight, 1.0).tolist() == [0.0, 0.0, 1.0, 1.0]
    torch.manual_seed(0)
    mask = create_mask_sensitivity_criterion(torch.randn(400, 400), 1.0)
    assert 1 - float(mask.mean()) == pytest.approx(0.6827, abs=5e-3)
    assert create_mask_sensitivity_criterion(torch.tensor([3.0]), 1.0).tolist() == [1.0]


@pytest.mark.parametrize("bad", [-0.1, 1.1, float("nan")])
def test_bad_fractions_are_refused(bad):
    for call in (
        lambda: create_mask_level_criterion(torch.ones(3), bad),
        lambda: global_threshold_masks([torch.ones(3)], bad),
        lambda: lowest_structures(torch.ones(3), bad),
    ):
        with pytest.raises(ArgumentError, match="between 0 and 1"):
            call()


@given(st.lists(st.integers(0, 4), min_size=1, max_size=40), st.data())
def test_lowest_k_mask_matches_a_stable_sort(values, data):
    k = data.draw(st.integers(0, len(values)))
    order = np.argsort(np.array(values), kind="stable")
    expected = np.ones(len(values))
    expected[order[:k]] = 0
    assert lowest_k_mask(torch.tensor(values, dtype=torch.float64), k).tolist() == expected.tolist()


@given(st.lists(st.lists(st.integers(-3, 3), max_size=12), min_size=1, max_size=4), st.floats(0, 1))
def test_global_masks_match_one_stable_sort(values, sparsity):
    tensors = [torch.tensor(v, dtype=torch.float32) for v in values]
    flat = np.abs(np.concatenate([np.array(v, dtype=np.float64) for v in values]))
    expected = np.ones(flat.size)
    expected[np.argsort(flat, kind="stable")[: int(sparsity * flat.size)]] = 0
    direct = global_threshold_masks(tensors, sparsity, absolute=True)
    from_scores = global_threshold_masks([t.abs() for t in tensors], sparsity)
    assert torch.cat(direct).tolist() == torch.cat(from_scores).tolist() == expected.tolist()


def test_global_masks_across_dtypes_and_shapes():
    scores = [
        torch.tensor([[1.0, 5.0]], dtype=torch.bfloat16),
        torch.tensor([2.0, 6.0], dtype=torch.float64),
        torch.tensor(3.0),
        torch.tensor([4, 7]),
    ]
    masks = global_threshold_masks(scores, 4 / 7)
    assert [m.tolist() for m in masks] == [[[0.0, 1.0]], [0.0, 1.0], 0.0, [0.0, 1.0]]
    assert [m.dtype for m in masks] == [torch.bfloat16, torch.float64, torch.float32, torch.float32]
    assert global_threshold_masks([], 0.5) == []


def test_global_masks_leave_their_input_alone():
    weight = torch.tensor([-3.0, 1.0, -2.0, 4.0], requires_grad=True)
    (mask,) = global_threshold_masks([weight], 0.5, absolute=True)
    assert mask.tolist() == [1.0, 0.0, 0.0, 1.0] and not mask.requires_grad
    assert weight.tolist() == [-3.0, 1.0, -2.0, 4.0]


def test_ties_that_span_tensors_go_in_order():
    masks = global_threshold_masks([torch.ones(3), torch.ones(3)], 0.7)  # 4 of 6
    assert [m.tolist() for m in masks] == [[0.0, 0.0, 0.0], [0.0, 1.0, 1.0]]


@pytest.mark.parametrize("sparsity", [0.3, 0.6, 0.75, 0.9, 0.99])
def test_weights_pruned_before_are_counted_not_partitioned(sparsity):
    weights = torch.randn(40, 50) * (torch.rand(40, 50) < 0.25)  # three quarters are zero already
    (mask,) = global_threshold_masks([weights], sparsity, absolute=True)
    order = weights.abs().flatten().sort(stable=True).indices
    expected = torch.ones(2000)
    expected[order[: int(sparsity * 2000)]] = 0
    assert torch.equal(mask.flatten(), expected)


def test_nan_among_many_zeros_is_refused():
    weights = torch.zeros(100)
    weights[7] = math.nan
    with pytest.raises(ArgumentError, match="NaN"):
        global_threshold_masks([weights], 0.5)


def test_ties_larger_than_one_chunk():
    count = (1 << 20) + 5
    mask = lowest_k_mask(torch.zeros(count), count - 3)
    assert mask[-3:].tolist() == [1.0, 1.0, 1.0] and int(mask.sum()) == 3


def test_noncontiguous_scores():
    scores = torch.arange(6.0).view(2, 3).t()
    assert lowest_k_mask(scores, 2).tolist() == [[0.0, 1.0], [0.0, 1.0], [1.0, 1.0]]


@pytest.mark.parametrize("where", [0, 3])
@pytest.mark.parametrize("k", [1, 2, 3])
def test_nan_scores_are_refused(where, k):
    scores = torch.tensor([1.0, 2.0, 3.0, 4.0])
    scores[where] = float("nan")
    for dtype in (torch.float32, torch.bfloat16):
        with pytest.raises(ArgumentError, match="NaN"):
            lowest_k_mask(scores.to(dtype), k)


def test_infinite_scores_are_ranked():
    assert lowest_k_mask(torch.tensor([math.inf, 1.0, -math.inf, math.inf]), 3).tolist() == [0.0, 0.0, 0.0, 1.0]


@pytest.mark.parametrize("k", [-1, 5])
def test_k_out_of_range(k):
    with pytest.raises(ArgumentError, match=f"cannot prune {k} of 4"):
        lowest_k_mask(torch.ones(4), k)


@pytest.mark.parametrize(
    ("total", "fraction", "group", "rounding", "expected"),
    [
        (16, 0.1, 1, math.floor, 1),
        (16, 0.5, 1, math.floor, 8),
        (16, 0.05, 1, math.floor, 0),
        (16, 0.05, 1, math.ceil, 1),
        (16, 0.99, 1, math.ceil, 15),
        (16, 1.0, 1, math.floor, 16),
        (16, 0.6, 4, math.floor, 8),
        (16, 0.6, 4, math.ceil, 12),
        (16, 0.95, 4, math.ceil, 12),
        (10, 0.9, 4, math.ceil, 8),
        (10, 1.0, 4, math.ceil, 10),
        (1, 0.9, 1, math.ceil, 0),
        (0, 0.5, 1, math.floor, 0),
    ],
)
def test_structures_to_prune(total, fraction, group, rounding, expected):
    assert structures_to_prune(total, fraction, group, rounding) == expected


def test_group_size_must_be_positive():
    with pytest.raises(ArgumentError, match="group_size"):
        structures_to_prune(4, 0.5, 0)


def test_lowest_structures():
    magnitudes = torch.tensor([3.0, 1.0, 2.0, 4.0])
    assert lowest_structures(magnitudes, 0.5).tolist() == [1.0, 0.0, 0.0, 1.0]
    assert lowest_structures(magnitudes, 0.2) is None
    assert lowest_structures(magnitudes, 1.0).tolist() == [0.0] * 4
    assert lowest_structures(magnitudes, 0.2, rounding_fn=math.ceil).tolist() == [1.0, 0.0, 1.0, 1.0]
    assert magnitudes.tolist() == [3.0, 1.0, 2.0, 4.0]


def test_lowest_structures_ties_over_prune_but_never_everything():
    assert lowest_structures(torch.tensor([1.0, 1.0, 2.0]), 0.4).tolist() == [0.0, 0.0, 1.0]
    assert lowest_structures(torch.ones(4), 0.5).tolist() == [0.0, 0.0, 0.0, 1.0]
    assert lowest_structures(torch.ones(4), 0.5, group_size=2).tolist() == [0.0, 0.0, 1.0, 1.0]
    assert lowest_structures(torch.zeros(4), 0.25).tolist() == [0.0, 0.0, 0.0, 1.0]


def test_dtypes_that_numpy_lacks_take_the_same_decisions():
    magnitudes = torch.tensor([3.0, 1.0, 2.0, 2.0, 4.0], dtype=torch.bfloat16)
    assert lowest_structures(magnitudes, 0.4).tolist() == [1.0, 0.0, 0.0, 0.0, 1.0]
    assert lowest_structures(torch.tensor([3, 1, 2]), 0.4).tolist() == [1, 0, 1]
    magnitudes[0] = float("nan")
    with pytest.raises(ArgumentError, match="NaN"):
        lowest_structures(magnitudes, 0.4)
