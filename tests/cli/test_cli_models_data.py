"""``sensitivity``, ``summary``, ``export``, ``benchmark`` and ``quantize`` through the entry point."""

from __future__ import annotations

import csv
import json

import pytest
from conftest_cli import fails_with

from distiller_ng.cli.main import main

DATA = """\
import torch


def batches():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(16, 1, 8, 8, generator=generator) for _ in range(4)]


def scores(model):
    total = sum(float(p.detach().abs().sum()) for p in model.parameters())
    return min(total, 100.0), 100.0, 1.0


def wrong(model):
    return 3, 4


def fails(model):
    raise RuntimeError("no data")


def nothing():
    return 5


value = 1
"""


@pytest.fixture
def data(folder, monkeypatch):
    """``tiny_data.py`` beside the model."""
    monkeypatch.delitem(__import__("sys").modules, "tiny_data", raising=False)
    (folder / "tiny_data.py").write_text(DATA)
    yield "tiny_data.py"
    __import__("sys").modules.pop("tiny_data", None)


def test_summaries(folder, own, capsys):
    assert main(["summary", *own]) == 0
    assert "conv  Conv2d" in capsys.readouterr().out
    assert main(["summary", "sparsity", "model", "compute", "--json", "-o", "out", *own]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["MACs"] for row in found["compute"]] == [1296, 1440] and found["model"].startswith("TinyNet(")
    assert (folder / "out" / "compute.csv").exists()
    assert main(["summary", "modules", "--model", "tiny_net.py:TinyNet"]) == 0


def test_wrong_summaries(folder, own, capsys):
    fails_with(capsys, ["summary", "comput", *own], "unknown summary 'comput'. Did you mean 'compute'?")
    fails_with(capsys, ["summary"], "give a model")
    fails_with(capsys, ["summary", "compute", "--model", "tiny_net.py:TinyNet"], "give the shape of its input")


def test_sensitivity_of_ones_own(folder, own, data, capsys):
    arguments = ["sensitivity", *own, "--evaluate", f"{data}:scores", "--sense-range", "0", "1", "0.5"]
    files = ["--csv", "s.csv", "--png", "s.png", "--results-file", "s.json"]
    assert main([*arguments, *files]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("Top-1 (%)") and "conv.weight" in out and err.count(" s left)") == 4
    rows = list(csv.DictReader((folder / "s.csv").open()))
    assert [(row["parameter"], row["sparsity"]) for row in rows[:2]] == [("conv.weight", "0.0"), ("conv.weight", "0.5")]
    assert (folder / "s.png").read_bytes().startswith(b"\x89PNG")
    assert main([*arguments, *files, "--json"]) == 0  # nothing is measured again
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert err == "" and set(found) == {"conv.weight", "fc.weight"}
    assert found["fc.weight"][1][1] < found["fc.weight"][0][1]


def test_sensitivity_to_bits_on_a_data_set(folder, capsys):
    arguments = ["sensitivity", "--arch", "digits_cnn", "--params", "re:.*fc.*weight", "--group", "bits"]
    assert main([*arguments, "--bits", "8", "2", "--data-fraction", "0.2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found and all([row[0] for row in rows] == [8, 2] for rows in found.values())


@pytest.mark.slow
def test_sensitivity_in_processes(folder, own, data, capsys):
    arguments = ["sensitivity", *own, "--evaluate", f"{data}:scores", "--sense-range", "0", "1", "0.5", "--json"]
    assert main(arguments) == 0
    alone = json.loads(capsys.readouterr().out)
    assert main([*arguments, "--processes", "2"]) == 0
    assert json.loads(capsys.readouterr().out) == alone


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "say what data it takes: --dataset NAME, or --evaluate"),
        (["--evaluate", "tiny_data.py:nope"], "there is no 'nope' in it"),
        (["--evaluate", "tiny_data.py:value"], "--evaluate tiny_data.py:value is no function"),
        (
            ["--evaluate", "tiny_data.py:wrong"],
            "must return top-1 in percent, or (top1, top5, loss), like 93.1 or (93.1, 99.8, 0.25); got (3, 4)",
        ),
        (["--evaluate", "tiny_data.py:fails"], "--evaluate tiny_data.py:fails() failed: RuntimeError: no data"),
        (["--evaluate", "tiny_data.py:scores", "--sense-range", "1", "0", "1"], "--sense-range 1 0 1: give"),
        (["--evaluate", "tiny_data.py:scores", "--group", "bits", "--bits", "1"], "1"),
        (["--evaluate", "tiny_data.py:scores", "--params", "convv.weight"], "Did you mean 'conv.weight'"),
        (["--dataset", "cifar10", "--data", "nowhere"], "nowhere"),
        (["--dataset", "digits-of-pi"], "digits-of-pi"),
    ],
)
def test_wrong_sensitivities(folder, own, data, capsys, arguments, said):
    fails_with(capsys, ["sensitivity", *own, *arguments], said)


