"""``train``, ``evaluate``, ``calibrate`` and ``thin`` with a model and data that nothing else knows."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest_cli import fails_with

from distiller_ng.apputils import close_pylogger
from distiller_ng.checkpoint import load_model
from distiller_ng.cli.main import main

ROOT = Path(__file__).parents[2]

NET = """\
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, classes=3):
        super().__init__()
        self.first = nn.Conv2d(1, 6, 3, padding=1)
        self.second = nn.Conv2d(6, 6, 3, padding=1)
        self.head = nn.Linear(6, classes)

    def forward(self, x):
        return self.head(self.second(self.first(x).relu()).relu().mean((2, 3)))


class Wider(Net):
    def __init__(self):
        super().__init__(5)


def pruned():
    net = Net()
    with torch.no_grad():
        net.second.weight[:2] = 0
        net.second.bias[:2] = 0
    return net


def number():
    return 7


def smooth(output, target):
    return nn.functional.cross_entropy(output, target, label_smoothing=0.1)


def two_numbers(output, target):
    return nn.functional.cross_entropy(output, target, reduction="none")


class Mine(torch.optim.SGD):
    pass


def make(model):
    return Mine(model.parameters(), lr=0.05, momentum=0.5)


def returns_none(model):
    return None


def fails(model):
    raise RuntimeError("no optimizer today")
"""

DATA = """\
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset


def data(count=48, classes=3, channels=1):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % classes
    images = torch.randn(count, channels, 6, 6, generator=generator) + labels.float().view(-1, 1, 1, 1)
    return TensorDataset(images, labels)


def loaders():
    return DataLoader(data(), 8, shuffle=True), DataLoader(data(), 16), DataLoader(data(), 16)


def two():
    return [*loaders()[:2]]


def batches():
    return list(DataLoader(data(), 8)), list(DataLoader(data(), 8))


def one():
    return DataLoader(data(), 8)


def once():
    return iter([]), DataLoader(data(), 8)


def empty():
    return [], DataLoader(data(), 8)


def endless():
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            yield torch.zeros(1, 6, 6), 0

    return DataLoader(Stream(), 8), DataLoader(data(), 8)


def images_only():
    return [torch.zeros(3, 1, 6, 6)], [torch.zeros(3, 1, 6, 6)]


def colour():
    return DataLoader(data(channels=3), 8), DataLoader(data(channels=3), 8)


def many_classes():
    return DataLoader(data(), 8), DataLoader(data(classes=9), 8)


def many_in_training():
    return DataLoader(data(classes=9), 8), DataLoader(data(), 8)


def nan():
    broken = TensorDataset(torch.full((8, 1, 6, 6), float("nan")), torch.zeros(8).long())
    return DataLoader(broken, 4), DataLoader(data(), 8)


class Broken(Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, index):
        raise KeyError("no such image")


def broken():
    return DataLoader(Broken(), 4), DataLoader(data(), 8)


def fails():
    raise FileNotFoundError("the disk is empty")
"""

SCHEDULE = """\
pruners:
  p: {class: AutomatedGradualPruner, initial_sparsity: 0.05, final_sparsity: 0.5, weights: [second.weight]}
policies:
  - {pruner: {instance_name: p}, starting_epoch: 0, ending_epoch: 2, frequency: 1}
"""
OWN = ["--model", "novel_net.py:Net", "--loaders", "novel_data.py:loaders"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A working folder with the model, the data and a schedule."""
    package = logging.getLogger("distiller_ng")
    level = package.level
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [str(tmp_path), *sys.path])
    for name, text in (("novel_net.py", NET), ("novel_data.py", DATA), ("s.yaml", SCHEDULE)):
        (tmp_path / name).write_text(text)
    yield tmp_path
    close_pylogger()
    package.setLevel(level)
    for name in ("novel_net", "novel_data"):
        sys.modules.pop(name, None)


def result_of(capsys, *arguments):
    status = main([*arguments, "--json"])
    out, err = capsys.readouterr()
    assert status == 0, err
    return json.loads(out)


def trained(capsys, *arguments):
    return result_of(capsys, "train", *OWN, "--lr", "0.05", "--seed", "1", *arguments)


# -- train ---------------------------------------------------------------------------------------------------------------


def test_a_run_folder_for_the_report(folder, capsys):
    assert main(["train", "s.yaml", *OWN, "--lr", "0.05", "--name", "mine", "--seed", "1"]) == 0
    out, err = capsys.readouterr()
    (run,) = (folder / "logs").iterdir()
    assert f"Run folder: logs/{run.name}" in out and "Planned and achieved sparsity" in out
    assert "==> Best [Top1: " in err and "==> Best" not in out
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["arch"], summary["dataset"], summary["epochs"]) == ("Net", "novel_data.py:loaders", 2)
    assert summary["batch_size"] == 8 and summary["parameters"][0]["achieved"] == 0.5
    assert (run / "schedule.yaml").read_text() == SCHEDULE
    assert main(["report", str(run), "-o", "page.html"]) == 0
    assert "<html" in (folder / "page.html").read_text()


