"""Accuracy, mean losses, the confusion matrix, and what a run reports."""

import json
import math

import pytest
import torch
from torch import nn

from distiller_ng.apputils.meters import ClassificationMeter, ConfusionMatrix, known, scored
from distiller_ng.apputils.run_results import (
    RunResults,
    Scores,
    first_pruning_epoch,
    undisturbed,
    unfinished_policies,
)
from distiller_ng.core.scheduler import CompressionScheduler
from distiller_ng.policies import PruningPolicy, RegularizationPolicy
from distiller_ng.pruning import SparsityLevelParameterPruner
from distiller_ng.regularization import L1Regularizer

LOGITS = torch.tensor([[6.0, 5, 4, 3, 2, 1], [1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6]])


def test_top1_and_top5():
    meter = ClassificationMeter()
    meter.add(LOGITS, torch.tensor([0, 4, 0]), {})  # first; among five; last of six
    assert meter.top1 == pytest.approx(100 / 3)
    assert meter.top5 == pytest.approx(200 / 3)


def test_few_classes_count_all_as_top5():
    meter = ClassificationMeter()
    meter.add(torch.tensor([[2.0, 1.0], [0.0, 3.0]]), torch.tensor([0, 0]), {})
    assert (meter.top1, meter.top5) == (50.0, 100.0)


def test_losses_are_means_over_images_not_batches():
    meter = ClassificationMeter()
    meter.add(LOGITS, torch.tensor([0, 0, 0]), {"Loss": torch.tensor(1.0)})
    meter.add(LOGITS[:1], torch.tensor([0]), {"Loss": 5.0})
    assert meter.losses == {"Loss": 2.0}


def test_empty_meter():
    assert (ClassificationMeter().top1, ClassificationMeter().losses) == (0.0, {})


def test_confusion_matrix():
    matrix = ConfusionMatrix(3)
    matrix.add(torch.eye(3)[[0, 1, 1, 2]], torch.tensor([0, 1, 2, 2]))
    assert matrix.counts.tolist() == [[1, 0, 0], [0, 1, 0], [0, 1, 1]]
    assert str(matrix).splitlines()[-1].split() == ["2", "0", "1", "1"]


def test_measuring_leaves_the_generators_alone():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    with undisturbed():
        torch.rand(100)
    assert torch.equal(torch.rand(1), expected)


def scheduler_for(*windows):
    model = nn.Linear(4, 4)
    scheduler = CompressionScheduler(model)
    scheduler.add_policy(RegularizationPolicy(L1Regularizer("r", model, {"weight": 1e-4})), None, 0, 9, 1)
    for number, (start, end) in enumerate(windows):
        pruner = SparsityLevelParameterPruner(f"p{number}", {"weight": 0.5})
        scheduler.add_policy(PruningPolicy(pruner), None, start, end, 1)
    return scheduler


def test_first_pruning_epoch():
    assert first_pruning_epoch(scheduler_for()) is None
    assert first_pruning_epoch(scheduler_for((6, 9), (4, 9))) == 4


def test_schedules_that_outlast_the_run_are_named():
    scheduler = scheduler_for((2, 5), (5, 9))
    assert unfinished_policies(scheduler, 9) == []
    (text,) = unfinished_policies(scheduler, 8)
    assert "'p1'" in text and "up to epoch 8" in text


def test_results_as_json_and_words(tmp_path):
    results = RunResults({"arch": "a"}, before=Scores(7, 98.0, 100.0, 0.1, 0.0), after=Scores(9, 97.5, 99.0, 0.2, 0.9))
    results.save(tmp_path / "summary.json")
    content = json.loads((tmp_path / "summary.json").read_text())
    assert (content["arch"], content["top1_before"], content["top1_after"]) == ("a", 98.0, 97.5)
    assert (content["total_sparsity"], content["parameters"]) == (0.9, [])
    assert results.lines().splitlines() == [
        "Top1 before pruning: 98.000    (test set, after epoch 7, sparsity 0.00%)",
        "Top1 after pruning:  97.500    (test set, after epoch 9, sparsity 90.00%)",
    ]
    again = RunResults({})
    again.load_state_dict(json.loads(json.dumps(results.state_dict())))
    assert again.before == results.before and again.after is None


def test_what_top1_can_be_counted_of():
    logits, classes = torch.tensor([[2.0, 1.0], [0.0, 3.0]]), torch.tensor([0, 0])
    for output in (logits, {"logits": logits}, (logits, None)):
        assert scored(output, classes)[0] is logits
    assert scored(logits, torch.tensor([[0.9, 0.1], [0.2, 0.8]]))[1].tolist() == [0, 1]
    for output, target in ((logits, logits), (logits[:, :1], classes), (logits[0], classes), ({"a": 1}, classes)):
        assert scored(output, target) is None


def test_a_regression_has_losses_only():
    meter = ClassificationMeter()
    meter.add(torch.zeros(4, 1), torch.ones(4, 1), {"Loss": 1.0})
    assert math.isnan(meter.top1) and math.isnan(meter.top5) and meter.losses == {"Loss": 1.0}
    assert known(Top1=meter.top1, Loss=1.0) == {"Loss": 1.0}
