"""``distiller-ng quantize --evaluate``: the accuracy of the model and of the file it became."""

from __future__ import annotations

import json

import pytest
from conftest_cli import fails_with

from distiller_ng.cli.main import main

pytestmark = pytest.mark.slow

DATA = """\
import torch

batches = lambda: list(torch.rand(64, 1, 8, 8, generator=torch.Generator().manual_seed(1)).split(16))


def accuracy(model):
    scores = model(torch.cat(batches()))
    return 100.0 * (scores.shape == (64, 10)), 50.0, 0.5


def text(model):
    return "99 %"
"""


@pytest.fixture
def command(folder, own):
    (folder / "own_data.py").write_text(DATA)
    return ["quantize", *own, "--loader", "own_data.py:batches", "--effort", "fast", "-o", "int8.onnx"]


def test_model_and_file_are_measured(command, capsys):
    assert main([*command, "--evaluate", "own_data.py:accuracy"]) == 0
    assert capsys.readouterr().out.endswith("top-1 100.00 % -> 100.00 %, the file in its runtime\n")


def test_scores_in_json(command, capsys):
    assert main([*command, "--evaluate", "own_data.py:accuracy", "--json"]) == 0
    scores = {"top1": 100.0, "top5": 50.0, "loss": 0.5}
    assert json.loads(capsys.readouterr().out)["accuracy"] == {"model": scores, "file": scores}


def test_other_results_are_refused(command, capsys):
    fails_with(capsys, [*command, "--evaluate", "own_data.py:text"], "0.25); got '99 %'")
