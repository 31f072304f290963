"""The example scripts as users start them: sub-applications, the demo's arguments, and mistakes without tracebacks."""

import importlib.util
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from distiller_ng.apputils import close_pylogger

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "examples" / "classifier_compression" / "compress_classifier.py"


def load_script(path, monkeypatch):
    monkeypatch.syspath_prepend(str(path.parent))
    monkeypatch.delitem(sys.modules, "parser", raising=False)
    spec = importlib.util.spec_from_file_location(f"example_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def main(monkeypatch, tmp_path):
    package = logging.getLogger("distiller_ng")
    level = package.level
    monkeypatch.chdir(tmp_path)
    yield load_script(SCRIPT, monkeypatch).main
    close_pylogger()
    package.setLevel(level)


def run_folder(tmp_path):
    (folder,) = (tmp_path / "logs").iterdir()
    return folder


def test_train_and_report(main, tmp_path, capsys):
    assert main(["--arch", "digits_cnn", "--epochs", "1", "--etrs", "0.1", "--etes", "0.1", "--save-untrained"]) == 0
    out = capsys.readouterr().out
    assert "==> Best [Top1: " in out
    assert "Total sparsity:" in out
    folder = run_folder(tmp_path)
    assert f"Run folder: logs/{folder.name}" in out
    assert (folder / "untrained_checkpoint.pth.tar").is_file()
    assert json.loads((folder / "summary.json").read_text())["top1_before"] is None


@pytest.mark.parametrize(
    ("what", "wanted", "file"),
    [
        ("sparsity", "Total sparsity: 0.00", "weights_sparsity.csv"),
        ("compute", "Total MACs: 1,798,144", "compute.csv"),
        ("modules", "BatchNorm2d", "modules.csv"),
        ("model", "DigitsCnn(", None),
    ],
)
def test_summaries(main, tmp_path, capsys, what, wanted, file):
    assert main(["--arch", "digits_cnn", "--summary", what]) == 0
    assert wanted in capsys.readouterr().out
    assert file is None or (run_folder(tmp_path) / file).is_file()
    assert not (run_folder(tmp_path) / "checkpoint.pth.tar").exists()


def test_evaluate(main, tmp_path, capsys):
    assert main(["--arch", "digits_cnn", "--evaluate", "--etes", "0.1"]) == 0
    assert capsys.readouterr().out.count("==> Top1: ") == 1
    assert json.loads((run_folder(tmp_path) / "summary.json").read_text())["seed"] == 0


BAD_SCHEDULE = """version: 1
pruners:
  fine: {class: AutomatedGradualPruner, initial_sparsity: 0.1, final_sparsity: 0.9, weights: [conv9.weight]}
policies:
  - pruner: {instance_name: fine}
    starting_epoch: 0
    ending_epoch: 3
    frequency: 1
"""


@pytest.mark.parametrize(
    ("arguments", "messages"),
    [
        (["--compress", "bad.yaml"], ["bad.yaml:3:", "conv9.weight", "conv1.weight"]),
        (["--compress", "nowhere.yaml"], ["nowhere.yaml"]),
        (["--arch", "digits_cn"], ["'digits_cn'", "digits_cnn"]),
        (["--arch", "resnet20_cifar"], ["cifar10", "cs.toronto.edu"]),
        (["--arch", "mobilenet_025", "nowhere"], ["nowhere", "data_dir/train"]),
        (["--resume-from", "nowhere.pth.tar"], ["nowhere.pth.tar"]),
        (["--resume-from", "bad.yaml"], ["bad.yaml", "damaged"]),
        (["--exp-load-weights-from", "nowhere.pth.tar"], ["nowhere.pth.tar"]),
        (["--out-dir", "bad.yaml"], ["bad.yaml"]),
        (["--gpus", "x"], ["--gpus"]),
    ],
)
def test_mistakes_exit_with_code_2_and_a_message(main, tmp_path, capsys, arguments, messages):
    (tmp_path / "bad.yaml").write_text(BAD_SCHEDULE)
    assert main(["--arch", "digits_cnn", "--epochs", "1", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "Traceback" not in error
    for message in messages:
        assert message in error


def test_a_checkpoint_of_another_architecture(main, tmp_path, capsys):
    assert main(["--arch", "digits_cnn", "--epochs", "1", "--etrs", "0.1", "--etes", "0.1"]) == 0
    path = run_folder(tmp_path) / "checkpoint.pth.tar"
    capsys.readouterr()
    assert main(["--arch", "simplenet_mnist", "--dataset", "digits", "--resume-from", str(path)]) == 2
    assert "is of a 'digits_cnn', but the model is a 'simplenet_mnist'" in capsys.readouterr().err


def test_interruption_says_how_to_go_on(monkeypatch, capsys):
    from distiller_ng.apputils.guard import run_guarded

    def interrupted():
        raise KeyboardInterrupt

    assert run_guarded(interrupted) == 130
    assert "--resume-from" in capsys.readouterr().err


def test_defects_keep_their_traceback():
    from distiller_ng.apputils.guard import run_guarded

    with pytest.raises(ZeroDivisionError):
        run_guarded(lambda: 1 / 0)


def test_the_process_itself_exits_with_code_2(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    arguments = [sys.executable, str(SCRIPT), "--arch", "digits_cnn", "--compress", "nowhere.yaml"]
    done = subprocess.run(arguments, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: nowhere.yaml")
    assert "Traceback" not in done.stderr
    assert "\x1b[" not in done.stdout  # no bars or colours into a pipe


def test_the_demo_names_files_and_flags_that_exist(monkeypatch, tmp_path):
    demo = load_script(ROOT / "examples" / "demo" / "run_demo.py", monkeypatch)
    first, second = demo.SCHEDULES.values()
    assert first == ROOT / "schedules" / "agp_digits_cnn.yaml" and first.is_file() and second.is_file()
    assert demo.plan().epochs == 24


@pytest.mark.slow
def test_the_demo_ends_with_a_smaller_network(monkeypatch, tmp_path, capsys):
    """A run of few epochs: nothing is removed in it, so both networks are the same in size."""
    demo = load_script(ROOT / "examples" / "demo" / "run_demo.py", monkeypatch)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["run_demo.py", "--epochs", "15", "--effective-train-size", "0.2"])
    demo.demo()
    out = capsys.readouterr().out
    rows = [line for line in out.splitlines() if "dense" in line or "thinned" in line]
    assert any("thinned" in row and "x)" in row for row in rows), out
    assert out.count("== ") == 6 and "Epoch: [" not in out and len(out.splitlines()) < 120
    page = (tmp_path / "logs" / Path(out.rpartition("page: ")[2].split()[0])).read_text()
    for wanted in (
        "Weight bits",
        ">Activations<",
        "Predicted and measured sizes",
        "Accuracy against latency",
        "demo_dense",
    ):
        assert wanted in page, wanted


def test_direct_api_example_prunes(monkeypatch, capsys):
    script = load_script(ROOT / "examples" / "direct_api" / "prune_with_scheduler.py", monkeypatch)
    monkeypatch.setattr(sys, "argv", ["x", "--epochs", "8", "--sparsity", "0.75"])
    script.main()
    out = capsys.readouterr().out
    assert "0.weight   32x1x3x3             75.00%    75.00%" in out
    last = next(line for line in out.splitlines() if line.startswith("epoch  7"))
    assert float(last.split("top1")[1].split()[0]) > 90
    assert "sparsity 75.00 %" in last
