"""Sparsity of values and structures."""

import pytest
import torch

from distiller_ng.errors import ArgumentError
from distiller_ng.ops import sparsity as s

ROWS = torch.tensor([[0.0, 0, 0], [1, 4, 0], [1, 2, 0], [0, 0, 0]])


def test_all_zero_and_all_one():
    zeros = torch.zeros(2, 3, 5, 6)
    assert s.sparsity(zeros) == s.sparsity_3D(zeros) == s.sparsity_ch(zeros) == s.sparsity_2D(zeros) == 1.0
    assert s.density_3D(zeros) == s.density_ch(zeros) == s.density_2D(zeros) == 0.0
    assert s.sparsity(torch.ones(12, 43, 4, 6)) == 0.0


def test_matrix_columns():
    x = torch.tensor([[1.0, 2, 0, 4, 0], [1, 2, 0, 4, 0]])
    assert s.density(x) == 0.6 and s.sparsity(x) == 0.4
    assert s.density_cols(x, transposed=False) == 0.6
    assert s.sparsity_rows(x, transposed=False) == 0


def test_matrix_rows_and_their_transposed_meaning():
    assert s.density(ROWS) == 4 / 12
    assert s.sparsity_rows(ROWS, transposed=False) == s.sparsity_cols(ROWS) == 0.5
    assert s.sparsity_cols(ROWS, transposed=False) == pytest.approx(1 / 3)
    assert s.sparsity_rows(ROWS) == pytest.approx(1 / 3)
    assert s.density_rows(ROWS) == pytest.approx(2 / 3)
    assert s.sparsity_2D(ROWS) == 0.5
    assert s.sparsity_matrix(ROWS, 0) == 0.5


@pytest.mark.parametrize("kernel", [(3,), (3, 3), (2, 3, 3)])
def test_convolutions_of_every_dimension(kernel):
    weight = torch.ones(4, 6, *kernel)
    weight[1] = 0
    weight[:, 2:4] = 0
    assert s.sparsity_3D(weight) == 0.25
    assert s.sparsity_ch(weight) == pytest.approx(1 / 3)
    assert s.sparsity_2D(weight) == (6 + 3 * 2) / 24
    assert s.sparsity_rows(weight) == s.sparsity_cols(weight) == 0
    assert s.norm_filters(weight).tolist() == [4 * torch.Size(kernel).numel() * (i != 1) for i in range(4)]


def test_measures_a_tensor_does_not_have_are_zero():
    vector = torch.zeros(5)
    assert [f(vector) for f in (s.sparsity_2D, s.sparsity_3D, s.sparsity_ch, s.sparsity_rows)] == [0, 0, 0, 0]
    assert s.sparsity_3D(torch.zeros(3, 3)) == s.sparsity_ch(torch.zeros(3, 3)) == 0
    assert s.sparsity(torch.empty(0)) == 0 and s.density(torch.empty(0)) == 1


def test_filters_whose_values_cancel_are_not_zero():
    assert s.sparsity_3D(torch.tensor([1.0, -1.0]).view(1, 2, 1, 1)) == 0


def test_counts_in_any_dtype():
    for dtype in (torch.bool, torch.int8, torch.bfloat16, torch.float64):
        assert s.count_nonzero(torch.tensor([0, 1, 2, 0]).to(dtype)) == 2
    assert s.count_nonzero(torch.tensor([float("nan"), -0.0])) == 1


def test_volume():
    assert s.volume(torch.ones(2, 3)) == s.volume((2, 3)) == s.volume(torch.Size([2, 3])) == 6


def test_non_zero_channels():
    weight = torch.ones(2, 3, 1, 1)
    weight[:, 1] = 0
    assert s.non_zero_channels(weight).tolist() == [[0], [2]]
    with pytest.raises(ArgumentError, match="4D"):
        s.non_zero_channels(ROWS)
    with pytest.raises(ArgumentError, match="2 or more"):
        s.norm_filters(torch.ones(3))


def test_blocks():
    weight = torch.ones(4, 2, 1, 2)
    weight[:2, :, 0, 0] = 0  # the first four kernels, at kernel position 0
    assert s.sparsity_blocks(weight, (2, 2, 1, 1)) == 0.25  # one of 2 x 2 blocks
    assert s.sparsity_blocks(weight, (1, 2, 1, 1)) == 0.25  # two of 4 x 2
    assert s.sparsity_blocks(weight, (2, 1, 1, 1)) == 0.25  # two of 2 x 4
    for bad in ((3, 1, 1, 1), (2, 2, 2, 1), (2, 2)):
        with pytest.raises(ArgumentError, match="blocks of shape"):
            s.sparsity_blocks(weight, bad)