@pytest.mark.parametrize("target", ["onnx", "sparse", "packed"])
def test_exports(folder, own, capsys, target):
    assert main(["export", "--to", target, *own, "-o", "net", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["target"].lower() == target and found["bytes"] == sum(
        (folder / p).stat().st_size for p in found["paths"]
    )


def test_export_then_benchmark(folder, own, capsys):
    assert main(["export", "--to", "onnx", *own, "-o", "net.onnx"]) == 0
    assert "ONNX: net.onnx" in capsys.readouterr().out
    quick = ["--seconds", "0.05", "--no-memory", "--batches", "1", "4"]
    assert main(["benchmark", "net.onnx", *own, *quick, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["name"] for row in rows] == ["tiny_net.py:TinyNet", "net.onnx"]
    assert [row["runtime"] for row in rows] == ["torch", "ONNX Runtime"] and rows[1]["latency"]["4"] > 0
    assert main(["benchmark", "net.onnx", "--input-shape", "1,1,8,8", *quick]) == 0
    assert "ONNX Runtime" in capsys.readouterr().out


def test_wrong_exports_and_benchmarks(folder, own, capsys):
    fails_with(capsys, ["export", "--to", "onnx", "-o", "x.onnx"], "give a model")
    fails_with(capsys, ["export", "--to", "onnx", "-o", "agp.yaml/x.onnx", *own], "agp.yaml")
    fails_with(capsys, ["benchmark"], "there is nothing to measure")
    fails_with(capsys, ["benchmark", "net.onnx"], "give the shape of the models' input")
    fails_with(capsys, ["benchmark", "net.onnx", "--input-shape", "1,1,8,8"], "there is no file 'net.onnx'")
    fails_with(capsys, ["benchmark", "agp.yaml", "--input-shape", "1,1,8,8"], "agp.yaml does not run by itself")
    for name in ("bad.onnx", "bad.pt2"):
        (folder / name).write_text("no model")
        fails_with(capsys, ["benchmark", name, "--input-shape", "1,1,8,8"], f"{name}: ")
    with pytest.raises(SystemExit) as caught:
        main(["export", "--to", "onx", "-o", "x", *own])
    assert caught.value.code == 2 and "invalid choice: 'onx'" in capsys.readouterr().err


def test_quantize_with_ones_own_loader(folder, own, data, capsys):
    arguments = ["quantize", *own, "--loader", f"{data}:batches", "--effort", "fast", "-o", "int8.onnx", "--json"]
    assert main(arguments) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["sqnr_db"] > 15 and (folder / "int8.onnx").exists()
    assert {row["Name"]: row["Weight bits"] for row in found["export"]["layers"]} == {"conv": 8, "fc": 8}


def test_wrong_quantizations(folder, own, data, capsys):
    command = ["quantize", *own, "-o", "int8.onnx"]
    fails_with(capsys, command, "say what data it takes: --dataset NAME, or --loader")
    fails_with(capsys, [*command, "--loader", f"{data}:nothing"], "nothing() returned a int, not batches")
    fails_with(capsys, [*command, "--loader", f"{data}:value"], "value is a int, not a class or function")
    fails_with(capsys, [*command, "--loader", f"{data}:batches", "--bits-weights", "9"], "bits_weights")
    fails_with(capsys, [*command, "--loader", f"{data}:batches", "--min-agreement", "2"], "min_agreement")
    assert not (folder / "int8.onnx").exists()
