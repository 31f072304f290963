"""``distiller-ng search`` and ``sensitivity`` through the real entry point, alone and under torchrun."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from distiller_ng.cli.main import main

ROOT = Path(__file__).parents[2]
DATA = """\
import torch

IMAGES = torch.randn(32, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def likeness(model):
    with torch.no_grad():
        out = model(IMAGES)
    return 100 * float(out.softmax(1).amax(1).mean()), 100.0, float(out.square().mean())


def accuracy(model):
    return likeness(model)[0]


def fails(model):
    raise RuntimeError("no data")


def says(model):
    return "good"


number = 3
"""
QUICK = ["--population", "3", "--generations", "1"]


@pytest.fixture
def data(folder):
    """``my_data.py`` beside the model."""
    (folder / "my_data.py").write_text(DATA)
    yield folder
    sys.modules.pop("my_data", None)


def run(words, folder, launcher=()):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *(launcher or ("-m", "distiller_ng.cli")), *words]
    return subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=folder, check=False, timeout=300
    )


def torchrun(words, folder):
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "distiller_ng.cli")
    return run(words, folder, launcher)


def test_a_search_through_the_entry_point(data, own):
    words = ["search", *own, "--evaluate", "my_data.py:likeness", "--budget", "macs=0.6", "--group", "filter", *QUICK]
    done = run([*words, "--bits", "4", "8", "-o", "found.yaml", "--picture", "p.svg", "--results-file", "r.json"], data)
    assert done.returncode == 0, done.stderr
    assert "within macs <= 0.6" in done.stdout and "uniform" in done.stdout and "Pareto front" in done.stdout
    assert "conv.weight" in done.stdout and "wrote found.yaml: a schedule for 20 epochs" in done.stdout
    assert "s left)" in done.stderr and (data / "p.svg").stat().st_size > 1000
    schedule = yaml.safe_load((data / "found.yaml").read_text())
    assert schedule["pruners"]["found_0"]["class"] == "GroupPruner"
    assert main(["lint", "found.yaml", *own]) == 0
    again = run([*words, "--bits", "4", "8", "--results-file", "r.json", "--json"], data)
    assert "s left)" not in again.stderr  # everything was known
    found = json.loads(again.stdout)
    assert found["best"]["shares"]["macs"] <= 0.6 and found["budget"] == {"macs": 0.6}


@pytest.mark.slow
def test_a_search_under_torchrun_is_that_of_one_process(data, own):
    words = ["search", *own, "--evaluate", "my_data.py:likeness", "--budget", "size=0.5", *QUICK, "--json"]
    alone = run(words, data)
    ranks = torchrun([*words, "--results-file", "r.json", "-o", "found.yaml"], data)
    assert alone.returncode == ranks.returncode == 0, ranks.stderr
    assert json.loads(ranks.stdout) == json.loads(alone.stdout)  # printed once
    assert [path.name for path in data.glob("r.json*")] == ["r.json"] and (data / "found.yaml").exists()
    assert len(json.loads((data / "r.json").read_text())["scores"]) == len(json.loads(alone.stdout)["history"]) + 1


@pytest.mark.slow
def test_sensitivity_under_torchrun_is_that_of_one_process(data, own):
    words = ["sensitivity", *own, "--evaluate", "my_data.py:likeness", "--sense-range", "0", "0.9", "0.3", "--json"]
    alone, ranks = run(words, data), torchrun([*words, "--csv", "s.csv", "--results-file", "r.json"], data)
    assert alone.returncode == ranks.returncode == 0, ranks.stderr
    assert json.loads(ranks.stdout) == json.loads(alone.stdout)
    assert len((data / "s.csv").read_text().splitlines()) == 1 + 2 * 3
    assert [path.name for path in data.glob("r.json*")] == ["r.json"]


@pytest.mark.slow
def test_a_failure_on_a_rank_ends_all(data, own):
    done = torchrun(["search", *own, "--evaluate", "my_data.py:fails", "--budget", "size=0.5", *QUICK], data)
    assert done.returncode != 0 and "my_data.py:fails() failed: RuntimeError: no data" in done.stderr
    assert "main.py" not in done.stderr  # none of our own traceback


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--budget", "macs"], "--budget macs: write macs=0.5"),
        (["--budget", "macs=half"], "'half' is not a number"),
        (["--budget", "flops=0.5"], "no budget is called 'flops'"),
        (["--budget", "macs=1.5"], "above 0 and at most 1"),
        (["--budget", "macs=0.01"], "no candidate is within macs=0.01"),
        (["--budget", "latency=0.5"], "needs group 'filter'"),
        (["--budget", "macs=0.5", "--bits", "1"], "or 32 for floating point"),
        (["--budget", "macs=0.5", "--max-sparsity", "2"], "max_sparsity is a number"),
        (["--budget", "macs=0.5", "--params", "convx.weight"], "'convx.weight' matches no parameter"),
        (["--budget", "macs=0.5", "-o", "agp.yaml"], "agp.yaml is there already"),
        (["--budget", "macs=0.5", "--picture", "a.gif"], "the name must end in .png, .svg or .pdf"),
        (["--budget", "macs=0.5", "--results-file", "tiny_net.py"], "tiny_net.py holds no search"),
        (
            ["--budget", "macs=0.5", "--evaluate", "my_data.py:fails"],
            "my_data.py:fails() failed: RuntimeError: no data",
        ),
        (["--budget", "macs=0.5", "--evaluate", "my_data.py:says"], "must return top-1 in percent"),
        (["--budget", "macs=0.5", "--evaluate", "my_data.py:number"], "is no function"),
        (["--budget", "macs=0.5", "--evaluate", "my_data.py:nothing"], "there is no 'nothing' in it"),
    ],
)
def test_wrong_input_is_one_line(data, own, capsys, words, text):
    evaluate = [] if "--evaluate" in words else ["--evaluate", "my_data.py:accuracy"]
    assert main(["search", *own, *evaluate, *QUICK, *words]) == 1
    written = capsys.readouterr()
    assert written.out == ""
    lines = [line for line in written.err.splitlines() if not line.startswith("search ")]
    assert len(lines) == 1 and text in lines[0]


def test_wrong_command_lines(data, own, capsys):
    for words in (["search", *own], ["search", *own, "--budget", "macs=0.5", "--population", "1"]):
        with pytest.raises(SystemExit) as refused:
            main(words)
        assert refused.value.code == 2
    assert "--budget" in capsys.readouterr().err


def test_ranks_that_are_not_there(data, own, capsys, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    assert main(["search", *own, "--evaluate", "my_data.py:accuracy", "--budget", "macs=0.5", *QUICK]) == 1
    assert "the ranks do not find each other" in capsys.readouterr().err
