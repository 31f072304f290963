"""``report``, ``benchmark --run`` and ``quantize --run``: from a recorded run to the page about it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest_cli import fails_with

from distiller_ng.cli.main import main

ROOT = Path(__file__).parents[2]
DATA = """\
import torch


def batches():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(16, 1, 8, 8, generator=generator) for _ in range(4)]


def accuracy(model):
    return 80.0 + float(model(torch.ones(2, 1, 8, 8)).shape[1])


def scores(model):
    return 70.0, 90.0, 1.0


def nothing(model):
    return "high"
"""
LOOP = """\
import torch
from torch import nn
import distiller_ng as distiller
from tiny_net import TinyNet

torch.manual_seed(0)
model = TinyNet()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
scheduler = distiller.file_config(model, optimizer, "agp.yaml")
loader = [(torch.randn(8, 1, 8, 8), torch.randint(10, (8,))) for _ in range(3)]
run = distiller.record_run("run", scheduler, schedule="agp.yaml")
for epoch in scheduler.epochs(6):
    for x, y in scheduler.minibatches(loader):
        optimizer.zero_grad()
        scheduler.backward(nn.functional.cross_entropy(model(x), y))
        optimizer.step()
    run.log(top1=60.0 + epoch)
torch.save(model.state_dict(), "net.pt")
"""


def program(*arguments: str, script: bool = False) -> subprocess.CompletedProcess:
    """The command as a program of its own: the installed one, else the package's entry."""
    installed = Path(sys.executable).with_name("distiller-ng")
    command = [str(installed)] if installed.exists() else [sys.executable, "-m", "distiller_ng.cli"]
    command = [sys.executable] if script else command
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run([*command, *arguments], capture_output=True, text=True, env=environment, timeout=180)


@pytest.fixture
def data(folder, monkeypatch):
    """``tiny_data.py`` beside the model, and the folder of a run."""
    monkeypatch.delitem(sys.modules, "tiny_data", raising=False)
    (folder / "tiny_data.py").write_text(DATA)
    (folder / "run").mkdir()
    (folder / "run" / "summary.json").write_text('{"top1_before": 80.0, "top1_after": 79.5, "layers": []}')
    yield "tiny_data.py"
    sys.modules.pop("tiny_data", None)


@pytest.mark.slow
def test_from_a_loop_to_the_report(folder):
    (folder / "tiny_data.py").write_text(DATA)
    (folder / "loop.py").write_text(LOOP)
    net = ("--model", "tiny_net.py:TinyNet", "--checkpoint", "net.pt", "--input-shape", "1,1,8,8")
    done = program("loop.py", script=True)
    assert done.returncode == 0, done.stderr
    for words in (
        ("export", "--to", "onnx", *net, "-o", "fp32.onnx"),
        ("quantize", *net, "--loader", "tiny_data.py:batches", "--effort", "fast", "-o", "int8.onnx", "--run", "run"),
        ("benchmark", "fp32.onnx", "int8.onnx", "--input-shape", "1,1,8,8", "--batches", "1", "--seconds", "0.05",
         "--no-memory", "--evaluate", "tiny_data.py:accuracy", "--run", "run"),
        ("report", "run"),
    ):  # fmt: skip
        done = program(*words)
        assert done.returncode == 0, done.stderr
    assert done.stdout == "report.html\n"
    page = (folder / "report.html").read_text()
    for wanted in ("65.00 %", "Top-1 as deployed", "90.00 %", "int8.onnx", "AutomatedGradualPruner", "conv.weight",
                   "python loop.py", "Sparsity, planned and achieved", "MACs", "Weight bits"):  # fmt: skip
        assert wanted in page, wanted


def test_a_page_about_one_or_several_runs(folder, data, capsys):
    assert main(["report", "run", "--title", "Mine"]) == 0
    assert capsys.readouterr().out == "report.html\n"
    assert "<h1>Mine</h1>" in (folder / "report.html").read_text()
    (folder / "two").mkdir()
    (folder / "two" / "metrics.jsonl").write_text("")
    assert main(["report", "run", "two", "-o", "pages/both.html"]) == 0
    assert "2 runs compared" in (folder / "pages" / "both.html").read_text()


