"""The whole way in separate processes: YAML, training, pruning, a kill, a fresh process that continues, the same end."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from distiller_ng.checkpoint import read_checkpoint
from distiller_ng.errors import CheckpointError

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "examples" / "classifier_compression" / "compress_classifier.py"
EPOCHS = 6
SCHEDULE = """\
version: 1
pruners:
  gradual:
    class: AutomatedGradualPruner
    initial_sparsity: 0.05
    final_sparsity: 0.8
    weights: [conv2.weight, conv3.weight, fc.weight]
lr_schedulers:
  plateau: {class: ReduceLROnPlateau, mode: min, patience: 0, factor: 0.5, cooldown: 0}
policies:
  - pruner: {instance_name: gradual}
    starting_epoch: 1
    ending_epoch: 5
    frequency: 1
  - lr_scheduler: {instance_name: plateau}
    starting_epoch: 0
    ending_epoch: 6
    frequency: 1
"""


def command(folder, *arguments):
    common = ["--arch", "digits_cnn", "--dataset", "digits", "--epochs", str(EPOCHS), "--batch-size", "128"]
    return [sys.executable, "-u", str(SCRIPT), *common, "--lr", "0.05", "--out-dir", str(folder), *arguments]


ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def run(folder, *arguments):
    done = subprocess.run(
        command(folder, *arguments), capture_output=True, text=True, env=ENVIRONMENT, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    (run_folder,) = folder.iterdir()
    return run_folder, done.stdout


def run_and_kill(folder, *arguments, after):
    """Start a run and kill it, without any chance to clean up, once it has saved ``after`` checkpoints."""
    process = subprocess.Popen(command(folder, *arguments), stdout=subprocess.PIPE, text=True, env=ENVIRONMENT)
    saved = 0
    for line in process.stdout:
        saved += line.startswith("Saved checkpoint to: ")
        if saved == after:
            break
    process.send_signal(signal.SIGKILL)
    process.stdout.close()
    assert process.wait(timeout=30) == -signal.SIGKILL
    (run_folder,) = folder.iterdir()
    return run_folder


@pytest.fixture(scope="module")
def schedule(tmp_path_factory):
    path = tmp_path_factory.mktemp("schedule") / "agp.yaml"
    path.write_text(SCHEDULE)
    return str(path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, schedule):
    """The uninterrupted run."""
    return run(tmp_path_factory.mktemp("whole"), "--compress", schedule, "--seed", "3")


@pytest.mark.slow
def test_the_uninterrupted_run(whole):
    folder, output = whole
    results = json.loads((folder / "summary.json").read_text())
    assert results["before"]["epoch"] == 0 and results["before"]["sparsity"] == 0
    assert results["top1_before"] > 70 and results["top1_after"] > 90
    assert {row["name"]: row["planned"] for row in results["parameters"]} == {
        "conv2.weight": 0.8,
        "conv3.weight": 0.8,
        "fc.weight": 0.8,
    }
    weights = read_checkpoint(folder / "checkpoint.pth.tar").state_dict
    for row in results["parameters"]:
        weight = weights[row["name"]]
        assert int((weight == 0).sum()) == int(0.8 * weight.numel())  # exactly as planned
        assert row["achieved"] == pytest.approx(0.8, abs=1e-3)
    assert f"==> Top1: {results['top1_after']:.3f}    Top5: " in output
    assert "Planned and achieved sparsity:" in output


@pytest.mark.slow
@pytest.mark.parametrize("after", [1, 3])
def test_killed_and_continued_in_a_fresh_process(tmp_path, whole, schedule, after):
    killed = run_and_kill(tmp_path / "killed", "--compress", schedule, "--seed", "3", after=after)
    path = killed / "checkpoint.pth.tar"
    assert after - 1 <= read_checkpoint(path).epoch < EPOCHS - 1
    continued, _ = run(tmp_path / "continued", "--resume-from", str(path))

    expected = torch.load(whole[0] / "checkpoint.pth.tar", weights_only=True)
    found = torch.load(continued / "checkpoint.pth.tar", weights_only=True)
    assert found["epoch"] == expected["epoch"] == EPOCHS - 1
    for name, weight in expected["state_dict"].items():
        assert torch.equal(found["state_dict"][name], weight), name
    for key, state in expected["optimizer_state_dict"]["state"].items():
        momentum = found["optimizer_state_dict"]["state"][key]["momentum_buffer"]
        assert torch.equal(momentum, state["momentum_buffer"]), key
    assert found["optimizer_state_dict"]["param_groups"] == expected["optimizer_state_dict"]["param_groups"]

    mine, theirs = (json.loads((folder / "summary.json").read_text()) for folder in (continued, whole[0]))
    for key in ("top1_before", "top1_after", "before", "after", "best", "parameters", "total_sparsity"):
        assert mine[key] == theirs[key], key


@pytest.mark.slow
def test_a_checkpoint_cut_short_is_refused(tmp_path, whole):
    broken = tmp_path / "broken.pth.tar"
    broken.write_bytes((whole[0] / "checkpoint.pth.tar").read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match="damaged"):
        read_checkpoint(broken)
    done = subprocess.run(
        command(tmp_path, "--resume-from", str(broken)), capture_output=True, text=True, env=ENVIRONMENT, check=False
    )
    assert done.returncode == 2
    assert "damaged" in done.stderr and "Traceback" not in done.stderr
