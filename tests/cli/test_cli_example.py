"""Models that are called with several inputs, through the commands: ``--example``, or the first sample of loaders."""

from __future__ import annotations

import json
import sys

import pytest
from cli.conftest_cli import fails_with

from distiller_ng.cli.main import main

TEXT = """\
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Pooled(nn.Module):
    \"\"\"Tokens and a mask, both [N, 6], and a factor -> a dict.\"\"\"

    def __init__(self):
        super().__init__()
        self.table, self.wide, self.head = nn.Embedding(20, 8), nn.Linear(8, 16), nn.Linear(16, 3)

    def forward(self, ids, mask, scale=1.0):
        weight = mask.unsqueeze(-1).float()
        x = (self.table(ids) * weight).sum(1) / weight.sum(1)
        return {"logits": self.head(self.wide(x).relu() * scale)}


ids = torch.randint(0, 20, (32, 6), generator=torch.Generator().manual_seed(0))
mask = ids > 2
mask[:, 0] = True
labels = ids[:, 0] % 3


def positional():
    return ids[:1], mask[:1]


def mixed():
    from distiller_ng.graph.inputs import ExampleInputs

    return ExampleInputs((ids[:1],), {"mask": mask[:1]})


named = {"ids": ids[:1], "mask": mask[:1]}
words = "no tensors"


def too_few():
    return (ids[:1],)


def collate(rows):
    a, b, c = (torch.stack(part) for part in zip(*rows))
    return (a, b), c


def loaders():
    data = TensorDataset(ids, mask, labels)
    return DataLoader(data, 8, collate_fn=collate), DataLoader(data, 16, collate_fn=collate)


def accuracy(model):
    found = model(ids, mask)
    logits = found["logits"] if isinstance(found, dict) else found
    return 100 * (logits.argmax(1) == labels).float().mean().item()
"""
MODEL = ["--model", "textnet.py:Pooled"]


@pytest.fixture
def text(tmp_path, monkeypatch):
    """``textnet.py`` in the working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [str(tmp_path), *sys.path])
    monkeypatch.delitem(sys.modules, "textnet", raising=False)
    (tmp_path / "textnet.py").write_text(TEXT)
    yield tmp_path
    sys.modules.pop("textnet", None)


def results(capsys, arguments):
    assert main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("example", ["positional", "named", "mixed", "loaders"])
def test_every_way_to_give_several_inputs(text, capsys, example):
    found = results(capsys, ["summary", "compute", *MODEL, "--example", f"textnet.py:{example}"])
    assert {row["Name"]: row["MACs"] for row in found["compute"]} == {"wide": 128, "head": 48}


def test_commands_with_several_inputs(text, capsys):
    given = [*MODEL, "--example", "textnet.py:positional"]
    fast = ["--evaluate", "textnet.py:accuracy", "--epochs", "4"]
    assert main(["init", *given, *fast, "--target", "macs=0.6", "-o", "first.yaml"]) == 0
    assert "distiller-ng plan first.yaml --model textnet.py:Pooled --example textnet.py:positional" in (
        capsys.readouterr().out
    )
    assert results(capsys, ["lint", "first.yaml", *given])[0]["problems"] == []
    plan = results(capsys, ["plan", "first.yaml", *given])
    assert plan["sizes"][0]["macs"] == 176 and plan["sizes"][-1]["macs"] <= 0.61 * 176
    budget = ["--budget", "macs=0.5", "--population", "2", "--generations", "0", "--group", "filter"]
    found = results(capsys, ["search", *given, *fast, *budget])
    assert found["best"]["shares"]["macs"] <= 0.5
    assert results(capsys, ["thin", *given, "--macs", "0.6", "-o", "small.pth.tar"])["ratios"]["macs"] <= 0.6
    assert results(capsys, ["export", "--to", "onnx", *given, "-o", "net.onnx"])["agreement"]["max_abs"] < 1e-5
    speed = ["--batches", "2", "--seconds", "0.01", "--no-memory", "--evaluate", "textnet.py:accuracy"]
    rows = results(capsys, ["benchmark", "net.onnx", *given, *speed])["top1"]
    assert rows["net.onnx"] == rows["textnet.py:Pooled"]
    assert list(results(capsys, ["benchmark", "net.onnx", *given[2:], *speed])["top1"]) == ["net.onnx"]


def test_loaders_give_the_example(text, capsys):
    given = [*MODEL, "--loaders", "textnet.py:loaders"]
    arguments = ["init", *given, "--evaluate", "textnet.py:accuracy", "--target", "macs=0.6", "-o", "first.yaml"]
    assert main(arguments) == 0
    assert "--example textnet.py:loaders --epochs 20" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "for several inputs, --example mydata.py:example"),
        (["--input-shape", "1,6"], "For a model that takes several inputs: --example mydata.py:example"),
        (["--input-shape", "1,6", "--example", "textnet.py:named"], "leave one of them out"),
        (["--example", "textnet.py:too_few"], "does not run on input of shape [1, 6] int64: TypeError"),
        (["--example", "textnet.py:words"], "--example textnet.py:words gave a str: give a tensor, a tuple or a dict"),
        (["--example", "textnet.py:name"], "there is no 'name' in it. Did you mean 'named'"),
    ],
)
def test_wrong_examples(text, capsys, arguments, said):
    fails_with(capsys, ["export", "--to", "onnx", *MODEL, *arguments, "-o", "net.onnx"], said)


def test_statistics_and_a_quantized_copy(text, capsys):
    data = [*MODEL, "--loaders", "textnet.py:loaders"]
    assert main(["calibrate", *data, "-o", "stats.yaml"]) == 0
    capsys.readouterr()
    found = results(capsys, ["evaluate", *data, "--quantize-eval", "--qe-stats-file", "stats.yaml"])
    assert found["quantized"] and abs(found["top1"] - results(capsys, ["evaluate", *data])["top1"]) <= 7
