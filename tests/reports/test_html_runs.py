"""The report of runs as they come: without accuracy, quantized, of odd files, in several folders, with plans."""

from __future__ import annotations

import json

import pytest

from distiller_ng.errors import ArgumentError
from distiller_ng.reports.html import read_run, write_html_report
from distiller_ng.reports.html.charts import Line, Point, line_chart, scatter_chart, ticks
from distiller_ng.reports.html.comparison import comparison
from distiller_ng.reports.html.exits import exits_table
from distiller_ng.reports.html.figures import headline, is_less_better
from distiller_ng.reports.html.findings import findings
from distiller_ng.reports.html.measured import measured
from distiller_ng.reports.html.predicted import predicted_sizes
from distiller_ng.reports.html.run_data import RunData, name_and_time
from distiller_ng.reports.html.sections import run_sections


def model(size: int, *, nonzero: int = 500, macs: int = 1000, at_bits: int | None = None) -> dict:
    return {"parameters": 500, "nonzero": nonzero, "bytes": size, "bytes_at_bits": at_bits or size, "macs": macs}


def run_of(name: str = "run", **summary) -> RunData:
    return RunData(name, {"model": {"before": model(4000), "after": model(4000)}, **summary}, path=f"runs/{name}")


def figure(run: RunData, what: str):
    (found,) = [one for one in headline(run, everything=True) if one.what == what]
    return found


# -- figures -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "less"),
    [
        ("Loss", True), ("val_loss", True), ("MSE", True), ("word error rate", True), ("ppl", True), ("Perplexity", True),
        ("Top1", False), ("Accuracy", False), ("balanced_acc", False), ("mAP", False), ("val-auc", False),
        ("amount", None), ("mirror", None),
    ],
)  # fmt: skip
def test_which_way_a_result_is_better(name, less):
    assert is_less_better(name) is less


@pytest.mark.parametrize(
    ("name", "before", "after", "good"),
    [("mse", 2.0, 1.0, True), ("mse", 1.0, 2.0, False), ("F1", 0.5, 0.6, True), ("depth", 1.0, 2.0, None)],
)
def test_a_result_is_judged_by_its_name(name, before, after, good):
    run = run_of(metrics_before={name: before}, metrics_after={name: after})
    assert figure(run, name).is_good is good


def test_a_run_that_measured_nothing_has_its_training_loss():
    curves = {"Training": {"Overall Loss": [(0.5, 9.0), (1.0, 4.0), (1.5, 3.0), (2.0, 1.0)]}}
    found = figure(RunData("run", {}, curves), "Training loss")
    assert (found.before, found.after, found.is_good) == ("4", "1", True)


def test_sizes_of_files_and_of_models_are_told_apart():
    rows = [{"name": "a", "file_bytes": 2048}, {"name": "b", "file_bytes": 1024}]
    run = RunData("run", run_of().summary, benchmark={"rows": rows})
    assert [one.what for one in headline(run)][:1] == ["File size"]
    assert figure(run, "File size").after == "1.0 KiB" and figure(run, "Model size").after == "3.9 KiB"
    quantized = run_of(model={"before": model(4000), "after": model(4100, at_bits=1000)})
    found = figure(quantized, "Model size")
    assert (found.before, found.after, found.change) == ("3.9 KiB", "1,000 bytes", "4.0x smaller")
    assert "at their bits" in found.note


def test_a_model_that_was_sparse_before_is_compared_with_what_it_was():
    run = run_of(model={"before": model(4000, nonzero=250), "after": model(4000, nonzero=125)})
    assert figure(run, "Non-zero parameters").change == "2.0x fewer"


QUANTIZED = {
    "export": {"paths": ["out/int8.onnx"], "bytes": 1024, "float_bytes": 4096},
    "accuracy": {"model": {"top1": 90.0}, "file": {"top1": 88.5}},
}


