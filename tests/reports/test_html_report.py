"""The HTML report: what it reads, what it shows, and that a browser shows it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
import torch

from distiller_ng.errors import ArgumentError
from distiller_ng.reports.html import read_run, write_html_report
from distiller_ng.reports.html.charts import Line, Point, line_chart, scatter_chart, ticks
from distiller_ng.reports.html.findings import findings, is_off_plan
from distiller_ng.reports.html.parts import bytes_text, count_text, milliseconds_text, slug, times_text
from distiller_ng.reports.html.style import CONTRASTS, PALETTES, STYLE

EVENTS = [
    {"event": "training", "group": "Performance/Training", "epoch": 0, "completed": 2, "total": 4,
     "metrics": {"Overall Loss": 0.75, "Top1": 61.5, "LR": 0.1}},
    {"event": "training", "group": "Performance/Validation", "epoch": 0, "completed": 0, "total": 1,
     "metrics": {"Loss": 0.5, "Top1": 70.0}},
    {"event": "weights_sparsity", "epoch": 0, "total_sparsity": 0.25, "parameters": {"conv<1>.weight": 0.5}},
    {"event": "training", "group": "Performance/Training", "epoch": 1, "completed": 4, "total": 4,
     "metrics": {"Overall Loss": 0.25, "Top1": 81.5, "LR": 0.01}},
    {"event": "test", "group": "Performance/Test", "epoch": -1, "completed": 0, "total": 1, "metrics": {"Top1": 69.0}},
]  # fmt: skip
PLAN = {
    "plan": {"policies": [{"name": "agp", "curves": [
        {"of": "sparsity", "parameters": ["conv<1>.weight"], "values": [[0.0, 0.1], [1.0, 0.5]]}]}], "notes": ["one note"]},
    "timeline": {"epochs": 2, "policies": [{"name": "agp", "kind": "pruning", "active": [[0.0, 1.0]], "mark": "10 % to 50 %",
                                            "lasts": True}], "learning_rate": [[0.0, 0.1], [1.0, 0.01]]},
}  # fmt: skip


def row(name: str, milliseconds: float, size: int, speedup: float, note: str = "") -> dict:
    return {"name": name, "runtime": "ONNX Runtime", "precision": "fp32", "latency": {"1": milliseconds},
            "throughput": {"1": 1000 / milliseconds}, "speedup": {"1": speedup}, "file_bytes": size,
            "peak_memory": None, "note": note}  # fmt: skip


def summary_of(top1: float = 88.25) -> dict:
    return {"arch": "net", "dataset": "digits", "schedule": "agp.yaml", "top1_before": 90.0, "top1_after": top1,
            "total_sparsity": 0.25, "warnings": ["a <b>bold</b> one"], "seed": 7,
            "model": {"before": {"parameters": 20000, "nonzero": 20000, "bytes": 80000, "macs": 3000000},
                      "after": {"parameters": 20000, "nonzero": 5000, "bytes": 80000, "macs": 1500000}},
            "parameters": [{"name": "conv<1>.weight", "shape": [4, 3, 3], "planned": 0.5, "achieved": 0.4}],
            "layers": [{"name": "conv<1>.weight", "shape": [4, 3, 3], "sparsity": 0.4, "bits": 4, "activation_bits": 8},
                       {"name": "fc.weight", "shape": [10, 36], "sparsity": 0.0, "bits": None}]}  # fmt: skip


def run_folder(parent, name: str = "one", top1: float = 88.25):
    folder = parent / name
    folder.mkdir()
    (folder / "summary.json").write_text(json.dumps(summary_of(top1)))
    (folder / "metrics.jsonl").write_text("\n".join(json.dumps(event) for event in EVENTS))
    (folder / "schedule.yaml").write_text("pruners: {p: {class: 'A & B'}}\n")
    (folder / "plan.json").write_text(json.dumps(PLAN))
    bars = {"conv<1>.weight": {"low": -1.0, "high": 1.0, "counts": [1, 5, 2], "zeros": 8}}
    (folder / "histograms.json").write_text(json.dumps({"before": bars, "after": bars}))
    models = {"machine": {"cpu": "some CPU", "threads": 1}, "rows": [row("fp32", 2.0, 4096, 1.0), row("int8", 0.8, 1229, 2.5)],
              "top1": {"fp32": 90.0, "int8": 88.25}}  # fmt: skip
    (folder / "benchmark.json").write_text(json.dumps(models))
    (folder / "run.log").write_text(
        "2026-11-21 10:20:36 - Python: 3.11.7\n2026-11-21 10:20:36 - Command line: train.py --lr 0.1\n"
        "2026-11-21 10:20:36 - --- Training\n2026-11-21 10:20:36 - Late: no\n"
    )
    return folder


def page_of(folder, tmp_path) -> str:
    return write_html_report([folder], tmp_path / "report.html").read_text()


class Outline(HTMLParser):
    """Headings in order, ids and links, and what is open at the end."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.levels, self.ids, self.links, self.open, self.tags = [], [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.tags.append((tag, found))
        self.ids += [found["id"]] if "id" in found else []
        self.links += [found["href"]] if "href" in found else []
        if re.fullmatch("h[1-6]", tag):
            self.levels.append(int(tag[1]))
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, tag


