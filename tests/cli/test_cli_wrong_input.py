"""Wrong input to every command, through the real entry point: one clear line, a status other than 0, no traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest_cli import fails_with

import distiller_ng
from distiller_ng.cli.base import COMMANDS
from distiller_ng.cli.main import main

ROOT = Path(__file__).parents[2]
PROGRAM = Path(sys.executable).with_name("distiller-ng")
OWN = ["--model", "tiny_net.py:TinyNet", "--input-shape", "1,1,8,8"]

#: command -> a command line whose input is wrong, and what the line must say.
WRONG = {
    "benchmark": (["nowhere.onnx", "--input-shape", "1,1,8,8"], "nowhere.onnx"),
    "calibrate": ([*OWN, "-o", "stats.yaml"], "say what data it takes"),
    "evaluate": ([*OWN, "--loaders", "tiny_net.py:size"], "--loaders tiny_net.py:size"),
    "export": ([*OWN, "--to", "onnx", "--checkpoint", "nowhere.pt", "-o", "a.onnx"], "nowhere.pt"),
    "init": ([*OWN, "--target", "macs=half"], "'half' is not a number"),
    "lint": (["nowhere.yaml"], "nowhere.yaml:1:1: file not found"),
    "plan": (["agp.yaml", "--model", "tiny_net.py:size"], "tiny_net.py:size is a int"),
    "quantize": ([*OWN, "-o", "a.onnx"], "say what data it takes"),
    "recipe": (["translate", "nowhere.md"], "nowhere.md:1:1: file not found"),
    "report": (["."], "no folder of a run"),
    "search": ([*OWN, "--budget", "macs=0.5"], "say what data it takes"),
    "sensitivity": ([*OWN, "--evaluate", "tiny_net.py:nothing"], "there is no 'nothing' in it"),
    "summary": (["everything", *OWN], "unknown summary 'everything'"),
    "thin": ([*OWN, "-o", "small.zip"], "small.zip"),
    "train": (["nowhere.yaml", *OWN], "nowhere.yaml"),
}


def test_every_command_has_its_line_here():
    assert sorted(WRONG) == COMMANDS.names()


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(WRONG))
def test_wrong_input_is_one_line(name, folder):
    words, said = WRONG[name]
    program = [str(PROGRAM)] if PROGRAM.exists() else [sys.executable, "-m", "distiller_ng.cli"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    before = sorted(folder.iterdir())
    done = subprocess.run(
        [*program, name, *words], capture_output=True, text=True, env=environment, cwd=folder, check=False, timeout=120
    )
    assert done.returncode == 1, done.stderr
    lines = (done.stderr if name != "lint" else done.stdout).splitlines()  # lint's problems are its result
    assert said in lines[0] and "Traceback" not in done.stderr, done.stderr
    assert len(lines) == 1 or name == "lint", done.stderr
    assert [path for path in sorted(folder.iterdir()) if path.name != "__pycache__"] == before


@pytest.mark.parametrize("name", sorted(WRONG))
def test_a_wrong_command_line_is_one_line(name, capsys):
    with pytest.raises(SystemExit) as caught:
        main([name, "--no-such-option"])
    err = capsys.readouterr().err
    assert caught.value.code == 2
    assert len(err.splitlines()) == 1 and err.startswith("distiller-ng"), err
    assert "--help" in err


def test_an_option_that_is_nearly_right_is_told(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--model", "a.py:B", "--epochz", "3"])
    assert "unrecognized arguments: --epochz; did you mean --epochs" in capsys.readouterr().err


def test_an_option_is_not_taken_for_a_longer_one(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--loader", "tiny_data.py:batches"])  # --loaders takes something else
    assert "unrecognized arguments: --loader" in capsys.readouterr().err


def test_the_version(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"distiller-ng {distiller_ng.__version__}, torch {torch.__version__}\n"


def test_what_nothing_foresaw_is_one_line_and_a_traceback_on_request(folder, capsys):
    (folder / "odd.py").write_text("def batches():\n    for number in range(3):\n        yield number / 0\n")
    words = ["quantize", *OWN, "--loader", "odd.py:batches", "-o", "int8.onnx"]
    fails_with(capsys, words, "ZeroDivisionError: division by zero (odd.py:3); distiller-ng --traceback quantize")
    with pytest.raises(ZeroDivisionError):
        main(["--traceback", *words])
    assert not (folder / "int8.onnx").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "class Odd(Exception):\n    pass\n\n\ndef make():\n    raise Odd('no width')\n",
            "Odd: no width (broken.py:6)",
        ),
        ("import sys\n\nsys.exit(0)\n", "it ends the program; put what it runs as a script below: if __name__"),
        ("import torch\n\ntorch.ones(2) @ torch.ones(3)\n", "(broken.py:3)"),
    ],
)
def test_code_of_the_users_that_fails_says_where(folder, capsys, text, said):
    (folder / "broken.py").write_text(text)
    fails_with(capsys, ["summary", "sparsity", "--model", "broken.py:make"], said)


@pytest.mark.parametrize(
    ("package", "words", "said"),
    [
        (
            "onnxruntime",
            ["quantize", *OWN, "--loader", "tiny_data.py:never", "-o", "int8.onnx"],
            "exporting to onnx needs onnxruntime",
        ),
        ("onnx", ["export", *OWN, "--to", "onnx", "-o", "a.onnx"], "pip install 'distiller_ng[onnx]'"),
        ("onnx", ["thin", *OWN, "-o", "a.onnx"], "exporting to onnx needs onnx "),
        (
            "matplotlib.figure",
            ["sensitivity", *OWN, "--evaluate", "tiny_data.py:never", "--png", "a.png"],
            "drawing sensitivities needs matplotlib",
        ),
        (
            "matplotlib.figure",
            ["search", *OWN, "--evaluate", "tiny_data.py:never", "--budget", "macs=0.5", "--picture", "a.png"],
            "pip install 'distiller_ng[plots]'",
        ),
    ],
)
def test_a_missing_package_is_told_before_any_work(folder, capsys, monkeypatch, package, words, said):
    (folder / "tiny_data.py").write_text("def never(model=None):\n    raise RuntimeError('this took minutes')\n")
    monkeypatch.setitem(sys.modules, package, None)  # importing it fails
    fails_with(capsys, words, said)


@pytest.mark.parametrize("name", ["train", "lint"])
def test_several_processes_that_would_all_do_the_same_are_refused(folder, capsys, monkeypatch, name):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    fails_with(
        capsys, [name, "agp.yaml", *OWN], f"{name} runs in one process, and torchrun started 2: start it without"
    )


def test_one_process_under_torchrun_works(folder, capsys, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert main(["lint", "agp.yaml"]) == 0
    assert "agp.yaml" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["init", "plan", "search", "train"])
def test_runs_longer_than_schedules_can_be_are_refused(capsys, command):
    with pytest.raises(SystemExit):
        main([command, "agp.yaml", "--epochs", "1000000000"])
    assert "--epochs: must be at most 1,000,000, got 1000000000" in capsys.readouterr().err


def test_without_a_command_the_help_is_shown(capsys):
    assert main([]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("usage: distiller-ng") and "  init " in err
