"""The distillation example, on made-up images in the files of Fashion-MNIST."""

import importlib.util
import struct
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "examples" / "distillation" / "train.py"
FLAGS = ["--seeds", "3", "--epochs", "2", "--teacher-epochs", "1", "--images", "64", "--teacher-images", "128"]


@pytest.fixture
def folder(tmp_path):
    generator = torch.Generator().manual_seed(0)
    for split, count in (("train", 128), ("t10k", 20)):
        pixels = torch.randint(256, (count, 28, 28), generator=generator, dtype=torch.uint8)
        header = struct.pack(">IIII", 0x803, count, 28, 28)
        (tmp_path / f"{split}-images-idx3-ubyte").write_bytes(header + pixels.numpy().tobytes())
        labels = (torch.arange(count) % 10).to(torch.uint8).numpy().tobytes()
        (tmp_path / f"{split}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, count) + labels)
    return tmp_path


@pytest.fixture
def script(monkeypatch):
    spec = importlib.util.spec_from_file_location("example_distillation", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    return module


@pytest.mark.parametrize(("experiment", "runs"), [("student", 7), ("pruned", 3)])
def test_every_run_is_reported(script, folder, monkeypatch, capsys, experiment, runs):
    monkeypatch.setattr(sys, "argv", ["train.py", experiment, str(folder), *FLAGS])
    script.main()
    out = capsys.readouterr().out
    assert out.count("seed 3  ") == runs
    assert out.count("mean ") == runs


def test_runs_of_a_seed_begin_alike_and_the_pruned_network_is_pruned(script, folder, monkeypatch):
    first, second = script.new(4, 1), script.new(4, 1)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    trained = []
    real = script.train

    def spy(model, data, **arguments):
        trained.append(model)
        return real(model, data, **arguments)

    monkeypatch.setattr(script, "train", spy)
    monkeypatch.setattr(sys, "argv", ["train.py", "pruned", str(folder), *FLAGS])
    script.main()
    for model in trained[1:]:
        weights = torch.cat([p.flatten() for p in model.parameters() if p.dim() == 4])
        assert float((weights == 0).float().mean()) == pytest.approx(0.95, abs=0.005)