def test_nonsense_is_refused_in_one_line(folder, data, capsys):
    fails_with(capsys, ["report", "nowhere"], "nowhere is no folder of a run")
    fails_with(capsys, ["report", "agp.yaml"], "agp.yaml is a file; a report is made of the folder of a run")
    fails_with(capsys, ["report", "."], ". is no folder of a run: it has no summary.json")
    fails_with(capsys, ["report", "run", "-o", "run"], "-o run: this is a folder; name a file in it")
    (folder / "run" / "metrics.jsonl").write_text("no json\n")
    fails_with(capsys, ["report", "run"], "metrics.jsonl:1 holds no event of a run")
    (folder / "run" / "summary.json").write_text('{"coverage": 0.9}')
    fails_with(capsys, ["report", "run"], "is not the summary of a run of ours")
    with pytest.raises(SystemExit) as caught:
        main(["report"])
    assert caught.value.code == 2


@pytest.fixture
def files(folder, own, capsys):
    """Two ONNX files of the model."""
    for name in ("a.onnx", "b.onnx"):
        assert main(["export", "--to", "onnx", *own, "-o", name]) == 0
    capsys.readouterr()
    return ["--input-shape", "1,1,8,8", "--batches", "1", "--seconds", "0.02", "--no-memory", "--run", "run"]


def test_benchmarks_are_kept_and_merged(folder, data, files, capsys):
    assert main(["benchmark", "a.onnx", *files, "--evaluate", f"{data}:accuracy"]) == 0
    assert "top-1  90.00 %  a.onnx" in capsys.readouterr().out
    assert main(["benchmark", "b.onnx", *files, "--evaluate", f"{data}:scores", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["top1"] == {"b.onnx": 70.0}
    kept = json.loads((folder / "run" / "benchmark.json").read_text())
    assert [row["name"] for row in kept["rows"]] == ["a.onnx", "b.onnx"]
    assert kept["top1"] == {"a.onnx": 90.0, "b.onnx": 70.0}
    first, second = kept["rows"]
    assert second["speedup"]["1"] == pytest.approx(first["latency"]["1"] / second["latency"]["1"])
    assert main(["benchmark", "b.onnx", *files, "--batches", "2"]) == 0  # other sizes cannot be compared
    kept = json.loads((folder / "run" / "benchmark.json").read_text())
    assert [row["name"] for row in kept["rows"]] == ["b.onnx"]


def test_wrong_benchmarks_of_runs(folder, data, files, own, capsys):
    arguments = ["benchmark", "a.onnx", *files]
    fails_with(capsys, [*arguments, "--run", "nowhere"], "--run nowhere: there is no such folder")
    fails_with(capsys, [*arguments, "--evaluate", f"{data}:nothing"], "must return top-1 in percent")
    fails_with(capsys, [*arguments, "--evaluate", f"{data}:batches"], "takes 0 positional arguments")
    fails_with(capsys, [*arguments, "--evaluate", f"{data}:nowhere"], "there is no 'nowhere' in it")
    fails_with(capsys, [*arguments, "--top1"], "say what data it takes: --dataset NAME")
    (folder / "run" / "benchmark.json").write_text("[]")
    assert main(arguments) == 1
    assert "benchmark.json is no result of a benchmark" in capsys.readouterr().err


def test_top1_on_a_data_set(folder, data, capsys):
    arch = ["--arch", "digits_cnn", "--seconds", "0.02", "--batches", "1", "--no-memory"]
    assert main(["benchmark", *arch, "--top1", "--data-fraction", "0.2", "--run", "run"]) == 0
    assert "top-1" in capsys.readouterr().out
    assert 0 <= json.loads((folder / "run" / "benchmark.json").read_text())["top1"]["digits_cnn for digits"] <= 100


def test_a_quantized_file_in_the_report(folder, own, data, capsys):
    arguments = ["quantize", *own, "--loader", f"{data}:batches", "--effort", "fast", "-o", "int8.onnx"]
    assert main([*arguments, "--run", "run"]) == 0
    layers = json.loads((folder / "run" / "quantization.json").read_text())["export"]["layers"]
    assert {row["Name"]: row["Weight bits"] for row in layers} == {"conv": 8, "fc": 8}
    assert main(["report", "run"]) == 0
    assert "Weight bits" in (folder / "report.html").read_text()
    capsys.readouterr()
    fails_with(capsys, [*arguments, "--run", "nowhere"], "--run nowhere: there is no such folder")