def test_what_quantize_measured_counts_where_nothing_was_benchmarked():
    run = RunData("run", {}, quantization=QUANTIZED)
    found = figure(run, "Top-1 as deployed")
    assert (found.before, found.after, found.change) == ("90.00 %", "88.50 %", "-1.50 points")
    assert (figure(run, "File size").before, figure(run, "File size").after) == ("4.0 KiB", "1.0 KiB")


def test_accuracy_of_measured_models():
    def scores(*rows: dict, **others) -> list:
        return [
            row.top1 for row in measured(RunData("run", {"top1_after": 91.0}, benchmark={"rows": list(rows)}, **others))
        ]

    single, whole = {"name": "a.onnx", "precision": "int8"}, {"name": "a.onnx", "precision": "float32"}
    assert scores({"name": "fp32"}, {"name": "int8.onnx"}, quantization=QUANTIZED) == [None, 88.5]
    assert scores(whole) == [91.0] and scores(single) == [None]


def test_models_without_accuracy_say_how_to_measure_it():
    rows = [{"name": name, "latency": {"1": 1.0}} for name in "ab"]
    (text,) = [html for title, _, html in run_sections(RunData("run", {}, benchmark={"rows": rows}), 2, "")][:1]
    assert "benchmark --top1" in text


# -- warnings ------------------------------------------------------------------------------------------------------------


def test_divergence_is_told_once():
    curves = {"Training": {"Overall Loss": [(1.0, 1.0), (2.0, float("nan"))]}}
    run = RunData("run", {"warnings": ["the loss was not a finite number in epoch 1", "another"]}, curves)
    assert [one.text for one in findings(run)] == ["Training: Overall Loss was not a finite number, first in epoch 1.", "another"]  # fmt: skip


def test_a_run_that_stopped_at_once():
    run = run_of(status="stopped by RuntimeError", epochs_done=None)
    assert findings(run)[0].text.endswith("its state in its first epoch (stopped by RuntimeError).")


@pytest.mark.parametrize(
    ("name", "before", "after", "said"),
    [
        ("mse", 1.0, 1.2, ["mse rose from 1 to 1.2."]),
        ("mse", 1.0, 1.04, []),
        ("f1", 0.8, 0.7, ["f1 fell from 0.8 to 0.7."]),
        ("depth", 1.0, 9.0, []),
    ],
)
def test_other_results_that_became_worse(name, before, after, said):
    run = run_of(metrics_before={name: before}, metrics_after={name: after})
    assert [one.text for one in findings(run)] == said


# -- names ---------------------------------------------------------------------------------------------------------------


def test_the_time_in_a_folders_name():
    assert name_and_time("agp___2026.11.21-102036") == ("agp", "2026-11-21 10:20")
    assert name_and_time("agp___2026.11.21-102036_2") == ("agp", "2026-11-21 10:20")
    assert name_and_time("2026.11.21-102036") == ("2026.11.21-102036", "")


def folder_of(parent, name: str, **summary):
    folder = parent / name
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text(json.dumps({"top1_after": 90.0, **summary}))
    return folder


def test_runs_have_the_shortest_names_that_tell_them_apart(tmp_path):
    dense, one, two = (folder_of(tmp_path, f"{n}___2026.11.21-10203{k}") for k, n in enumerate(("dense", "agp", "agp")))
    text = write_html_report([dense, one, two], tmp_path / "page.html").read_text()
    assert ">dense<" in text and ">agp___2026.11.21-102031<" in text and ">agp___2026.11.21-102032<" in text
    assert "2026-11-21 10:20" in text


def test_a_folder_that_is_named_twice_counts_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder_of(tmp_path, "a")
    text = write_html_report(["a", tmp_path / "a", "./a/"], "page.html").read_text()
    assert "compared" not in text and "<h1>a</h1>" in text


def test_a_folder_of_runs_says_which_there_are(tmp_path):
    folder_of(tmp_path, "b"), folder_of(tmp_path, "a")
    with pytest.raises(ArgumentError, match="These in it are: a, b"):
        read_run(tmp_path)


# -- comparison ----------------------------------------------------------------------------------------------------------


