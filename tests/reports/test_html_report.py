"""The HTML report: what it reads, what it shows, and that a browser shows it."""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest

from distiller_ng.cli.main import main
from distiller_ng.errors import ArgumentError
from distiller_ng.reports.html import read_run, write_html_report
from distiller_ng.reports.html.charts import Point, line_chart, scatter_chart, ticks

EVENTS = [
    {"event": "training", "group": "Performance/Training", "epoch": 0, "completed": 2, "total": 4,
     "metrics": {"Overall Loss": 0.75, "Top1": 61.5, "LR": 0.1}},
    {"event": "training", "group": "Performance/Validation", "epoch": 0, "completed": 0, "total": 1,
     "metrics": {"Loss": 0.5, "Top1": 70.0}},
    {"event": "weights_sparsity", "epoch": 0, "total_sparsity": 0.25, "parameters": {"conv<1>.weight": 0.5}},
    {"event": "test", "group": "Performance/Test", "epoch": -1, "completed": 0, "total": 1, "metrics": {"Top1": 69.0}},
]  # fmt: skip


def row(name: str, milliseconds: float, size: int, speedup: float) -> dict:
    return {"name": name, "runtime": "ONNX Runtime", "precision": "fp32", "latency": {"1": milliseconds},
            "throughput": {"1": 1000 / milliseconds}, "speedup": {"1": speedup}, "file_bytes": size,
            "peak_memory": None, "note": ""}  # fmt: skip


def run_folder(parent, name: str = "one", top1: float = 88.25):
    folder = parent / name
    folder.mkdir()
    summary = {"arch": "net", "dataset": "digits", "schedule": "agp.yaml", "top1_before": 90.0, "top1_after": top1,
               "total_sparsity": 0.25, "warnings": ["a <b>bold</b> one"],
               "parameters": [{"name": "conv<1>.weight", "shape": [4, 3, 3], "planned": 0.5, "achieved": 0.4875}]}  # fmt: skip
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "metrics.jsonl").write_text("\n".join(json.dumps(event) for event in EVENTS))
    (folder / "schedule.yaml").write_text("pruners: {p: {class: 'A & B'}}\n")
    models = {"machine": {"cpu": "some CPU", "threads": 1}, "rows": [row("fp32", 2.0, 4096, 1.0), row("int8", 0.8, 1229, 2.5)],
              "top1": {"fp32": 90.0, "int8": 88.25}}  # fmt: skip
    (folder / "benchmark.json").write_text(json.dumps(models))
    (folder / "run.log").write_text(
        "2026-11-21 10:20:36 - Python: 3.11.7\n2026-11-21 10:20:36 - Command line: train.py --lr 0.1\n"
        "2026-11-21 10:20:36 - --- Training\n2026-11-21 10:20:36 - Late: no\n"
    )
    return folder


def test_what_a_run_folder_holds(tmp_path):
    run = read_run(run_folder(tmp_path))
    assert run.curves["Training"]["Overall Loss"] == [(0.5, 0.75)]
    assert run.curves["Validation"]["Top1"] == [(1.0, 70.0)]
    assert "Test" not in run.curves
    assert run.sparsities == {"conv<1>.weight": [(0.0, 0.5)]}
    assert run.environment == {"Python": "3.11.7", "Command line": "train.py --lr 0.1"}


def test_the_page_says_it_all_and_loads_nothing(tmp_path):
    text = write_html_report([run_folder(tmp_path)], tmp_path / "report.html").read_text()
    for wanted in ("88.25 %", "from 90.00 % (-1.75)", "0.30x", "2.50x", "48.75%", "conv&lt;1&gt;.weight", "some CPU",
                   "a &lt;b&gt;bold&lt;/b&gt; one", "A &amp; B", "train.py --lr 0.1", "prefers-color-scheme: dark"):  # fmt: skip
        assert wanted in text, wanted
    for unwanted in ("<script", "http://", "https://", "src=", "conv<1>"):
        assert unwanted not in text, unwanted


def test_several_runs_are_compared(tmp_path):
    folders = [run_folder(tmp_path, "first", 88.0), run_folder(tmp_path, "second", 91.0)]
    text = write_html_report(folders, tmp_path / "report.html").read_text()
    assert "2 runs compared" in text
    assert "Accuracy against latency" in text
    assert "Accuracy against file size" in text
    assert "second: int8" in text


def test_a_run_without_anything_but_its_summary(tmp_path):
    (tmp_path / "summary.json").write_text('{"top1_after": 12.5}')
    text = write_html_report([tmp_path], tmp_path / "report.html").read_text()
    assert "12.50 %" in text
    assert "<svg" not in text


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("summary.json", "{", "is no JSON"),
        ("summary.json", "[]", "must hold a mapping"),
        ("metrics.jsonl", '{"event": "training"}', r"metrics.jsonl:1 holds no event"),
        ("metrics.jsonl", "no json", r"metrics.jsonl:1 holds no event"),
    ],
)
def test_damaged_files_are_named(tmp_path, file, content, message):
    folder = run_folder(tmp_path)
    (folder / file).write_text(content)
    with pytest.raises(ArgumentError, match=message):
        read_run(folder)


def test_the_command(tmp_path, capsys):
    folder = run_folder(tmp_path)
    assert main(["report", str(folder), "-o", str(tmp_path / "page.html"), "--title", "Mine"]) == 0
    assert "<h1>Mine</h1>" in (tmp_path / "page.html").read_text()
    assert capsys.readouterr().out == f"{tmp_path / 'page.html'}\n"
    assert main(["report", str(tmp_path / "nowhere")]) == 1
    assert capsys.readouterr().err == f"{tmp_path / 'nowhere'} is no folder of a run\n"
    assert main(["report", str(tmp_path)]) == 1
    assert "has no summary.json" in capsys.readouterr().err


def test_ticks_are_round_numbers():
    assert ticks(0.0, 1.0) == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert ticks(92.3, 98.9) == [94.0, 96.0, 98.0]
    assert ticks(0.0, 0.0007) == [0.0, 0.0002, 0.0004, 0.0006]
    assert ticks(3.0, 3.0) == [3.0]


def test_charts_leave_out_what_is_not_finite():
    assert line_chart("nothing", {"a": [(0.0, float("nan"))]}) == ""
    assert "nan" not in line_chart("some", {"a": [(0.0, float("nan")), (1.0, 2.0), (2.0, 2.0)]})


def test_the_front_joins_what_no_other_beats():
    points = [Point("slow", 4.0, 90.0), Point("fast", 1.0, 80.0), Point("beaten", 2.0, 79.0)]
    drawing = scatter_chart("models", points, x_label="ms", y_label="top-1")
    front = drawing.split('class="front" points="')[1].split('"')[0]
    assert len(front.split()) == 2


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="no browser is installed")
@pytest.mark.parametrize("width", [360, 1280])
def test_a_browser_shows_the_page(tmp_path, width):
    page = write_html_report([run_folder(tmp_path)], tmp_path / "report.html")
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--window-size={width},1200",
               f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={tmp_path / 'page.png'}", "--dump-dom",
               page.as_uri()]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "88.25 %" in done.stdout
    assert done.stdout.count("<polyline") >= 3
    assert (tmp_path / "page.png").stat().st_size > 10_000