def test_what_a_run_folder_holds(tmp_path):
    run = read_run(run_folder(tmp_path))
    assert run.curves["Training"]["Overall Loss"] == [(0.5, 0.75), (2.0, 0.25)]
    assert run.curves["Validation"]["Top1"] == [(1.0, 70.0)]
    assert "Test" not in run.curves
    assert run.sparsities == {"conv<1>.weight": [(1.0, 0.5)]}
    assert run.environment == {"Python": "3.11.7", "Command line": "train.py --lr 0.1"}
    assert run.weights["after"]["conv<1>.weight"].zeros == 8.0


def test_the_page_says_it_all_and_loads_nothing(tmp_path):
    text = page_of(run_folder(tmp_path), tmp_path)
    for wanted in ("88.25 %", "was 90.00 %", "-1.75 points", "3.3x smaller", "2.5x faster", "0.800 ms", "5,000", "4.0x fewer",
                   "1.50 M", "2.0x fewer", "conv&lt;1&gt;.weight", "some CPU, 1 threads", "a &lt;b&gt;bold&lt;/b&gt; one",
                   "A &amp; B", "python train.py --lr 0.1", "prefers-color-scheme: dark", "not as planned", "50.0 %",
                   "one note", "10 % to 50 %", "agp, planned", "agp, achieved", "50 % zeros", "fell by 1.75 points"):  # fmt: skip
        assert wanted in text, wanted
    for unwanted in ("<script", "http://", "https://", "src=", "@import", "url(", "conv<1>", "nan", "None"):
        assert unwanted not in text, unwanted


def test_semantic_html(tmp_path):
    folders = [run_folder(tmp_path, "first"), run_folder(tmp_path, "second & last")]
    for runs in (folders[:1], folders):
        text = write_html_report(runs, tmp_path / "report.html").read_text()
        outline = Outline(text)
        assert outline.open == [] and '<html lang="en">' in text and 'name="viewport"' in text
        assert outline.levels[0] == 1 and outline.levels.count(1) == 1
        assert all(after <= before + 1 for before, after in zip(outline.levels, outline.levels[1:]))
        assert len(outline.ids) == len(set(outline.ids))
        assert {link.removeprefix("#") for link in outline.links} <= set(outline.ids) and outline.links
        heads = [found for tag, found in outline.tags if tag == "th"]
        assert heads and all(found.get("scope") in ("col", "row") for found in heads)
        for drawing in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
            assert 'role="img"' in drawing and "<title>" in drawing and "<desc>" in drawing


def luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("palette", ["light", "dark"])
def test_contrast_is_enough_for_everybody(palette):
    colours = PALETTES[palette]
    for front, back in CONTRASTS:
        light, dark = sorted((luminance(colours[front]), luminance(colours[back])), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (palette, front, back)


def test_the_style_uses_no_other_colours():
    rules = STYLE.split("* { box-sizing")[1]
    assert not re.findall(r"#[0-9a-fA-F]{3,8}\b", rules)
    assert set(re.findall(r"var\(--([\w-]+)\)", STYLE)) <= PALETTES["light"].keys()
    assert PALETTES["light"].keys() == PALETTES["dark"].keys()


def test_several_runs_are_compared(tmp_path):
    folders = [run_folder(tmp_path, "first", 88.0), run_folder(tmp_path, "second", 91.0)]
    text = write_html_report(folders, tmp_path / "report.html").read_text()
    for wanted in ("2 runs compared", "Accuracy against latency", "Accuracy against file size", "second: int8"):
        assert wanted in text
    (tmp_path / "other").mkdir()
    text = write_html_report(
        [folders[0], run_folder(tmp_path / "other", "first")], tmp_path / "report.html"
    ).read_text()
    assert f"{tmp_path}/other/first" in text


def test_a_run_without_anything_but_its_summary(tmp_path):
    (tmp_path / "summary.json").write_text('{"top1_after": 12.5}')
    text = page_of(tmp_path, tmp_path)
    assert "12.50 %" in text
    assert "<svg" not in text


def test_a_run_that_was_interrupted(tmp_path):
    lines = [json.dumps(event) for event in EVENTS]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + '\n{"event": "trai')
    assert "This run did not finish: what is shown is its state after 2 epochs." in page_of(tmp_path, tmp_path)
    (tmp_path / "summary.json").write_text('{"status": "stopped by KeyboardInterrupt", "epochs_done": 1}')
    assert "state after 1 epoch (stopped by KeyboardInterrupt)" in page_of(tmp_path, tmp_path)


