"""``distiller-ng init``."""

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

torch.manual_seed(0)
images = torch.randn(32, 1, 8, 8)


def accuracy(model):
    with torch.no_grad():
        loss = model(images).square().mean().item()
    return 90 - loss, 99.0, loss


def loaders():
    labels = torch.arange(32) % 10
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images, labels), batch_size=16)
    return loader, loader


def number(model):
    return 0.9, 0.99


def fails(model):
    raise KeyError("labels")
"""


@pytest.fixture
def data(folder):
    (folder / "my_digits.py").write_text(DATA)
    yield folder
    sys.modules.pop("my_digits", None)


def test_a_schedule_that_lint_and_plan_take(data, own, capsys):
    words = ["init", *own, "--target", "macs=0.5", "--epochs", "8", "--evaluate", "my_digits.py:accuracy"]
    assert main([*words, "-o", "first.yaml"]) == 0
    out, err = capsys.readouterr()
    assert "wanted macs=0.50, this schedule is predicted to reach 0.5" in out and "wrote first.yaml" in out
    assert "measuring 1 layer at 3 levels" in err
    assert main(["lint", "first.yaml", *own, "--strict"]) == 0
    assert main(["plan", "first.yaml", *own, "--epochs", "8"]) == 0
    assert "thinner" in capsys.readouterr().out
    text = (data / "first.yaml").read_text()
    assert text.startswith("# First schedule for tiny_net.py:TinyNet: whole filters are removed.\n")


def test_loaders_of_ones_own(data, own, capsys):
    assert main(["init", *own, "--target", "size=0.4", "--loaders", "my_digits.py:loaders"]) == 0
    assert "the loss was measured" in " ".join(capsys.readouterr().out.replace("#", "").split())


def test_standard_output_is_the_schedule_alone(folder, own, capsys):
    assert main(["init", *own, "--target", "size=0.4"]) == 0
    out, err = capsys.readouterr()
    assert "wanted size=0.40" in err and "NO DATA WAS GIVEN" in " ".join(out.replace("#", "").split())
    (folder / "first.yaml").write_text(out)
    assert main(["lint", "first.yaml", *own, "--strict"]) == 0


def test_json(folder, own, capsys):
    assert main(["init", *own, "--target", "size=0.2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["technique"] == "weights+int8" and found["reached"] <= 0.2004
    assert found["choices"]["fc.weight"]["bits"] == 8 and found["choices"]["fc.weight"]["sparsity"] > 0
    assert found["schedule"].startswith("# First schedule")


TOKENS = """\
from torch import nn


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens = nn.Embedding(30, 16)
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.fc = nn.Linear(16, 4)

    def forward(self, tokens):
        return self.fc(self.layer(self.tokens(tokens)).mean(1))
"""


def test_models_of_tokens(folder, capsys):
    (folder / "my_words.py").write_text(TOKENS)
    own = ["--model", "my_words.py:Words", "--input-shape", "1,7"]
    assert main(["init", *own, "--target", "macs=0.6", "-o", "first.yaml"]) == 0
    assert main(["lint", "first.yaml", *own, "--strict"]) == 0
    sys.modules.pop("my_words")


def test_files_are_not_overwritten_without_force(folder, own, capsys):
    (folder / "first.yaml").write_text("mine")
    words = ["init", *own, "--target", "size=0.4", "-o", "first.yaml"]
    fails_with(capsys, words, "first.yaml is there already: name another file with -o, or add --force")
    assert (folder / "first.yaml").read_text() == "mine"
    assert main([*words, "--force"]) == 0
    assert (folder / "first.yaml").read_text() != "mine"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--target", "macs=2"], "macs=2: the share that remains lies above 0 and below 1"),
        (["--target", "mac=0.5"], "unknown target 'mac'. Did you mean 'macs'?"),
        (["--target", "macs=0.5", "--technique", "weight"], "unknown technique 'weight'. Did you mean 'weights'"),
        (["--target", "macs=0.5", "--technique", "weights"], "cannot meet macs=0.50"),
        (["--target", "macs=0.5", "--epochs", "1"], "give 2 epochs or more"),
        (["--target", "macs=0.5", "--levels", "0", "0.5"], "levels are shares above 0 and below 1"),
        (["--target", "size=0.001"], "size=0.001 is out of reach"),
        (["--target", "size=0.4", "--evaluate", "nowhere.py:accuracy"], "there is no file 'nowhere.py'"),
    ],
)
def test_wrong_input_is_one_line(folder, own, capsys, words, said):
    status = main(["init", *own, *words])
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if not line.startswith(("measuring ", "tried: "))]
    assert status == 1 and out == "" and len(lines) == 1 and said in lines[0], err


@pytest.mark.parametrize(
    ("function", "said"),
    [("number", "must return top-1 in percent, or (top1, top5, loss)"), ("fails", "KeyError: 'labels'")],
)
def test_evaluations_that_are_wrong(data, own, capsys, function, said):
    words = ["init", *own, "--target", "size=0.4", "--evaluate", f"my_digits.py:{function}"]
    fails_with(capsys, words, said)


def test_no_model_and_no_shape(folder, capsys):
    fails_with(capsys, ["init", "--target", "size=0.4"], "give a model")
    fails_with(
        capsys, ["init", "--model", "tiny_net.py:TinyNet", "--target", "size=0.4"], "give the shape of its input"
    )


def test_the_command_line_itself(folder, own, capsys):
    for words in (["init", *own], ["init", *own, "--target", "size=0.4", "--epochs", "0"]):
        with pytest.raises(SystemExit) as ended:
            main(words)
        assert ended.value.code == 2


def test_the_console_entry(data, own):
    command = [sys.executable, "-m", "distiller_ng.cli", "init", *own, "--target", "macs=0.5"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"}
    given: dict = {"capture_output": True, "text": True, "env": environment, "cwd": data, "check": False}
    more = ["--evaluate", "my_digits.py:accuracy", "-o", "first.yaml"]
    done = subprocess.run([*command, *more], **given)
    assert done.returncode == 0 and "predicted to reach" in done.stdout, done.stderr
    wrong = subprocess.run([*command, "--technique", "magic"], **given)
    assert wrong.returncode == 1 and wrong.stdout == "" and len(wrong.stderr.splitlines()) == 1
    assert "unknown technique 'magic'" in wrong.stderr
