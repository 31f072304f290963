"""The page on what speeds up where shows what was measured, and nothing else."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def speed():
    spec = importlib.util.spec_from_file_location("speed_table", FOLDER / "_speed_table.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_tables_are_those_of_the_committed_results(speed):
    text = speed.PAGE.read_text(encoding="utf-8")
    results = json.loads(speed.RESULTS.read_text())
    assert speed.page_with(text, speed.tables(results)) == text, "run: python benchmarks/_speed_table.py"
    assert text.count(speed.BEGIN) == text.count(speed.END) == 1


def test_every_network_technique_and_base_was_measured(speed):
    results = json.loads(speed.RESULTS.read_text())
    names = [one["metric"].split(".")[1:] for one in results["results"]]
    assert {name[0] for name in names} == set(speed.NETWORKS)
    assert {name[1] for name in names} == set(speed.TECHNIQUES) and {name[2] for name in names} == set(speed.RUNTIMES)
    for one in results["results"]:
        _, _, technique, runtime = one["metric"].split(".")
        if technique == "dense" and runtime in ("eager", "onnxruntime"):
            base = f"over_{runtime}"
            assert all(one["value"][batch][base] == 1.0 for batch in ("batch_1", "batch_64"))
    assert {"cpu", "cores", "torch", "threads"} <= set(results["machine"])


def test_a_table_by_hand(speed):
    row = {"ms": 2.0, "over_eager": 1.0, "over_onnxruntime": 0.25, "rounds": 5}
    rows = {
        ("int8", "openvino"): {"fails": "ExportError: no"},
        ("dense", "eager"): {"mb": 1.5, "batch_1": row, "batch_64": {**row, "ms": 64.25}},
    }
    assert speed.table(rows).splitlines()[2:] == [
        "| dense float32 | torch, eager | 2 | 1.00 | 0.25 | 64.2 | 1.00 | 0.25 | 1.50 |",
        "| int8 | OpenVINO | fails | | | | | | |",
    ]
