"""Which weights count, and their sparsity table."""

import math

import pytest
import torch
from torch import nn

from distiller_ng.ops.weights import (
    SPARSITY_COLUMNS,
    counted_weights,
    model_numel,
    model_params_size,
    model_params_stats,
    model_sparsity,
    weights_sparsity_summary,
    weights_sparsity_tbl_summary,
)


def model() -> nn.Module:
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Conv1d(2, 2, 3), nn.Linear(5, 2))
    with torch.no_grad():
        net[0].weight.fill_(1.0)
        net[0].weight[1] = 0
        net[0].weight[:, 1] = 0
        net[3].weight.copy_(torch.tensor([[1.0, -1, 0, 3, 0], [0, 0, 0, 0, 0]]))
    return net


def test_only_weights_of_dimension_2_and_4_count():
    assert [name for name, _ in counted_weights(model())] == ["0.weight", "3.weight"]
    assert [name for name, _ in counted_weights(model(), (2, 3, 4))] == ["0.weight", "2.weight", "3.weight"]
    assert model_numel(model()) == model_params_size(model()) == 72 + 10
    assert model_numel(model(), [1], ["bias"]) == 4 + 4 + 2 + 2


def test_stats():
    nonzero = 3 * 1 * 9 + 3
    assert model_params_stats(model()) == (pytest.approx(100 * (82 - nonzero) / 82), 82, nonzero)
    assert model_sparsity(model(), [2]) == pytest.approx(70.0)
    assert model_sparsity(nn.ReLU()) == 0.0


def test_tied_and_wrapped_parameters_count_once_under_their_own_name():
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    net[1].weight = net[0].weight
    assert [name for name, _ in counted_weights(nn.DataParallel(net))] == ["0.weight"]


def test_table():
    table, total = weights_sparsity_summary(model(), return_total_sparsity=True)
    assert table.columns == SPARSITY_COLUMNS == (
        "Name", "Shape", "NNZ (dense)", "NNZ (sparse)", "Cols (%)", "Rows (%)", "Ch (%)", "2D (%)", "3D (%)",
        "Fine (%)", "Std", "Mean", "Abs-Mean",
    )  # fmt: skip
    conv, linear, last = table.rows
    assert conv[:4] == ("0.weight", "(4, 2, 3, 3)", 72, 27)
    assert conv[4:10] == pytest.approx((0, 0, 50, 62.5, 25, 62.5))
    assert conv[10:] == pytest.approx((math.sqrt(27 / 72 * 45 / 72 * 72 / 71), 27 / 72, 27 / 72), rel=1e-5)
    assert linear[:4] == ("3.weight", "(2, 5)", 10, 3)
    assert linear[4:10] == pytest.approx((50, 40, 0, 50, 0, 70))  # columns and rows of the transposed matrix
    assert linear[10:] == pytest.approx((math.sqrt((11 - 10 * 0.09) / 9), 0.3, 0.5), rel=1e-5)
    assert last == ("Total sparsity:", "-", 82, 30, 0, 0, 0, 0, 0, pytest.approx(total), 0, 0, 0)
    assert total == pytest.approx(100 * 52 / 82)


def test_text():
    text, total = weights_sparsity_tbl_summary(model(), True)
    assert text == weights_sparsity_tbl_summary(model()) == str(weights_sparsity_summary(model()))
    assert "3.weight" in text and f"{total:.5f}" in text.splitlines()[-1]
    assert "2.weight" in weights_sparsity_tbl_summary(model(), param_dims=[3])


def test_models_without_weights_and_half_weights():
    table, total = weights_sparsity_summary(nn.ReLU(), True)
    assert len(table) == 1 and total == 0.0
    half = nn.Linear(1, 1).to(torch.bfloat16)
    assert weights_sparsity_summary(half).rows[0][10] == 0.0  # one value has no deviation
