"""The page: headline, models in their runtimes, curves, layers, schedule, environment (layer 4)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from distiller_ng.errors import ArgumentError
from distiller_ng.ops.files import write_text_atomically
from distiller_ng.reports.html.charts import Point, line_chart, scatter_chart
from distiller_ng.reports.html.run_data import Curve, RunData, read_run
from distiller_ng.reports.html.style import STYLE

__all__ = ["write_html_report"]

_MOST_LINES = 18  # a chart with more lines cannot be read: the rest stays in the table


def write_html_report(
    runs: Iterable[RunData | str | os.PathLike[str]], output: str | os.PathLike[str], *, title: str = ""
) -> Path:
    """Write one self-contained HTML page about runs (folders, or what :func:`read_run` gave); the path.

    Several runs are compared first. It has no scripts and loads nothing. Raises :class:`ArgumentError` for no runs and
    for folders that are none. Example: ``write_html_report(["logs/agp___2026.11.21"], "report.html")``.
    """
    found = [run if isinstance(run, RunData) else read_run(run) for run in runs]
    if not found:
        raise ArgumentError("a report needs the folder of at least one run", argument=("runs",))
    heading = title or (found[0].name if len(found) == 1 else f"{len(found)} runs compared")
    body = [f"<h1>{escape(heading)}</h1>"]
    if len(found) > 1:
        body.append(_comparison(found))
    for run in found:
        if len(found) > 1:
            body.append(f"<h2>{escape(run.name)}</h2>")
        body += [part for section in _SECTIONS if (part := section(run))]
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(heading)}</title>"
    )
    page = f'<!DOCTYPE html>\n<html lang="en"><head>{head}<style>{STYLE}</style></head>\n<body>\n'
    return write_text_atomically(output, page + "\n".join(body) + "\n</body></html>\n")


# -- sections of one run -----------------------------------------------------------------------------------------------


def _headline(run: RunData) -> str:
    summary = run.summary
    cards = []
    before, after = summary.get("top1_before"), summary.get("top1_after")
    if after is not None:
        change = "" if before is None else f"top-1, from {before:.2f} % ({after - before:+.2f})"
        cards.append((f"{after:.2f} %", change or "top-1"))
    if summary.get("total_sparsity"):
        cards.append((f"{summary['total_sparsity']:.2%}", "of the weights are zero"))
    rows = run.benchmark.get("rows") or []
    if len(rows) > 1:
        first, last = rows[0], rows[-1]
        if first.get("file_bytes") and last.get("file_bytes"):
            cards.append((f"{last['file_bytes'] / first['file_bytes']:.2f}x", f"file size, {last['name']}"))
        for batch, factor in last.get("speedup", {}).items():
            cards.append((f"{factor:.2f}x", f"speed at batch {batch}, {last['name']} in {last['runtime']}"))
    if not cards:
        return ""
    what = [str(summary[key]) for key in ("arch", "dataset", "schedule") if summary.get(key)]
    shown = "".join(f'<div class="card"><b>{escape(big)}</b><span>{escape(small)}</span></div>' for big, small in cards)
    return f'<p class="soft">{escape(" · ".join(what))}</p><div class="cards">{shown}</div>'


def _warnings(run: RunData) -> str:
    found = run.summary.get("warnings") or []
    items = "".join(f"<li>{escape(str(one))}</li>" for one in found)
    return f"<h3>Warnings</h3><ul>{items}</ul>" if items else ""


def _models(run: RunData) -> str:
    rows = run.benchmark.get("rows") or []
    if not rows:
        return ""
    top1, batches = run.benchmark.get("top1", {}), list(rows[0]["latency"])
    columns = ["Model", "Runtime", "Precision", *(["Top-1"] if top1 else [])]
    columns += [text for batch in batches for text in (f"ms, batch {batch}", f"x, batch {batch}")] + ["File (KiB)"]
    cells = []
    for row in rows:
        line: list[Any] = [row["name"], row["runtime"], row["precision"]]
        line += [f"{top1[row['name']]:.2f}" if row["name"] in top1 else ""] if top1 else []
        line += [text for b in batches for text in (f"{row['latency'][b]:.3f}", f"{row['speedup'][b]:.2f}")]
        cells.append([*line, f"{row['file_bytes'] / 1024:,.1f}" if row["file_bytes"] else ""])
    machine = run.benchmark.get("machine", {})
    where = f"{machine.get('cpu', 'unknown machine')}, {machine.get('threads', '?')} threads"
    notes = "".join(f"<li>{escape(text)}</li>" for text in dict.fromkeys(row.get("note") for row in rows) if text)
    note = f"<ul>{notes}</ul>" if notes else ""
    chart = _pareto("Accuracy against latency", [run], batches[0]) if top1 else ""
    return (
        f'<h3>Models in their runtimes</h3><p class="soft">{escape(where)}</p>{_table(columns, cells, 3)}{note}{chart}'
    )


def _curves(run: RunData) -> str:
    groups = run.curves
    charts = [
        line_chart("Loss", _pick(groups, ("Overall Loss", "Loss")), y_label="loss"),
        line_chart("Top-1 accuracy", _pick(groups, ("Top1",)), y_label="%"),
        line_chart("Learning rate", _pick(groups, ("LR",))),
        line_chart("Sparsity", _sparsity_lines(run), y_label="fraction of zeros"),
    ]
    drawn = "".join(chart for chart in charts if chart)
    return f'<h3>Training</h3><div class="charts">{drawn}</div>' if drawn else ""


def _pick(groups: Mapping[str, Mapping[str, Curve]], names: Sequence[str]) -> dict[str, Curve]:
    """``{"Training": curve, ...}`` of the first of ``names`` that each group has."""
    found = {}
    for group, metrics in groups.items():
        name = next((one for one in names if one in metrics), None)
        if name is not None:
            found[group] = metrics[name]
    return found


def _sparsity_lines(run: RunData) -> dict[str, Curve]:
    if not any(value for _, value in run.total_sparsity):
        return {}
    moving = {name: curve for name, curve in run.sparsities.items() if any(value for _, value in curve)}
    largest = sorted(moving, key=lambda name: -moving[name][-1][1])[:_MOST_LINES]
    return {"all weights": run.total_sparsity} | {name: moving[name] for name in moving if name in largest}


def _layers(run: RunData) -> str:
    parameters = run.summary.get("parameters") or []
    if not parameters:
        return ""
    rows = []
    for one in parameters:
        planned, achieved = one.get("planned"), one.get("achieved")
        shape = "x".join(str(size) for size in one.get("shape", ()))
        bits = one.get("bits")
        rows.append([one["name"], shape, _percent(planned), _percent(achieved), "" if bits is None else str(bits)])
    columns = ["Parameter", "Shape", "Planned sparsity", "Achieved", "Bits"]
    if not any(row[-1] for row in rows):
        columns, rows = columns[:-1], [row[:-1] for row in rows]
    return f"<h3>Planned and achieved</h3>{_table(columns, rows, 2)}"


def _schedule(run: RunData) -> str:
    if not run.schedule:
        return ""
    return f"<details><summary>The schedule</summary><pre>{escape(run.schedule)}</pre></details>"


def _environment(run: RunData) -> str:
    if not run.environment:
        return ""
    rows = [[name, value] for name, value in run.environment.items() if name != "Command line"]
    command = run.environment.get("Command line", "")
    again = f"<h3>How to reproduce</h3><pre>{escape(command)}</pre>" if command else ""
    return f"{again}<details><summary>Environment</summary>{_table(['', ''], rows, 2)}</details>"


_SECTIONS: tuple[Callable[[RunData], str], ...] = (
    _headline,
    _warnings,
    _models,
    _curves,
    _layers,
    _schedule,
    _environment,
)


# -- several runs ------------------------------------------------------------------------------------------------------


def _comparison(runs: Sequence[RunData]) -> str:
    rows = []
    for run in runs:
        summary = run.summary
        numbers = [summary.get("top1_before"), summary.get("top1_after")]
        shown = ["" if number is None else f"{number:.2f}" for number in numbers]
        rows.append([run.name, str(summary.get("schedule", "")), *shown, _percent(summary.get("total_sparsity"))])
    table = _table(["Run", "Schedule", "Top-1 before", "Top-1 after", "Sparsity"], rows, 2)
    batch = next((next(iter(run.benchmark["rows"][0]["latency"])) for run in runs if run.benchmark.get("rows")), "1")
    charts = _pareto("Accuracy against latency", runs, batch) + _pareto("Accuracy against file size", runs, None)
    accuracy = {run.name: _pick(run.curves, ("Top1",)).get("Validation", []) for run in runs}
    return f"<h2>Comparison</h2>{table}{charts}{line_chart('Top-1 on validation images', accuracy, y_label='%')}"


def _pareto(title: str, runs: Sequence[RunData], batch: str | None) -> str:
    """Models of all runs: top-1 over milliseconds at ``batch``, or over KiB of the file where it is None."""
    points = []
    for run in runs:
        for row in run.benchmark.get("rows") or []:
            top1 = run.benchmark.get("top1", {}).get(row["name"])
            x = row["file_bytes"] / 1024 if batch is None else row["latency"].get(batch, float("nan"))
            label = row["name"] if len(runs) == 1 else f"{run.name}: {row['name']}"
            if top1 is not None and x:
                points.append(Point(label, x, top1))
    x_label = "KiB" if batch is None else f"milliseconds, batch {batch}"
    return scatter_chart(title, points, x_label=x_label, y_label="top-1 (%)")


def _percent(value: Any) -> str:
    return "" if value is None else f"{float(value):.2%}"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]], text_columns: int) -> str:
    """A table whose first ``text_columns`` are text, the others numbers."""

    def cells(tag: str, values: Sequence[str]) -> str:
        kinds = ["" if at < text_columns else ' class="number"' for at in range(len(values))]
        return "".join(f"<{tag}{kind}>{escape(str(one))}</{tag}>" for kind, one in zip(kinds, values, strict=True))

    head = f"<thead><tr>{cells('th', columns)}</tr></thead>" if any(columns) else ""
    lines = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f'<div class="wide"><table>{head}<tbody>{lines}</tbody></table></div>'
