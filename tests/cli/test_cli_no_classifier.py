"""Models that are no classifiers, and outputs that are no tensors, through train, evaluate, thin and report."""

from __future__ import annotations

import json
import sys

import pytest
from cli.conftest_cli import fails_with

from distiller_ng.cli.main import main

CODE = """\
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

x = torch.randn(48, 4, generator=torch.Generator().manual_seed(0))
sums = x.sum(1, keepdim=True)
labels = (x[:, 0] > 0).long()


class Regressor(nn.Module):
    input_shape = (1, 4)

    def __init__(self):
        super().__init__()
        self.wide, self.end = nn.Linear(4, 8), nn.Linear(8, 1)

    def forward(self, x):
        return self.end(self.wide(x).relu())


class Dict(Regressor):
    def __init__(self):
        super().__init__()
        self.end = nn.Linear(8, 2)

    def forward(self, x):
        return {"hidden": x, "logits": super().forward(x)}


class Pair(Dict):
    def forward(self, x):
        found = super().forward(x)
        return found["logits"], found["hidden"]


def of(*tensors):
    data = TensorDataset(*tensors)
    return DataLoader(data, 16), DataLoader(data, 24)


def numbers():
    return of(x, sums)


def flat():
    return of(x, sums[:, 0])


def classes():
    return of(x, labels)


def keyed():
    rows = [{"x": x[i : i + 16], "labels": labels[i : i + 16]} for i in (0, 16, 32)]
    return rows, rows


def dict_loss(output, target):
    return nn.functional.cross_entropy(output["logits"], target)


def pair_loss(output, target):
    return nn.functional.cross_entropy(output[0], target)
"""
SCHEDULE = """\
pruners:
  fine: {class: MagnitudePruner, init_sparsity: 0.0, final_sparsity: {0.5: [wide.weight]}}
policies:
  - {pruner: {instance_name: fine}, starting_epoch: 1, ending_epoch: 2, frequency: 1}
"""
MSE = ["--loss", "torch.nn:MSELoss"]


@pytest.fixture
def own(tmp_path, monkeypatch):
    """``own.py`` and ``half.yaml`` in the working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [str(tmp_path), *sys.path])
    monkeypatch.delitem(sys.modules, "own", raising=False)
    (tmp_path / "own.py").write_text(CODE)
    (tmp_path / "half.yaml").write_text(SCHEDULE)
    yield tmp_path
    sys.modules.pop("own", None)


def given(model, loaders):
    return ["--model", f"own.py:{model}", "--loaders", f"own.py:{loaders}"]


def test_a_regression_is_told_by_its_loss(own, capsys):
    command = ["train", "half.yaml", *given("Regressor", "numbers"), *MSE, "--epochs", "3", "--lr", "0.05"]
    assert main([*command, "--seed", "0", "--name", "r"]) == 0
    out, log = capsys.readouterr()
    assert "Loss before pruning:" in out and "Loss after pruning:" in out
    assert "==> Best [Loss:" in log and "Top1" not in out + log and "nan" not in out + log
    folder = next((own / "logs").iterdir())
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["top1_after"] is None and summary["metrics_after"]["Loss"] == summary["after"]["loss"]
    assert summary["metrics_before"]["Loss"] > 0 and set(summary["best"]) == {"loss", "epoch"}
    assert "Top1" not in (folder / "metrics.jsonl").read_text()
    assert main(["report", str(folder), "-o", "report.html"]) == 0
    page = (own / "report.html").read_text()
    assert f"{summary['after']['loss']:.4g}" in page and "Top-1 accuracy" not in page
    capsys.readouterr()
    best = ["--checkpoint", str(folder / "r_best.pth.tar")]
    assert main(["evaluate", *given("Regressor", "numbers"), *MSE, *best]) == 0
    assert capsys.readouterr().out == f"loss   {summary['best']['loss']:8.4f}\n"
    assert main(["thin", *given("Regressor", "numbers"), *MSE, "--macs", "0.6", "-o", "small.pth.tar", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)["loss"]) == {"before", "after"}


@pytest.mark.parametrize(
    ("model", "loaders", "loss"),
    [
        ("Dict", "classes", ["--loss", "own.py:dict_loss"]),
        ("Dict", "classes", []),
        ("Pair", "classes", ["--loss", "own.py:pair_loss"]),
        ("Dict", "keyed", []),
    ],
)
def test_classifiers_that_return_more_than_logits(own, capsys, model, loaders, loss):
    assert main(["train", *given(model, loaders), *loss, "--epochs", "2", "--lr", "0.5", "--seed", "0", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["top1_after"] > 60


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            given("Regressor", "numbers"),
            "CrossEntropyLoss needs classes, and these labels are numbers, [24, 1] float32",
        ),
        (
            [*given("Regressor", "flat"), *MSE],
            "outputs are [24, 1] float32 and labels [24] float32: give both one shape",
        ),
        (given("Pair", "classes"), "a loss of your own (--loss file.py:loss) is given the whole tuple"),
    ],
)
def test_what_does_not_go_together(own, capsys, arguments, said):
    fails_with(capsys, ["train", *arguments, "--epochs", "1"], said)


def test_measuring_a_regression_by_loaders_says_what_to_give(own, capsys):
    command = ["sensitivity", *given("Regressor", "numbers"), "--sense-range", "0", "0.5", "0.3"]
    fails_with(capsys, command, "or --evaluate")
