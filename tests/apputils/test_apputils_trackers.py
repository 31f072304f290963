import dataclasses
import math

import pytest
import torch
from torch import nn

from distiller_ng.apputils.trackers import PerformanceRecord, SparsityAccuracyTracker, TrainingPerformanceTracker
from distiller_ng.errors import ArgumentError, CheckpointError


def make_model(zeros: int) -> nn.Module:
    """10 weights that count, ``zeros`` of them zero; the bias has dimension 1 and stays out."""
    model = nn.Linear(5, 2)
    with torch.no_grad():
        model.weight.fill_(1.0).view(-1)[:zeros] = 0.0
        model.bias.zero_()
    return model


def epochs(records):
    return [record.epoch for record in records]


def test_record_holds_percent_and_count():
    record = SparsityAccuracyTracker(1).step(make_model(4), 7, top1=61.5, top5=90.0)
    assert record == PerformanceRecord(sparsity=pytest.approx(40.0), params_nnz_cnt=6, top1=61.5, top5=90.0, epoch=7)
    with pytest.raises(dataclasses.FrozenInstanceError):
        record.top1 = 0.0


def test_what_counts_is_dimension_2_or_4_named_weight_or_bias():
    model = nn.Sequential(nn.Conv2d(1, 2, 2), nn.BatchNorm2d(2), nn.Conv1d(1, 1, 3), nn.Linear(2, 2))
    model.register_parameter("scale", nn.Parameter(torch.ones(3, 3)))
    model.register_parameter("my_bias", nn.Parameter(torch.ones(2, 2)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
    assert SparsityAccuracyTracker(1).step(model, 0, top1=0, top5=0).params_nnz_cnt == 8 + 4 + 4


def test_model_without_such_weights():
    record = SparsityAccuracyTracker(1).step(nn.BatchNorm1d(3), 0, top1=1, top5=1)
    assert record.sparsity == 0.0 and record.params_nnz_cnt == 0


def test_sparsity_comes_first_then_accuracy_then_the_later_epoch():
    tracker = SparsityAccuracyTracker(10)
    tracker.step(make_model(5), 0, top1=90, top5=99)
    tracker.step(make_model(8), 1, top1=70, top5=95)
    tracker.step(make_model(8), 2, top1=71, top5=94)
    tracker.step(make_model(8), 3, top1=70, top5=96)
    tracker.step(make_model(8), 4, top1=71, top5=94)
    assert epochs(tracker.best_scores(10)) == [4, 2, 3, 1, 0]


def test_accuracy_tracker_ignores_sparsity():
    tracker = TrainingPerformanceTracker(3)
    for epoch, (zeros, top1) in enumerate([(9, 90.0), (0, 92.0), (5, 91.0), (1, 10.0)]):
        tracker.step(make_model(zeros), epoch, top1=top1, top5=99.0)
    assert epochs(tracker.best_scores(3)) == [1, 2, 0]


@pytest.mark.parametrize(("asked", "given"), [(1, 1), (2, 2), (5, 2), (0, 2), (-1, 2)])
def test_how_many_best_scores(asked, given):
    tracker = SparsityAccuracyTracker(2)
    assert tracker.best_scores(asked) == []
    for epoch in range(4):
        tracker.step(make_model(0), epoch, top1=epoch, top5=0)
    assert epochs(tracker.best_scores(asked)) == [3, 2][:given]
    assert epochs(tracker.best_scores()) == [3]


def test_a_diverged_epoch_ranks_last():
    tracker = TrainingPerformanceTracker(3)
    for epoch, top1 in enumerate([50.0, math.nan, 60.0]):
        tracker.step(make_model(0), epoch, top1=top1, top5=0.0)
    assert epochs(tracker.best_scores(3)) == [2, 0, 1]


def test_reset_and_state():
    tracker = SparsityAccuracyTracker(2)
    tracker.step(make_model(1), 0, top1=1, top5=2)
    tracker.step(make_model(2), 1, top1=1, top5=2)
    other = SparsityAccuracyTracker(2)
    other.load_state_dict(tracker.state_dict())
    assert other.best_scores(2) == tracker.best_scores(2)
    tracker.reset()
    assert tracker.best_scores(2) == [] and len(other.best_scores(2)) == 2


@pytest.mark.parametrize("state", [{}, {"version": 2, "records": []}, {"version": 1}, {"version": 1, "records": [{}]}])
def test_state_of_something_else(state):
    with pytest.raises(CheckpointError):
        SparsityAccuracyTracker(1).load_state_dict(state)


def test_num_best_scores_must_be_positive():
    with pytest.raises(ArgumentError) as caught:
        TrainingPerformanceTracker(0)
    assert caught.value.argument == ("num_best_scores",)
