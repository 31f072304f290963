"""Branch points and truncated singular value decompositions."""

import copy
import io

import pytest
import torch
from torch import nn

from distiller_ng.errors import ArgumentError
from distiller_ng.modules import BranchPoint, TruncatedSVD, truncated_svd


class Scale(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return self.factor * x


def test_branch_points_change_nothing_and_keep_the_branch():
    model = nn.Sequential(BranchPoint(Scale(2.0), Scale(-1.0)), Scale(10.0))
    x = torch.tensor([3.0], requires_grad=True)
    assert model(x).item() == 60.0
    assert model[0].output.item() == -6.0
    assert copy.deepcopy(model)[0].output is None and model[0].output is not None
    torch.save(model, io.BytesIO())
    model[0].clear()
    assert model[0].output is None


def test_b12_truncated_svd_is_the_best_approximation():
    left, right = truncated_svd(torch.tensor([[3.0, 0.0], [0.0, 1.0]]), 1)
    assert left.shape == (2, 1) and right.shape == (1, 2)
    torch.testing.assert_close(left @ right, torch.tensor([[3.0, 0.0], [0.0, 0.0]]))
    torch.manual_seed(0)
    weight = torch.randn(6, 4, dtype=torch.float64)
    left, right = truncated_svd(weight, 2)
    assert left.dtype == torch.float64
    error = torch.linalg.matrix_norm(weight - left @ right)
    assert float(error) == pytest.approx(float(torch.linalg.svdvals(weight)[2:].square().sum().sqrt()))
    left, right = truncated_svd(weight, 4)
    torch.testing.assert_close(left @ right, weight)


def test_b12_replaces_a_linear_layer():
    torch.manual_seed(0)
    fc = nn.Linear(20, 10)
    x = torch.randn(3, 20)
    exact = TruncatedSVD(fc, fc.weight, 1.0)
    torch.testing.assert_close(exact(x), fc(x))
    small = TruncatedSVD(fc, fc.weight, 0.25)
    assert (small.rank, small.fc_sv.weight.shape, small.fc_u.weight.shape) == (2, (2, 20), (10, 2))
    assert small.fc_sv.bias is None and torch.equal(small.fc_u.bias, fc.bias)
    left, right = truncated_svd(fc.weight, 2)
    torch.testing.assert_close(small(x), x @ (left @ right).T + fc.bias)
    small(x).sum().backward()
    assert small.fc_u.weight.grad is not None and fc.weight.grad is None
    assert TruncatedSVD("fc", fc.weight, 0.01).rank == 1
    assert TruncatedSVD("fc", fc.weight, 0.5).fc_u.bias is None
    assert TruncatedSVD(nn.Linear(3, 100), torch.randn(100, 3), 1.0).rank == 3


def test_half_precision():
    weight = torch.randn(4, 4).bfloat16()
    left, right = truncated_svd(weight, 4)
    assert left.dtype == torch.bfloat16
    torch.testing.assert_close((left @ right).float(), weight.float(), atol=0.1, rtol=0.1)


@pytest.mark.parametrize(
    ("weight", "rank"),
    [
        (torch.ones(3), 1),
        (torch.ones(2, 2).int(), 1),
        ("W", 1),
        (torch.ones(2, 3), 0),
        (torch.ones(2, 3), 3),
        (torch.ones(2, 3), 1.5),
    ],
)
def test_wrong_matrices_and_ranks(weight, rank):
    with pytest.raises(ArgumentError):
        truncated_svd(weight, rank)


@pytest.mark.parametrize("ratio", [0, -1, 1.5, True, "half", float("nan")])
def test_wrong_ratios(ratio):
    with pytest.raises(ArgumentError, match="preserve_ratio"):
        TruncatedSVD(nn.Linear(2, 2), torch.ones(2, 2), ratio)


def test_wrong_layers():
    with pytest.raises(ArgumentError, match="weight"):
        TruncatedSVD(nn.Linear(2, 2), torch.ones(2), 0.5)
    with pytest.raises(ArgumentError, match="bias"):
        TruncatedSVD(nn.Linear(2, 3), torch.ones(2, 2), 0.5)
