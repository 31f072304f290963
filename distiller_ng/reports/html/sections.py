"""The sections of one run (layer 4)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from distiller_ng.reports.html.charts import Point, scatter_chart
from distiller_ng.reports.html.exits import exits_table
from distiller_ng.reports.html.figures import cards, headline
from distiller_ng.reports.html.findings import findings, is_off_plan, warnings_box
from distiller_ng.reports.html.measured import Measured, machine_text, measured
from distiller_ng.reports.html.parts import (
    Cell,
    bytes_text,
    count_text,
    details,
    finite,
    heading,
    mappings,
    meter,
    milliseconds_text,
    pairs,
    part,
    percent_text,
    section,
    shape_of,
    slug,
    table,
)
from distiller_ng.reports.html.pictures import (
    activation_pictures,
    against_plan,
    timeline_picture,
    training_charts,
    weight_pictures,
)
from distiller_ng.reports.html.predicted import predicted_sizes
from distiller_ng.reports.html.run_data import RunData, name_and_time

__all__ = ["SECTIONS", "about", "pareto_charts", "result", "run_sections"]

_FACTS = ("arch", "model_class", "dataset", "schedule")
_NOT_FACTS = {*_FACTS, "status", "top1_before", "top1_after", "total_sparsity", "pruned_sparsity", "best"}
_LONG = 40  # rows of a table that are shown at once
_MOST, _MOST_EACH = 1000, 300  # rows of a table, of one run and of each that is compared
_ALONE = 3  # the level of headings within a section of a run that stands for itself


def about(run: RunData) -> str:
    """What was run: architecture, data set, schedule, length."""
    parts = [str(run.summary[key]) for key in _FACTS if run.summary.get(key)]
    done = run.summary.get("epochs_done")
    if isinstance(done, int):
        parts.append(f"{done} epoch{'s' * (done != 1)}")
    began = name_and_time(Path(run.path).name)[1]
    parts += [began] if began else []
    seconds = finite(run.summary.get("seconds"))
    if seconds:
        parts.append(f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min")
    return f'<p class="soft">{escape(" · ".join(parts))}</p>' if parts else ""


def run_sections(run: RunData, level: int, prefix: str) -> list[tuple[str, str, str]]:
    """``(title, anchor, html)`` of every section that has something to say; headings of ``level``."""
    found = []
    for title, make in SECTIONS.items():
        anchor = slug(prefix, title)
        html = section(level, title, make(run, level + 1), anchor)
        if html:
            found.append((title, anchor, html))
    return found


def result(run: RunData, level: int, prefix: str) -> str:
    """Headline figures and warnings, which stand before the sections."""
    found = findings(run)
    box = warnings_box(found, level, slug(prefix, "warnings"))
    calm = ""
    if not found and run.summary.get("parameters"):
        calm = '<p class="soft">No warnings: every pruned layer is as sparse as it was planned to be.</p>'
    return cards(headline(run)) + (box or calm)


# -- models ------------------------------------------------------------------------------------------------------------


def _models(run: RunData, level: int) -> str:
    rows = measured(run)
    if not rows:
        return ""
    batches = list(dict.fromkeys(batch for row in rows for batch in row.latency))
    columns = ["Model", "Runtime", "Precision", "Top-1"]
    columns += [text for batch in batches for text in (f"Batch {batch}", "Speed-up")] + ["File", "Peak memory"]
    cells = [_model_row(row, batches) for row in rows]
    where = machine_text(run)
    said = f'<p class="soft small">Measured on {escape(where)}, models in turn; times are medians.</p>' if where else ""
    if all(row.top1 is None for row in rows):
        said += '<p class="small">Their accuracy was not measured: <code>benchmark --top1</code> or '
        said += "<code>--evaluate</code> does, and draws it against latency and size.</p>"
    drawn = "".join(pareto_charts([(run, row) for row in rows], [run]))
    charts = f'<div class="charts">{drawn}</div>' if drawn else ""
    numbers = range(3, len(columns))
    return said + table(columns, cells, label="Models in their runtimes", numbers=numbers) + charts


def _model_row(row: Measured, batches: list[str]) -> list[Any]:
    cells: list[Any] = [row.name, row.runtime, row.precision, None if row.top1 is None else f"{row.top1:.2f} %"]
    for batch in batches:
        time, factor = row.latency.get(batch), row.speedup.get(batch)
        cells += [None if time is None else milliseconds_text(time), None if factor is None else f"{factor:.2f}x"]
    cells.append(None if row.file_bytes is None else bytes_text(row.file_bytes))
    return [*cells, None if row.peak_memory is None else bytes_text(row.peak_memory)]


def pareto_charts(rows: list[tuple[RunData, Measured]], runs: Sequence[RunData]) -> list[str]:
    """Accuracy against latency (at the smallest batch) and against file size; of several runs each has its colour."""
    batch = next((batch for _, row in rows for batch in row.latency), "")
    fast = _points(rows, runs, lambda row: row.latency.get(batch), milliseconds_text)
    small = _points(rows, runs, lambda row: row.file_bytes and row.file_bytes / 1024, lambda x: bytes_text(1024 * x))
    label = f"milliseconds, batch {batch}"
    return [
        scatter_chart("Accuracy against latency", fast, x_label=label, y_label="top-1", unit="%"),
        scatter_chart("Accuracy against file size", small, x_label="KiB", y_label="top-1", unit="%"),
    ]


def _points(
    rows: list[tuple[RunData, Measured]],
    runs: Sequence[RunData],
    cost: Callable[[Measured], float | None],
    text: Callable[[float], str],
) -> list[Point]:
    """Models with a top-1 and a cost."""
    found = []
    alone = len(runs) == 1
    for run, row in rows:
        x = cost(row)
        if x is not None and row.top1 is not None:
            label = row.name if alone else f"{run.name}: {row.name}"
            number = None if alone else next(n for n, one in enumerate(runs) if one is run)
            found.append(Point(label, x, row.top1, f"{text(x)}, {row.top1:.2f} %", number))
    return found


# -- training and plan -------------------------------------------------------------------------------------------------


def _training(run: RunData, level: int) -> str:
    return training_charts(run)


def _plan(run: RunData, level: int) -> str:
    drawn = timeline_picture(run) + against_plan(run)
    return (f'<div class="charts">{drawn}</div>' if drawn else "") + predicted_sizes(run, level)


# -- layers ------------------------------------------------------------------------------------------------------------


def _layers(run: RunData, level: int) -> str:
    rows = _layer_rows(run)
    if not rows:
        return ""
    marked = [at for at, row in enumerate(rows) if is_off_plan(row)]
    columns = ["Layer", "Sparsity", "Planned", "Weight bits", "Activation bits", "Shape", "Values", "Note"]
    most = _MOST if level <= _ALONE else _MOST_EACH
    cells = [_layer_cells(row) for row in rows[:most]]
    label, numbers = "Layers", (1, 2, 3, 4, 6)
    note = ""
    if marked:
        note = '<p class="small">Highlighted: not as sparse as planned.</p>'
    first = table(columns, cells[:_LONG], label=label, numbers=numbers, marked=[n for n in marked if n < _LONG])
    if len(rows) <= _LONG:
        return note + first
    late = [n - _LONG for n in marked if n >= _LONG]
    rest = table(columns, cells[_LONG:], label="More layers", numbers=numbers, marked=late)
    if len(rows) > most:
        rest += f'<p class="soft small">{len(rows) - most} more layers are in the summary.json of the run.</p>'
    return note + first + details(f"{len(rows) - _LONG} more layers", rest)


def _layer_rows(run: RunData) -> list[dict[str, Any]]:
    """Layers with what was planned for them, pruned parameters without a row of their own, and bits of a file."""
    planned = {str(row.get("name")): dict(row) for row in mappings(run.summary.get("parameters"))}
    rows: dict[str, dict[str, Any]] = {}
    for row in mappings(run.summary.get("layers")):
        rows[str(row.get("name"))] = {**row, "achieved": row.get("sparsity"), **planned.pop(str(row.get("name")), {})}
    rows |= planned
    _add_planned_bits_(rows, run)
    for name, layer in _quantized(run).items():
        key = next((known for known in rows if known == name or known.rpartition(".")[0] == name), name)
        row = rows.setdefault(key, {"name": name})
        row["bits"] = finite(layer.get("Weight bits", layer.get("Weights"))) or row.get("bits")
        row["activation_bits"] = finite(layer.get("Input bits", layer.get("Activations"))) or row.get("activation_bits")
        row["note"] = layer.get("Why in floating point") or ""
    return list(rows.values())


def _add_planned_bits_(rows: dict[str, dict[str, Any]], run: RunData) -> None:
    """Layers without weights whose outputs are quantized in training: a model's ReLUs."""
    for policy in mappings(part(run.plan, "plan").get("policies")):
        for layer in mappings(policy.get("layers")):
            name, bits = str(layer.get("layer") or ""), finite(layer.get("activations"))
            if name and bits is not None and not any(known.rpartition(".")[0] == name for known in rows):
                rows.setdefault(name, {"name": name, "activation_bits": bits})


