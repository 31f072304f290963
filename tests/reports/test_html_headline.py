"""The headline compares a file with one in the same runtime: what a runtime gains over eager PyTorch is not ours."""

import pytest

from distiller_ng.reports.html.figures import headline
from distiller_ng.reports.html.run_data import RunData


def row(name, runtime, milliseconds):
    return {"name": name, "runtime": runtime, "precision": "float32", "latency": {"1": milliseconds}, "speedup": {}}


@pytest.mark.parametrize(
    ("rows", "was", "change"),
    [
        ([("net", "torch", 8.0), ("a.onnx", "ONNX Runtime", 2.0), ("b.onnx", "ONNX Runtime", 1.0)], "2", "2.0"),
        ([("net", "torch", 8.0), ("b.onnx", "ONNX Runtime", 1.0)], "8", "8.0"),
    ],
    ids=["same runtime", "only another"],
)
def test_latency_is_compared_within_a_runtime(rows, was, change):
    run = RunData("run", {}, benchmark={"rows": [row(*one) for one in rows], "machine": {}})
    (speed,) = [figure for figure in headline(run) if figure.what == "Latency"]
    assert speed.before.startswith(was) and speed.change.startswith(change)
    assert ("torch" in speed.note) == (was == "8")


def test_one_row_has_nothing_to_be_compared_with():
    run = RunData("run", {}, benchmark={"rows": [row("net", "torch", 8.0)], "machine": {}})
    (speed,) = [figure for figure in headline(run) if figure.what == "Latency"]
    assert speed.before == ""
