"""The recipes example, on made-up images in the files of Fashion-MNIST."""

import importlib.util
import struct
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parents[2] / "examples" / "recipes"
FLAGS = ["--seeds", "3", "--images", "128", "--batch-size", "32"]


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
    spec = importlib.util.spec_from_file_location("example_recipes", FOLDER / "train.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    return module


def table_of(script, folder, monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments, "--data", str(folder), *FLAGS])
    script.main()
    lines = capsys.readouterr().out.split("\ntop-1 in percent")[1].splitlines()[1:]
    return {line[:42].strip(): float(line.split(" mean ")[1].split()[0]) for line in lines}


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["gradual", "obs", "acdc", "movement"])
def test_from_scratch_every_recipe_ends_at_95_percent(script, folder, monkeypatch, capsys, recipe):
    table = table_of(script, folder, monkeypatch, capsys, "scratch", f"{recipe}.yaml")
    assert list(table) == ["dense", "dense, % zeros", recipe, f"{recipe}, % zeros"]
    assert table[f"{recipe}, % zeros"] == pytest.approx(95, abs=0.2) and table["dense, % zeros"] == 0


@pytest.mark.slow
def test_transfer_holds_the_zeros(script, folder, monkeypatch, capsys):
    table = table_of(script, folder, monkeypatch, capsys, "transfer")
    held = [value for name, value in table.items() if name.endswith("% zeros")]
    assert len(held) == 2 and all(94 < value < 95.2 for value in held)


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.[ym][ad]*")), ids=lambda path: path.name)
def test_the_headers_have_results(path):
    text = path.read_text(encoding="utf-8")
    assert path.name == "README.md" or ("Fashion-MNIST" in text and "% of the weights" in text)
