"""``--sense`` of the application."""

from __future__ import annotations

import argparse

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from distiller_ng.apputils.classifier_sensitivity import sensitivity_analysis, sensitivity_levels
from distiller_ng.errors import ArgumentError


@pytest.mark.parametrize(
    "given, expected",
    [((0, 0.3, 0.1), [0.0, 0.1, 0.2]), ((0.5, 1, 0.25), [0.5, 0.75]), ((0.2, 0.21, 0.5), [0.2])],
)
def test_levels(given, expected):
    assert sensitivity_levels(*given) == expected
    assert len(sensitivity_levels(0.0, 0.95, 0.05)) == 19


@pytest.mark.parametrize("given", [(0.5, 0.5, 0.1), (-0.1, 0.5, 0.1), (0, 1.1, 0.1), (0, 0.5, 0), (0, float("nan"), 1)])
def test_ranges_that_cannot_be(given):
    with pytest.raises(ArgumentError, match="--sense-range"):
        sensitivity_levels(*given)


def test_the_analysis_writes_its_files_and_leaves_the_model(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    x = torch.randn(60, 4)
    y = model(x).argmax(1)  # right everywhere, until something is pruned
    before = model[0].weight.clone()
    args = argparse.Namespace(sensitivity="element", sensitivity_range=[0.0, 1.0, 0.5])
    loader = DataLoader(TensorDataset(x, y), 20)
    found = sensitivity_analysis(model, nn.CrossEntropyLoss(), loader, None, args, logdir=tmp_path)
    assert list(found) == ["0.weight", "2.weight"]
    assert found["0.weight"][0.0][0] == 100.0
    assert found["0.weight"][0.5][0] < 100.0
    assert torch.equal(model[0].weight, before)
    assert (tmp_path / "sensitivity.csv").read_text().count("\n") == 5
