"""Norms of structures and rankings by them."""

import math

import pytest
import torch

from distiller_ng import norms
from distiller_ng.errors import ArgumentError
from distiller_ng.ops.norms import (
    channels_lp_norm,
    channels_norm,
    cols_lp_norm,
    e_greedy_normal_noise,
    filters_lp_norm,
    filters_norm,
    generic_norm,
    kernels_lp_norm,
    kernels_norm,
    l1_norm,
    l2_norm,
    max_norm,
    num_structs_to_prune,
    rank_channels,
    rank_filters,
    rows_lp_norm,
    sub_matrix_norm,
)

CONV = torch.arange(1.0, 9.0).view(2, 2, 2, 1)  # filter 0: channels [1 2], [3 4]; filter 1: [5 6], [7 8]
MATRIX = torch.tensor([[3.0, -4.0], [0.0, 1.0], [2.0, 2.0]])


def test_names():
    assert [str(n) for n in (l1_norm, l2_norm, max_norm)] == ["L1", "L2", "Max"]


def test_norm_callables():
    assert l1_norm(MATRIX).tolist() == [7, 1, 4]
    assert l2_norm(MATRIX, dim=1)[0] == 5
    assert max_norm(MATRIX, dim=0).tolist() == [3, 4]


def test_kernels():
    assert kernels_lp_norm(CONV).tolist() == [3, 7, 11, 15]
    assert kernels_lp_norm(CONV, 1, 2).tolist() == [10, 26]
    assert kernels_lp_norm(CONV, 1, 2, True).tolist() == [2.5, 6.5]
    assert kernels_norm(CONV, max_norm).tolist() == [2, 4, 6, 8]


def test_channels():
    assert channels_lp_norm(CONV).tolist() == [1 + 2 + 5 + 6, 3 + 4 + 7 + 8]
    assert channels_lp_norm(CONV, 2, length_normalized=True).tolist() == pytest.approx(
        [math.sqrt(1 + 4 + 25 + 36) / 4, math.sqrt(9 + 16 + 49 + 64) / 4]
    )
    assert channels_lp_norm(MATRIX).tolist() == [5, 7]


def test_filters():
    assert filters_lp_norm(CONV).tolist() == [10, 26]
    assert filters_lp_norm(CONV, length_normalized=True).tolist() == [2.5, 6.5]
    assert filters_lp_norm(CONV, 1, group_len=2).tolist() == [36]
    assert filters_lp_norm(MATRIX).tolist() == [7, 1, 4]


def test_rows_and_columns():
    assert rows_lp_norm(MATRIX).tolist() == [7, 1, 4]
    assert rows_lp_norm(MATRIX, length_normalized=True).tolist() == [3.5, 0.5, 2]
    assert cols_lp_norm(MATRIX).tolist() == [5, 7]
    assert cols_lp_norm(MATRIX, length_normalized=True).tolist() == pytest.approx([5 / 3, 7 / 3])
    assert sub_matrix_norm(MATRIX, max_norm, 1, False, dim=0).tolist() == [3, 4]


@pytest.mark.parametrize("kernel", [(), (3,), (3, 2), (2, 3, 2)])
def test_every_convolution_against_float64(kernel):
    torch.manual_seed(0)
    weight = torch.randn(4, 6, *kernel)
    wide = weight.double()
    expected = torch.stack([wide[:, 2 * i : 2 * i + 2].abs().mean() for i in range(3)])
    assert torch.allclose(channels_norm(weight, l1_norm, 2, True).double(), expected)
    expected = torch.stack([wide[i].square().sum().sqrt() for i in range(4)])
    assert torch.allclose(filters_norm(weight, l2_norm).double(), expected, rtol=1e-5)


def test_generic_norm_with_the_dimension_inside_the_function():
    assert generic_norm(MATRIX, lambda m: m.sum(0), 5, True, None).tolist() == [1, pytest.approx(-0.2)]


def test_norms_carry_no_history():
    weight = torch.nn.Parameter(torch.ones(2, 2))
    assert not filters_lp_norm(weight).requires_grad


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: kernels_lp_norm(MATRIX), "kernels need a weight of 3 or more"),
        (lambda: filters_lp_norm(torch.ones(3)), "filters need a weight of 2 or more"),
        (lambda: rows_lp_norm(CONV), "need a 2D weight"),
        (lambda: filters_lp_norm(MATRIX, 3), "p must be 1 or 2"),
        (lambda: filters_lp_norm(MATRIX, 1, 2), "3 filters cannot be grouped by 2"),
    ],
)
def test_misuse(call, message):
    with pytest.raises(ArgumentError, match=message):
        call()


def test_rank_channels_prunes_half():
    weight = torch.stack([torch.full((2, 2, 2), v) for v in (1.0, 2.0, 3.0)])
    weight[:, 0] *= 0.5
    bottom, mags = rank_channels(weight, 1, l1_norm, 0.5, math.floor, 0)
    assert bottom.tolist() == [1.0] and mags.tolist() == [1.0, 2.0]
    assert (mags > bottom[-1]).tolist() == [False, True]


def test_rank_filters():
    weight = torch.tensor([3.0, 1.0, 2.0, 4.0]).view(4, 1, 1, 1).expand(4, 2, 3, 3)
    bottom, mags = rank_filters(weight, 1, l2_norm, 0.5, math.floor, 0)
    assert bottom.tolist() == pytest.approx([math.sqrt(18) / 18, 2 * math.sqrt(18) / 18])
    assert (mags > bottom[-1]).tolist() == [True, False, False, True]
    assert rank_filters(weight, 1, l1_norm, 0.1, math.floor, 0) == (None, None)


def test_b11_groups_of_filters_are_ranked_together():
    weight = torch.tensor([1.0, 9.0, 4.0, 4.0, 0.0, 2.0]).view(6, 1, 1, 1)
    bottom, mags = rank_filters(weight, 2, l1_norm, 0.7, math.floor, 0)
    assert mags.tolist() == [5, 5, 4, 4, 1, 1]
    assert bottom.tolist() == [1, 1, 4, 4]
    bottom, mags = rank_channels(weight.transpose(0, 1), 3, l1_norm, 0.5, math.floor, 0)
    assert mags.tolist() == pytest.approx([14 / 3] * 3 + [2] * 3) and bottom.tolist() == [2, 2, 2]


def test_noise_is_drawn_for_whole_groups_and_from_torch():
    weight = torch.rand(8, 1, 1, 1)
    torch.manual_seed(3)
    _, first = rank_filters(weight, 2, l1_norm, 0.5, math.floor, 1.0)
    torch.manual_seed(3)
    _, second = rank_filters(weight, 2, l1_norm, 0.5, math.floor, 1.0)
    assert torch.equal(first, second)
    assert torch.equal(first[::2], first[1::2])
    assert not torch.allclose(first, filters_norm(weight, l1_norm, 2, True).repeat_interleave(2))
    assert e_greedy_normal_noise(weight, 0.0) == 1.0


def test_distillers_argument_order():
    assert num_structs_to_prune(16, 4, 0.6, math.floor) == 8
    assert norms.rank_filters is rank_filters
