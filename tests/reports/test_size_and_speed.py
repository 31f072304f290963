"""Models side by side."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from distiller_ng.errors import ArgumentError
from distiller_ng.reports import size_and_speed, size_and_speed_tbl


def models():
    return {"dense": nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)), "small": nn.Linear(4, 2)}


def test_figures():
    dense, small = size_and_speed(models(), torch.zeros(3, 4), batches=(1, 2), rounds=3)
    assert (dense.name, dense.parameters, dense.macs) == ("dense", 58, 48)
    assert (small.name, small.parameters, small.macs) == ("small", 10, 8)
    assert small.file_bytes < dense.file_bytes
    assert set(dense.latency) == {1, 2} and all(value > 0 for value in dense.latency.values())


def test_table_shows_ratios_and_more_columns():
    text = size_and_speed_tbl(
        size_and_speed(models(), torch.zeros(1, 4), batches=(1,), rounds=1), extra={"Top1": {"small": "97.5"}}
    )
    assert "10 (0.17x)" in text and "97.5" in text and "ms, batch 1" in text


def test_modes_are_left_alone():
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)).train()
    size_and_speed({"m": model}, torch.zeros(1, 4), batches=(1,), rounds=1)
    assert model.training and model[1].training


@pytest.mark.parametrize(("given", "rounds", "message"), [({}, 3, "got none"), (models(), 0, "rounds")])
def test_mistakes(given, rounds, message):
    with pytest.raises(ArgumentError, match=message):
        size_and_speed(given, torch.zeros(1, 4), rounds=rounds)
