"""Several runs side by side: a table, Pareto plots, curves over each other (layer 4)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from distiller_ng.reports.html.charts import Line, Point, line_chart, scatter_chart
from distiller_ng.reports.html.figures import accuracies, headline, is_less_better
from distiller_ng.reports.html.findings import findings
from distiller_ng.reports.html.measured import measured
from distiller_ng.reports.html.parts import Cell, count_text, finite
from distiller_ng.reports.html.run_data import RunData
from distiller_ng.reports.html.sections import pareto_charts
from distiller_ng.reports.html.style import SERIES

__all__ = ["comparison"]


def comparison(runs: Sequence[RunData], anchors: Sequence[str]) -> tuple[list[str], list[list[Any]], str]:
    """Columns and rows of the table, a row a run, and the charts."""
    names: list[str] = []
    figures = [headline(run, everything=True) for run in runs]
    for found in figures:
        names += [one.what for one in found if one.what not in names]
    rows: list[list[Any]] = []
    for run, found, anchor in zip(runs, figures, anchors, strict=True):
        by_name = {one.what: one for one in found}
        cells: list[Any] = [_link(run.name, anchor)]
        for name in names:
            one = by_name.get(name)
            cells.append(None if one is None else one.after + (f" ({one.change})" if one.change else ""))
        rows.append([*cells, _warned(run), str(run.summary.get("schedule") or "")])
    said = '<p class="soft small">In brackets: against the same run before compression.</p>'
    charts = [
        *pareto_charts([(run, row) for run in runs for row in measured(run)], runs),
        *_trained(runs),
        *_curves(runs),
    ]
    drawn = "".join(chart for chart in charts if chart)
    return ["Run", *names, "Warnings", "Schedule"], rows, said + (f'<div class="charts">{drawn}</div>' if drawn else "")


def _warned(run: RunData) -> Cell | None:
    """How many warnings a run has; those that say that it is not what it should be stand out."""
    found = findings(run)
    serious = sum(one.is_serious for one in found)
    return Cell(f'<span class="bad">{serious} serious</span>') if serious else Cell(str(len(found))) if found else None


def _link(name: str, anchor: str) -> Cell:
    return Cell(f'<a href="#{anchor}">{Cell.of(name).html}</a>')


def _trained(runs: Sequence[RunData]) -> list[str]:
    """The trained models themselves: accuracy against what is left of them."""
    costs: tuple[tuple[str, str, Callable[[float], str]], ...] = (
        ("macs", "MACs", count_text),
        ("nonzero", "non-zero parameters", count_text),
    )
    measures = [name for run in runs if (name := accuracies(run)[0]) and accuracies(run)[2] is not None]
    if not measures:
        return []
    measure = max(measures, key=measures.count)  # runs that measured something else have no place in the picture
    unit, down = "%" if measure.startswith("Top") else "", bool(is_less_better(measure))
    return [
        scatter_chart(
            f"{measure} against {label}", points, x_label=label, y_label=measure, unit=unit, less_is_better=down
        )
        for key, label, text in costs
        if len(points := _model_points(runs, measure, key, text)) > 1 and len({point.x for point in points}) > 1
    ]


def _model_points(runs: Sequence[RunData], measure: str, key: str, text: Callable[[float], str]) -> list[Point]:
    found = []
    for number, run in enumerate(runs):
        name, _, after = accuracies(run)
        model = run.summary.get("model")
        last = model.get("after") if isinstance(model, dict) else None
        cost = finite(last.get(key)) if isinstance(last, dict) else None
        if name == measure and after is not None and cost is not None:
            shown = f"{after:.2f} %" if name.startswith("Top") else f"{after:.4g}"
            found.append(Point(run.name, cost, after, f"{text(cost)}, {shown}", number, str(number + 1)))
    return found


def _curves(runs: Sequence[RunData]) -> list[str]:
    top1 = [_line(run, n, run.curves.get("Validation", {}).get("Top1", [])) for n, run in enumerate(runs)]
    zeros = [_line(run, n, [(x, 100 * y) for x, y in run.total_sparsity]) for n, run in enumerate(runs)]
    return [
        line_chart("Top-1 on the validation set", top1, y_label="top-1", unit="%"),
        line_chart("Sparsity of all weights", zeros, y_label="zeros", unit="%", low=0.0),
    ]


def _line(run: RunData, number: int, points: list[tuple[float, float]]) -> Line:
    return Line(run.name, points, number % SERIES, number // SERIES % 3)