def _quantized(run: RunData) -> dict[str, Mapping[str, Any]]:
    """Layers of the file that was quantized, as they compute, else as they were quantized."""
    layers = mappings(part(run.quantization, "export").get("layers"))
    layers = layers or mappings(run.quantization.get("layers"))
    return {str(row.get("Name")): row for row in layers}


def _layer_cells(row: Mapping[str, Any]) -> list[Any]:
    shape = shape_of(row)
    achieved, planned = finite(row.get("achieved")), finite(row.get("planned"))
    bits, activations = finite(row.get("bits")), finite(row.get("activation_bits"))
    notes = ["not as planned"] if is_off_plan(row) else []
    notes += [f"float: {row['note']}"] if row.get("note") else []
    return [
        str(row.get("name") or ""),
        None if achieved is None else meter(achieved),
        None if planned is None else percent_text(planned),
        None if bits is None else f"{bits:g}",
        None if activations is None else f"{activations:g}",
        " × ".join(map(str, shape)),
        count_text(math.prod(shape)) if shape else None,
        Cell(f'<span class="bad">{escape("; ".join(notes))}</span>')
        if notes[:1] == ["not as planned"]
        else "; ".join(notes),
    ]


# -- values ------------------------------------------------------------------------------------------------------------


def _weights(run: RunData, level: int) -> str:
    return weight_pictures(run, _pictures(level))