def test_losses_that_were_not_finite_break_the_line_and_are_told(tmp_path):
    folder = run_folder(tmp_path)
    event = {**EVENTS[0], "epoch": 2, "metrics": {"Overall Loss": None, "LR": 0.1}}
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, [*EVENTS, event])))
    text = page_of(folder, tmp_path)
    assert "Overall Loss was not a finite number, first in epoch 2." in text and ">nan" not in text


def test_five_hundred_layers_with_odd_names(tmp_path):
    names = [f"layer{n}.\"<é漢>&'" for n in range(500)]
    summary = {
        **summary_of(),
        "layers": [{"name": n, "shape": [4, 4], "sparsity": 0.5} for n in names],
        "parameters": [],
    }
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    bars = {name: {"low": 0.0, "high": 1.0, "counts": [1.0] * 48} for name in names}
    (tmp_path / "histograms.json").write_text(json.dumps({"after": bars}))
    event = {"event": "weights_sparsity", "epoch": 0, "total_sparsity": 0.5, "parameters": dict.fromkeys(names, 0.5)}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(event))
    text = page_of(tmp_path, tmp_path)
    assert "460 more layers" in text and "404 more layers are not drawn" in text and len(text) < 2_000_000
    assert "layer499.&quot;&lt;é漢&gt;&amp;" in text and Outline(text).open == []


def test_activations_as_histograms_or_ranges(tmp_path):
    folder = run_folder(tmp_path)
    (folder / "acts_quantization_stats.yaml").write_text(
        "fc:\n  inputs: {}\n  output: {min: -1.5, max: 2.5, mean: 0.25, std: 1.0, shape: '(1, 10)'}\n"
    )
    assert all(text in page_of(folder, tmp_path) for text in ("Activations", "-1.5", "2.5"))
    histogram = {"hist": torch.ones(100), "bin_centroids": torch.linspace(0, 4, 100)}
    torch.save({"relu": {"inputs": {}, "output": histogram}}, folder / "acts_histograms.pt")
    assert "-0.0202 to 4.02" in page_of(folder, tmp_path)


def test_bits_of_a_quantized_file(tmp_path):
    folder = run_folder(tmp_path)
    layers = [{"Name": "fc", "Weight bits": 8, "Input bits": 8, "Why in floating point": "its output"}]
    (folder / "quantization.json").write_text(json.dumps({"export": {"layers": layers, "notes": ["a note of it"]}}))
    text = page_of(folder, tmp_path)
    assert "float: its output" in text and "a note of it" in text
    assert re.search(r'fc\.weight</th>.*?<td class="number">8</td><td class="number">8</td>', text)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("summary.json", "{", "is no JSON"),
        ("summary.json", "[]", "must hold a mapping"),
        ("summary.json", '{"coverage": 3}', "is not the summary of a run of ours"),
        ("benchmark.json", '{"rows": [3]}', "is no result of a benchmark"),
        ("acts_histograms.pt", "text", "is no file of histograms"),
        ("metrics.jsonl", '{"event": "training"}', r"metrics.jsonl:1 holds no event"),
        ("metrics.jsonl", "no json", r"metrics.jsonl:1 holds no event"),
    ],
)
def test_damaged_files_are_named(tmp_path, file, content, message):
    folder = run_folder(tmp_path)
    (folder / file).write_text(content)
    with pytest.raises(ArgumentError, match=message):
        read_run(folder)


def test_values_of_other_types_are_left_out(tmp_path):
    odd = {
        "top1_after": "high",
        "model": [],
        "layers": [3, {"name": None}],
        "parameters": {},
        "warnings": 5,
        "seconds": "x",
    }
    (tmp_path / "summary.json").write_text(json.dumps(odd))
    (tmp_path / "plan.json").write_text('{"plan": [], "timeline": {"epochs": "x", "policies": [1]}}')
    (tmp_path / "benchmark.json").write_text(
        '{"rows": [{"name": "a", "latency": {"x": NaN, "1": Infinity}}], "top1": []}'
    )
    assert Outline(page_of(tmp_path, tmp_path)).open == []