def test_a_run_keeps_its_number_and_colour():
    sizes = [{"before": model(4000), "after": model(4000, macs=macs)} for macs in (1000, 500, 250)]
    runs = [run_of("dense", top1_after=90.0, model=sizes[0]), run_of("other", model=sizes[1], metrics_after={"mse": 1.0}),
            run_of("small", top1_after=89.0, model=sizes[2])]  # fmt: skip
    columns, rows, charts = comparison(runs, ["a", "b", "c"])
    assert "Top-1 accuracy against MACs" in charts and "key-c2" in charts and "key-c1" not in charts
    assert '">3</span>small' in charts and "other" not in charts
    assert rows[1][columns.index("mse")] == "1"
    stopped = [
        runs[0],
        run_of("stopped", status="stopped by OSError", warnings=["a"]),
        run_of("told", warnings=["a", "b"]),
    ]
    columns, rows, _ = comparison(stopped, ["a", "b", "c"])
    none, serious, some = (row[columns.index("Warnings")] for row in rows)
    assert none is None and "1 serious" in serious.html and some.html == "2"


def test_the_front_of_results_where_less_is_better():
    points = [Point("large", 2.0, 0.1), Point("small", 1.0, 0.5), Point("bad", 3.0, 0.7)]
    drawn = scatter_chart("x", points, x_label="x", y_label="mse", less_is_better=True)
    assert "the best compromises are small, large<" in drawn


# -- charts --------------------------------------------------------------------------------------------------------------


def test_what_was_achieved_in_an_epoch_holds_for_all_of_it():
    def drawn(steps: str) -> str:
        text = line_chart("x", [Line("a", [(1.0, 0.0), (2.0, 1.0)], steps=steps), Line("b", [(0.0, 0.0), (2.0, 1.0)])])
        return text.split('points="')[1].split('"')[0]

    (before, after) = (drawn(kind).split() for kind in ("before", "after"))
    places = [place.split(",") for place in before]
    assert len(places) == 4 and places[1][0] == places[2][0] and places[0][1] == places[1][1]  # 0 to 1, then up
    assert len(after) == 3
    alone = line_chart("x", [Line("a", [(1.0, 0.0), (2.0, 1.0)], steps="before")])
    assert 'points="64.0,' in alone  # the axis is at 64


def test_ticks_of_tiny_numbers():
    assert ticks(0.0, 1e-20) == [0.0, 2e-21, 4e-21, 6e-21, 8e-21, 1e-20]


# -- sizes that were predicted -------------------------------------------------------------------------------------------


def plan_of(*sizes: dict, notes=()) -> dict:
    return {"plan": {"policies": [], "sizes": list(sizes)}, "size_notes": list(notes)}


def test_predicted_and_measured_sizes():
    first = {
        "epoch": 0.0,
        "cause": "the model as it is",
        "parameters": 500,
        "nonzero": 500,
        "macs": None,
        "size_bytes": 2000,
    }
    last = {**first, "epoch": 3.0, "cause": "<p>", "nonzero": None, "size_bytes": 500, "approximate": ["parameters"]}
    summary = {"model": {"after": model(4000, at_bits=600)}}
    text = predicted_sizes(RunData("run", summary, plan=plan_of(first, last, notes=["<why>"])), 3)
    for wanted in ("&lt;p&gt;, epoch 3", "~500 (100 %)", ">?<", "500 bytes (25 %)", "600 bytes (30 %)", "&lt;why&gt;",
                   "measured at the end", '<th class="number" scope="col">MACs</th>'):  # fmt: skip
        assert wanted in text, wanted
    assert predicted_sizes(RunData("run", summary), 3) == ""


def test_outputs_that_are_quantized_in_training_have_rows(tmp_path):
    layers = [{"layer": "fc", "weights": 4, "activations": None}, {"layer": "relu", "weights": None, "activations": 6}]
    (tmp_path / "plan.json").write_text(json.dumps({"plan": {"policies": [{"layers": layers}]}}))
    (tmp_path / "summary.json").write_text(json.dumps({"layers": [{"name": "fc.weight", "bits": 4, "sparsity": 0.0}]}))
    text = write_html_report([tmp_path], tmp_path / "page.html").read_text()
    assert 'relu</th><td class="number"></td><td class="number"></td><td class="number">6</td>' in text