def test_interrupted_runs_go_on_exactly(capsys):
    whole = trained(capsys, "s.yaml", "--epochs", "3")
    part = trained(capsys, "s.yaml", "--epochs", "1")
    checkpoint = next(path for path in part["checkpoints"] if path.endswith("/checkpoint.pth.tar"))
    rest = trained(capsys, "--epochs", "3", "--resume-from", checkpoint)
    assert rest["after"] == whole["after"]


def test_seeds_choose_the_first_weights(capsys):
    again, other = (trained(capsys, "--epochs", "1"), result_of(capsys, "train", *OWN, "--epochs", "1", "--seed", "2"))
    assert trained(capsys, "--epochs", "1")["after"] == again["after"] != other["after"]


def test_own_loss_optimizer_and_teacher(capsys):
    own = ["--loss", "novel_net.py:smooth", "--optimizer", "novel_net.py:make", "--teacher", "big=novel_net.py:Net"]
    first = trained(capsys, "--epochs", "1", *own)
    assert (first["optimizer"], first["lr"]) == ("Mine", 0.05)
    metrics = Path(first["folder"], "metrics.jsonl").read_text()
    assert "KnowledgeDistillation" in metrics or "Distill" in metrics
    whole = trained(capsys, "--epochs", "2", *own)
    path = first["checkpoints"][-1]
    assert trained(capsys, "--epochs", "2", *own, "--resume-from", path)["after"] == whole["after"]


@pytest.mark.parametrize("function", ["two", "batches"])
def test_other_loaders(capsys, function):
    found = result_of(capsys, "train", *OWN[:3], f"novel_data.py:{function}", "--epochs", "1", "--lr", "0.05")
    assert found["after"]["top1"] > 30


def test_the_zoo(capsys):
    zoo = ["--arch", "digits_cnn", "-b", "64"]
    found = result_of(capsys, "train", *zoo, "--epochs", "1", "--print-freq", "100")
    assert (found["arch"], found["dataset"]) == ("digits_cnn", "digits")
    checkpoint = found["checkpoints"][0]
    scores = result_of(capsys, "evaluate", *zoo, "--checkpoint", checkpoint)
    assert scores["top1"] == found["after"]["top1"]
    some = ["evaluate", *zoo, "--checkpoint", checkpoint, "--data-fraction", "0.2"]
    assert result_of(capsys, *some)["loss"] == result_of(capsys, *some)["loss"] != scores["loss"]


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("one", "must be (train, validation, test) or (train, test), got a DataLoader"),
        ("once", "the train loader can be read only once"),
        ("empty", "the train loader is empty"),
        ("endless", "the train loader has no length"),
        ("images_only", "a batch of the test loader is (inputs, labels), got a Tensor"),
        ("colour", "the model does not run on a batch of the test loader ([8, 3, 6, 6] float32)"),
        ("many_classes", "a label is 3, but the model has 3 classes, 0 to 2"),
        ("fails", "fails() failed: FileNotFoundError: the disk is empty"),
        ("nothing", "there is no 'nothing' in it"),
    ],
)
@pytest.mark.parametrize("command", [["train", "s.yaml"], ["evaluate"]])
def test_wrong_loaders(folder, capsys, command, function, said):
    fails_with(capsys, [*command, *OWN[:2], "--loaders", f"novel_data.py:{function}"], said)
    assert not (folder / "logs").exists()


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("nan", "the loss became nan in epoch 0, minibatch 0"),
        ("many_in_training", "epoch 0, minibatch 0: a label is 3, but the model has 3 classes"),
        ("broken", "the training loader failed: KeyError: 'no such image'"),
    ],
)
def test_what_is_found_while_training(capsys, function, said):
    assert main(["train", *OWN[:2], "--loaders", f"novel_data.py:{function}", "--epochs", "1"]) == 1
    out, err = capsys.readouterr()
    assert out == "" and said in err.splitlines()[-1] and "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give --epochs"),
        (["nowhere.yaml"], "there is no file 'nowhere.yaml'"),
        (["novel_net.py"], "novel_net.py"),
        (["--epochs", "1", "--model", "novel_net.py:number"], "returned a int, not a torch.nn.Module"),
        (["--epochs", "1", "--model", "nothing.py:Net"], "there is no file 'nothing.py'"),
        (["--epochs", "1", "--checkpoint", "no.pth.tar"], "--checkpoint: there is no file"),
        (["--epochs", "1", "--resume-from", "no.pth.tar"], "no.pth.tar"),
        (["--epochs", "1", "--resume-from", "novel_net.py"], "damaged, or not a checkpoint at all"),
        (["wrong.yaml", "--epochs", "1"], "wrong.yaml:1:22: pruners.p.class: unknown pruner class 'Nope'"),
        (["--epochs", "1", "--checkpoint", "a", "--resume-from", "b"], "leave one of them out"),
        (["--epochs", "1", "--reset-optimizer"], "goes with --resume-from"),
        (["--epochs", "1", "--loss", "novel_net.py:nope"], "there is no 'nope' in it"),
        (["--epochs", "1", "--loss", "novel_net.py:two_numbers"], "the loss must be one number"),
        (["--epochs", "1", "--optimizer", "novel_net.py:returns_none"], "returned a NoneType, not a torch optimizer"),
        (["--epochs", "1", "--optimizer", "novel_net.py:fails"], "RuntimeError: no optimizer today"),
        (["--epochs", "1", "--teacher", "a=novel_net.py:Net", "--teacher", "b=novel_net.py:Net"], "several teachers"),
        (["--epochs", "1", "--teacher-checkpoint", "b=x"], "there is no --teacher b=..."),
        (["--epochs", "1", "--earlyexit_lossweights", "0.3"], "this model has no exits"),
    ],
)
def test_wrong_trainings(folder, capsys, arguments, said):
    own = OWN if "--model" not in arguments else OWN[2:]
    (folder / "wrong.yaml").write_text(
        "pruners: {p: {class: Nope}}\npolicies: [{pruner: {instance_name: p}, epochs: [0]}]\n"
    )
    assert main(["train", *own, *arguments]) == 1
    out, err = capsys.readouterr()
    assert out == "" and said in err.splitlines()[-1] and "Traceback" not in err, err
    assert len(err.splitlines()) == 1 or said in ("several teachers", "this model has no exits")  # after the log began