@pytest.mark.parametrize(
    ("planned", "achieved", "shape", "is_off"),
    [
        (0.8, 0.79, [100, 100], False),
        (0.8, 0.7, [100, 100], True),
        (0.5, 0.4, [1, 10], False),  # one and a half of ten values
        (0.5, 1 / 3, [3, 30], False),  # one filter of three
        (None, 0.1, [3, 3], False),
        (float("nan"), 0.1, [3, 3], False),
    ],
)
def test_off_plan(planned, achieved, shape, is_off):
    assert is_off_plan({"planned": planned, "achieved": achieved, "shape": shape}) is is_off


def test_findings_are_told_once_and_serious_ones_first(tmp_path):
    folder = run_folder(tmp_path)
    summary = {**summary_of(), "warnings": ["one note", "one note"]}
    (folder / "summary.json").write_text(json.dumps(summary))
    found = findings(read_run(folder))
    assert [one.is_serious for one in found] == sorted((one.is_serious for one in found), reverse=True)
    assert [one.text for one in found].count("one note") == 1


def test_numbers_as_people_read_them():
    assert [bytes_text(value) for value in (12, 42_300, 5_000_000)] == ["12 bytes", "41.3 KiB", "4.8 MiB"]
    assert [count_text(value) for value in (9_999, 27_100, 1_350_000, 4.11e9)] == [
        "9,999",
        "27.1 k",
        "1.35 M",
        "4.11 G",
    ]
    assert [milliseconds_text(value) for value in (0.084, 2.5, 12.3, 2100.0)] == [
        "0.084 ms",
        "2.50 ms",
        "12.3 ms",
        "2.10 s",
    ]
    assert [times_text(4, one, "less", "more") for one in (1, 8, 4, 0)] == ["4.0x less", "2.0x more", "unchanged", ""]
    assert slug("Run 1", "<é> layers") == "run-1-layers"


def test_ticks_are_round_numbers():
    assert ticks(0.0, 1.0) == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert ticks(92.3, 98.9) == [94.0, 96.0, 98.0]
    assert ticks(0.0, 0.0007) == [0.0, 0.0002, 0.0004, 0.0006]
    assert ticks(3.0, 3.0) == [3.0]


def test_charts_leave_out_what_is_not_finite():
    assert line_chart("nothing", {"a": [(0.0, float("nan"))]}) == ""
    broken = line_chart("some", {"a": [(0.0, 1.0), (1.0, 2.0), (2.0, float("nan")), (3.0, 2.0), (4.0, 1.0)]})
    assert "nan" not in broken and broken.count("<polyline") == 2
    assert line_chart("one", {"a": [(1.0, 2.0)]}).count("<circle") == 1


def test_faint_lines_share_one_key():
    lines = [Line("each", [(0.0, 1.0), (1.0, 2.0)], faint=True)] * 3 + [Line("all", [(0.0, 1.0), (1.0, 2.0)])]
    assert line_chart("many", lines).count("<li>") == 2


def test_the_front_joins_what_no_other_beats():
    points = [Point("slow", 4.0, 90.0), Point("fast", 1.0, 80.0), Point("beaten", 2.0, 79.0)]
    drawing = scatter_chart("models", points, x_label="ms", y_label="top-1")
    front = drawing.split('class="front" points="')[1].split('"')[0]
    assert len(front.split()) == 2
    assert drawing.count("(on the front)") == 2
    assert scatter_chart("one", points[:1], x_label="ms", y_label="top-1") == ""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="no browser is installed")
@pytest.mark.parametrize("width", [500, 1280])
def test_a_browser_shows_the_page(tmp_path, width):
    page = write_html_report([run_folder(tmp_path)], tmp_path / "report.html")
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--window-size={width},1200",
               f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={tmp_path / 'page.png'}", "--dump-dom",
               page.as_uri()]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "88.25 %" in done.stdout and "not as planned" in done.stdout
    assert done.stdout.count("<polyline") >= 5
    assert (tmp_path / "page.png").stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="no browser is installed")
def test_nothing_is_wider_than_a_phone(tmp_path):
    """A frame 360 pixels wide; its own script reads how much wider the page became."""
    write_html_report([run_folder(tmp_path), run_folder(tmp_path, "two")], tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text().replace('"', "&quot;")
    probe = "with (f.contentDocument.documentElement) document.title = scrollWidth - clientWidth + &quot; over&quot;"
    (tmp_path / "frame.html").write_text(
        f'<iframe id="f" style="width:360px;height:900px;border:0" srcdoc="{text}" onload="{probe}"></iframe>'
    )
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
               "--dump-dom", (tmp_path / "frame.html").as_uri()]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "<title>0 over</title>" in done.stdout