def test_early_exits():
    rows = [
        {"exit": 0, "share": 0.25, "top1": 99.0, "top1_alone": 80.0, "macs": 100},
        {"exit": 1, "share": 0.75, "top1": None},
    ]
    found = {"rows": rows, "top1": 91.5, "macs": 850.0, "plain_macs": 1000}
    text = exits_table(RunData("run", {"early_exit": found}), 3)
    for wanted in (
        "exit 0",
        "the end",
        "25.0 %",
        "99.00 %",
        "80.00 %",
        "Together: top-1 91.50 %",
        "15.0 % less than 1,000",
    ):
        assert wanted in text, wanted
    assert exits_table(RunData("run", {"early_exit": {"rows": "x"}}), 3) == ""


# -- odd files -----------------------------------------------------------------------------------------------------------

HUGE = 10**400


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("summary.json", {"layers": [{"name": "a", "shape": [HUGE, 2], "sparsity": HUGE, "bits": HUGE}], "status": "x"}),
        ("summary.json", {"parameters": [{"name": "a", "shape": [4, 4], "planned": 0.5, "achieved": 1e308}]}),
        ("histograms.json", {"after": {"a": {"low": 0, "high": 1, "counts": ["x"]}, "b": {"low": None, "high": 1, "counts": [1]},
                                       "c": {"low": 0, "high": 1, "counts": 5}, "d": {"low": 0, "high": 1, "counts": [1], "zeros": {}}}}),
        ("plan.json", {"plan": {"policies": [{"curves": [{"of": "sparsity", "parameters": 3, "values": [[0, 1]]}]}], "sizes": [3, {}]}}),
        ("benchmark.json", {"rows": [{"name": "a", "latency": {"1": 1.0}}, {"name": "b", "latency": {"1": 0}, "speedup": {"1": 0}}]}),
    ],
)  # fmt: skip
def test_odd_values_are_left_out(tmp_path, file, content):
    (tmp_path / "summary.json").write_text('{"top1_after": 12.5}')
    (tmp_path / file).write_text(json.dumps(content))
    assert "<html" in write_html_report([tmp_path], tmp_path / "page.html").read_text()


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("benchmark.json", {"rows": [{"name": ["a"]}]}),
        (
            "metrics.jsonl",
            {"event": "training", "group": "a", "epoch": HUGE, "completed": 1, "total": 1, "metrics": {}},
        ),
    ],
)
def test_files_of_another_kind_are_named(tmp_path, file, content):
    (tmp_path / "summary.json").write_text('{"top1_after": 12.5}')
    (tmp_path / file).write_text(json.dumps(content) + "\n{}")
    with pytest.raises(ArgumentError, match=file):
        read_run(tmp_path)


def test_pages_of_many_large_runs_stay_small(tmp_path):
    names = [f"encoder.block{n}.attention.output.projection.dense.weight" for n in range(700)]
    layers = [{"name": name, "shape": [64, 64], "sparsity": 0.5} for name in names]
    bars = {name: {"low": -1.0, "high": 1.0, "counts": list(range(48)), "zeros": 9} for name in names}
    lines = [json.dumps({"event": "weights_sparsity", "epoch": e, "total_sparsity": 0.5, "parameters": dict.fromkeys(names, e / 60)})
             for e in range(60)]  # fmt: skip
    folders = [folder_of(tmp_path, f"run{n}", layers=layers) for n in range(6)]
    for folder in folders:
        (folder / "histograms.json").write_text(json.dumps({"before": bars, "after": bars}))
        (folder / "metrics.jsonl").write_text("\n".join(lines))
    for runs in (folders[:1], folders):
        assert write_html_report(runs, tmp_path / "page.html").stat().st_size < 2_000_000
    assert "400 more layers are in the summary.json" in (tmp_path / "page.html").read_text()
