"""The inverse Fisher blocks against dense float64 matrices."""

from __future__ import annotations

import pytest
import torch

from distiller_ng.errors import ArgumentError
from distiller_ng.ops import fisher as module
from distiller_ng.ops.fisher import GramFisher, WoodburyFisher, inverse_fisher


def dense(gradients, damp, block):
    """Blocks of the inverse, dense, in float64, filled up with parameters of gradient zero."""
    count, size = gradients.shape
    block = min(block or size, size)
    padded = torch.zeros(count, -(-size // block) * block, dtype=torch.float64)
    padded[:, :size] = gradients.double()
    result = torch.zeros(padded.shape[1], padded.shape[1], dtype=torch.float64)
    for start in range(0, padded.shape[1], block):
        part = padded[:, start : start + block]
        result[start : start + block, start : start + block] = torch.linalg.inv(
            damp * torch.eye(block, dtype=torch.float64) + part.T @ part / count
        )
    return result[:size, :size]


def made(gradients, **settings):
    fisher = inverse_fisher(gradients.shape[1], len(gradients), **settings)
    for gradient in gradients:
        fisher.add(gradient)
    fisher.invert()
    return fisher


CASES = [
    # size, gradients, block, form
    (24, 16, 4, GramFisher),
    (23, 16, 4, GramFisher),
    (7, 9, 1, GramFisher),
    (10, 64, None, GramFisher),
    (24, 3, 8, WoodburyFisher),
    (21, 3, 8, WoodburyFisher),
    (24, 5, None, WoodburyFisher),
    (6, 6, 6, GramFisher),
    (3, 2, 50, WoodburyFisher),
]


@pytest.mark.parametrize(("size", "count", "block", "form"), CASES)
@pytest.mark.parametrize("single", [False, True], ids=["float64", "float32"])
def test_it_is_the_inverse(size, count, block, form, single, monkeypatch):
    if single:
        monkeypatch.setattr(module, "_SMALL", 0)
        monkeypatch.setattr(module, "_PIECE", 16)
    gradients = torch.randn(count, size, generator=torch.Generator().manual_seed(size))
    fisher = made(gradients, damp=1e-2, block_size=block)
    expected = dense(gradients, 1e-2, block)
    assert isinstance(fisher, form) and fisher.dtype == (torch.float32 if single else torch.float64)
    tolerance = {"rtol": 1e-4, "atol": 1e-4} if single else {"rtol": 1e-9, "atol": 1e-9}
    torch.testing.assert_close(fisher.diagonal().double(), expected.diagonal(), **tolerance)
    vector = torch.randn(size, dtype=torch.float64)
    torch.testing.assert_close(fisher.multiply(vector).double(), expected @ vector, **tolerance)


@pytest.mark.parametrize(("count", "block"), [(16, 8), (3, 8)])
def test_groups_are_blocks_along_the_diagonal(count, block):
    gradients = torch.randn(count, 24)
    groups = made(gradients, damp=1e-2, block_size=block).groups(4)
    expected = dense(gradients, 1e-2, block)
    assert groups.shape == (6, 4, 4)
    for index in range(6):
        torch.testing.assert_close(groups[index], expected[4 * index : 4 * index + 4, 4 * index : 4 * index + 4])


@pytest.mark.parametrize("pages", [1, 2, 7, 1000])
def test_pages_change_nothing(pages):
    gradients = torch.randn(4, 30)
    fisher = made(gradients, damp=1e-3, block_size=None, pages=pages)
    torch.testing.assert_close(fisher.diagonal(), dense(gradients, 1e-3, None).diagonal())


@pytest.mark.parametrize("scale", [1e-3, 1e-2, 0.1])
@pytest.mark.parametrize("block", [50, 400])
def test_float32_is_accurate_at_the_smallest_damp(scale, block, monkeypatch):
    monkeypatch.setattr(module, "_SMALL", 0)
    gradients = scale * torch.randn(256, 400, generator=torch.Generator().manual_seed(3))
    fisher = made(gradients, damp=1e-7, block_size=block)
    expected = dense(gradients, 1e-7, block)
    columns = torch.stack([fisher.multiply(unit) for unit in torch.eye(400)], dim=1).double()
    assert float((columns - expected).norm() / expected.norm()) < 1e-5


@pytest.mark.parametrize(("scale", "allowed"), [(1e-3, 1e-4), (1e-2, 1e-3), (1.0, 1.0)])
@pytest.mark.parametrize(("count", "block"), [(64, 16), (8, 16)])
def test_the_same_gradient_over_and_over(count, block, scale, allowed, monkeypatch):
    """A small loader goes round: the matrix has rank 1, and rounding must not make it indefinite."""
    monkeypatch.setattr(module, "_SMALL", 0)
    gradients = scale * torch.randn(1, 32, generator=torch.Generator().manual_seed(1)).repeat(count, 1)
    diagonal = made(gradients, damp=1e-7, block_size=block).diagonal()
    expected = dense(gradients, 1e-7, block).diagonal()
    assert float((diagonal - expected).norm() / expected.norm()) < allowed
    assert bool((diagonal > 0).all())


def test_parameters_without_gradient_are_left_to_the_damping():
    gradients = torch.randn(8, 8)
    gradients[:, 3] = 0
    fisher = made(gradients, damp=0.5, block_size=4)
    torch.testing.assert_close(fisher.multiply(torch.eye(8)[3]), 2.0 * torch.eye(8, dtype=torch.float64)[3])


@pytest.mark.parametrize(("block", "counted"), [(2, 4), (8, 3)])
def test_fewer_gradients_than_announced(block, counted):
    gradients = torch.randn(counted, 8)
    fisher = inverse_fisher(8, counted + 3, damp=1e-2, block_size=block)
    for gradient in gradients:
        fisher.add(gradient)
    fisher.invert()
    torch.testing.assert_close(fisher.diagonal(), dense(gradients, 1e-2, block).diagonal())


def test_half_and_strided_gradients_are_taken():
    fisher = inverse_fisher(6, 1, damp=1.0, block_size=1)
    fisher.add(torch.arange(6.0).reshape(2, 3).t().bfloat16())
    fisher.invert()
    assert fisher.diagonal().reciprocal().round().tolist() == [1, 10, 2, 17, 5, 26]


@pytest.mark.parametrize("wrong", [{"damp": 0.0}, {"damp": float("nan")}, {"block_size": 0}])
def test_what_makes_no_matrix(wrong):
    with pytest.raises(ArgumentError):
        inverse_fisher(4, 2, **{"damp": 1.0, "block_size": 2, **wrong})


def test_gradients_of_another_size_or_too_many_are_refused():
    fisher = inverse_fisher(4, 1, damp=1.0, block_size=2)
    with pytest.raises(ArgumentError, match="4 values"):
        fisher.add(torch.ones(3))
    fisher.add(torch.ones(4))
    with pytest.raises(ArgumentError, match="at most 1"):
        fisher.add(torch.ones(4))


@pytest.mark.parametrize(("count", "block"), [(16, 4), (2, 8)])
def test_gradients_that_do_not_count_are_zeros(count, block):
    gradients, keep = torch.randn(count, 23), (torch.rand(23) < 0.5).double()
    fisher = inverse_fisher(23, count, damp=1e-2, block_size=block)
    fisher.keep = keep
    for gradient in gradients:
        fisher.add(gradient)
    fisher.invert()
    torch.testing.assert_close(fisher.diagonal(), dense(gradients * keep, 1e-2, block).diagonal())


@pytest.mark.parametrize("block", [1, 4, 8])
def test_no_gradient_at_all_leaves_the_damping(block):
    fisher = inverse_fisher(8, 6, damp=0.25, block_size=block)
    fisher.invert()
    torch.testing.assert_close(fisher.multiply(torch.ones(8)), torch.full((8,), 4.0).double())