def test_data_must_be_named(capsys):
    fails_with(capsys, ["train", *OWN[:2], "--epochs", "1"], "say what data it takes: --loaders")
    fails_with(capsys, ["train", *OWN[:2], "--epochs", "1", "--dataset", "digits-of-pi"], "digits-of-pi")


# -- evaluate, calibrate, thin -------------------------------------------------------------------------------------------


def test_checkpoints_of_other_models(folder, capsys):
    path = trained(capsys, "--epochs", "1")["checkpoints"][0]
    for command in (["evaluate"], ["train", "--epochs", "1"], ["calibrate", "-o", "s.yaml"]):
        other = [*command, "--model", "novel_net.py:Wider", *OWN[2:], "--checkpoint", path]
        fails_with(capsys, other, "head.weight is [3, 6], the model's [5, 6]")
    (folder / "torn.pth.tar").write_bytes(Path(path).read_bytes()[:100])
    fails_with(capsys, ["evaluate", *OWN, "--checkpoint", "torn.pth.tar"], "torn.pth.tar")


def test_evaluate_in_words(capsys):
    assert main(["evaluate", *OWN]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["top-1", "top-5", "loss"]


def test_calibrated_then_quantized(folder, capsys):
    found = result_of(capsys, "calibrate", *OWN, "-o", "stats.yaml", "--samples", "20")
    assert found["samples"] == 20 and "first" in found["outputs"]
    plain = result_of(capsys, "evaluate", *OWN)
    quantized = ["evaluate", *OWN, "--quantize-eval", "--qe-stats-file", "stats.yaml"]
    scores = result_of(capsys, *quantized, "--out-dir", "q")
    assert scores["quantized"] and scores["top1"] == pytest.approx(plain["top1"], abs=10)
    assert list((folder / "q").rglob("quantized_checkpoint.pth.tar"))
    assert result_of(capsys, "evaluate", *OWN, "--quantize-eval", "--qe-calibration", "0.5")["loss"] > 0
    assert main(["calibrate", *OWN, "-o", "p.yaml", "--observer", "percentile"]) == 0
    assert "first" in capsys.readouterr().out
    fails_with(capsys, [*quantized[:-1], "none.yaml"], "there is no file 'none.yaml'")
    fails_with(capsys, ["calibrate", *OWN, "-o", "novel_net.py/p.yaml"], "novel_net.py")


def test_thin_takes_what_is_zero(folder, capsys):
    zeros = ["--model", "novel_net.py:pruned", "--input-shape", "1,1,6,6"]
    found = result_of(capsys, "thin", *zeros, "-o", "small.pth.tar")
    assert found["before"]["parameters"] - found["after"]["parameters"] == 2 * (6 * 9 + 1) + 2 * 3
    sys.modules.pop("novel_net", None)
    from novel_net import Net, pruned

    torch.manual_seed(0)
    dense = pruned().eval()
    small = load_model(Net, "small.pth.tar")
    assert small.second.out_channels == 4
    assert main(["thin", *zeros, "-o", "small.onnx"]) == 0 and (folder / "small.onnx").stat().st_size > 100
    assert dense.second.out_channels == 6


def test_thin_to_a_budget_then_train(capsys):
    found = result_of(capsys, "thin", *OWN, "-o", "half.pth.tar", "--macs", "0.5")
    assert found["ratios"]["macs"] <= 0.5 and set(found["top1"]) == {"before", "after"}
    run = trained(capsys, "--epochs", "1", "--checkpoint", "half.pth.tar")
    small = result_of(capsys, "evaluate", *OWN, "--checkpoint", run["checkpoints"][0])
    assert small["top1"] == run["after"]["top1"]
    found = result_of(capsys, "thin", *OWN, "-o", "few.pth.tar", "--parameters", "0.6")
    assert found["ratios"]["parameters"] <= 0.6


def test_wrong_thinnings(capsys):
    fails_with(
        capsys, ["thin", *OWN, "-o", "half.pt", "--macs", "0.5"], "write a checkpoint, NAME.pth.tar, or NAME.onnx"
    )
    fails_with(capsys, ["thin", *OWN, "-o", "novel_net.py/half.onnx"], "'novel_net.py' is a file, not a folder")
    fails_with(capsys, ["thin", *OWN[:2], "-o", "half.onnx"], "give the shape of its input")
    fails_with(capsys, ["thin", *OWN, "-o", "half.onnx", "--macs", "0.0001"], "macs")


# -- early exit ----------------------------------------------------------------------------------------------------------


def test_early_exits(capsys):
    zoo = ["--arch", "resnet20_cifar_earlyexit", "--dataset", "digits", "--data-fraction", "0.1"]
    training = ["train", *zoo, "--epochs", "1", "-b", "32", "--lr", "0.05", "--print-freq", "100"]
    exits = ["--earlyexit_thresholds", "9"]
    assert main([*training, "--earlyexit_lossweights", "0.4", *exits]) == 0
    err = capsys.readouterr().err
    assert "Accuracy Stats for exit 0: top1 = " in err and "Totals for entire network with early exits: top1 = " in err
    found = result_of(capsys, "evaluate", *zoo, *exits)["early_exit"]
    assert [row["share"] for row in found["rows"]] == [1.0, 0.0]
    assert found["macs"] == found["rows"][0]["macs"] and 0.5 < found["saved"] < 0.7
    assert found["top1"] == found["rows"][0]["top1_alone"]
    sure = ["--earlyexit_thresholds", "1.0", "--earlyexit_measure", "confidence"]
    assert [row["share"] for row in result_of(capsys, "evaluate", *zoo, *sure)["early_exit"]["rows"]] == [0.0, 1.0]
    fails_with(capsys, ["evaluate", *zoo, "--earlyexit_thresholds", "1", "2"], "1 exits before the end need as many")
    fails_with(capsys, ["evaluate", *OWN, *exits], "this model has no exits")
    assert main(training) == 1
    assert "--earlyexit_lossweights 0.3" in capsys.readouterr().err.splitlines()[-1]


# -- the console entry ---------------------------------------------------------------------------------------------------


def started(folder, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "distiller_ng.cli", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=folder, env=environment, **pipes)


@pytest.mark.slow
def test_from_a_shell(folder):
    out, err = started(folder, "train", "s.yaml", *OWN, "--json").communicate(timeout=120)
    assert "Traceback" not in err
    checkpoint = json.loads(out)["checkpoints"][0]
    for words in (["evaluate"], ["calibrate", "-o", "c.yaml"], ["thin", "-o", "t.pth.tar"]):
        process = started(folder, *words, *OWN, "--checkpoint", checkpoint)
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0 and out and "Traceback" not in err, err
    process = started(folder, "evaluate", *OWN, "--checkpoint", "none.pth.tar")
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out, len(err.splitlines())) == (1, "", 1)


@pytest.mark.slow
def test_ctrl_c_says_how_to_go_on(folder):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a CI in the background may ignore Ctrl-C
    process = started(folder, "train", *OWN, "--epochs", "100000", "--lr", "0.01")
    signal.signal(signal.SIGINT, before)
    try:
        deadline = time.monotonic() + 90
        while not list(folder.glob("logs/*/checkpoint.pth.tar")) and time.monotonic() < deadline:
            time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130 and "Traceback" not in err
    assert "interrupted: the same command with --resume-from logs/" in err.splitlines()[-1]