def _pictures(level: int) -> int:
    return 96 if level <= _ALONE else 24


def _activations(run: RunData, level: int) -> str:
    if run.activations:
        return activation_pictures(run, _pictures(level))
    rows = [[name, *(f"{v[key]:.4g}" if key in v else None for key in ("min", "max", "mean", "std"))]
            for name, v in run.ranges.items()]  # fmt: skip
    columns = ["Layer", "Minimum", "Maximum", "Mean", "Deviation"]
    return table(columns, rows, label="Ranges of activations", numbers=(1, 2, 3, 4)) if rows else ""


# -- how it was made ---------------------------------------------------------------------------------------------------


def _schedule(run: RunData, level: int) -> str:
    return f'<pre tabindex="0">{escape(run.schedule)}</pre>' if run.schedule.strip() else ""


def _reproduce(run: RunData, level: int) -> str:
    command = run.environment.get("Command line", "")
    if command.partition(" ")[0].endswith(".py"):
        command = f"python {command}"
    facts = {
        key.replace("_", " "): value
        for key, value in run.summary.items()
        if key not in _NOT_FACTS and isinstance(value, str | int | float) and not isinstance(value, bool)
    }
    git = run.environment.get("Git", "")
    parts = [f'<pre tabindex="0">{escape(command)}</pre>' if command else ""]
    parts.append(f"<p>Code: {escape(git)}.</p>" if git.startswith("commit") else "")
    if run.schedule.strip():
        parts.append("<p>The schedule above is the file <code>schedule.yaml</code> of the run folder.</p>")
    asked = {key: value for key, value in facts.items() if key not in ("epochs done", "seconds")}
    if asked:
        parts += [heading(level, "Settings"), pairs(asked, "Settings")]
    rest = {name: value for name, value in run.environment.items() if name != "Command line" and value}
    if rest:
        parts += [heading(level, "Environment"), pairs(rest, "Environment")]
    return "".join(parts)


SECTIONS: Mapping[str, Callable[[RunData, int], str]] = {
    "Models in their runtimes": _models,
    "Early exits": exits_table,
    "Training": _training,
    "The plan": _plan,
    "Layers": _layers,
    "Weights": _weights,
    "Activations": _activations,
    "Schedule": _schedule,
    "How to reproduce": _reproduce,
}
