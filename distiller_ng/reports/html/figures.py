"""What a run was worth, in figures: accuracy, size, speed, work before and after (layer 4)."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from html import escape
from typing import Any

from distiller_ng.reports.html.measured import Measured, machine_text, measured
from distiller_ng.reports.html.parts import (
    bytes_text,
    count_text,
    finite,
    milliseconds_text,
    part,
    percent_text,
    times_text,
)
from distiller_ng.reports.html.run_data import Curve, RunData

__all__ = [
    "NOISE",
    "Figure",
    "accuracies",
    "cards",
    "headline",
    "is_less_better",
]

#: Results that stand for accuracy where there is no top-1, in the order in which they are looked for.
_SCORES = ("Accuracy", "Top5", "Score", "F1", "f1", "mAP", "map")
#: Words in names of results that say which way is better.
_LESS_IS_BETTER = {"bpc", "cer", "err", "fid", "mae", "mape", "mse", "nll", "ppl", "rmse", "wer"}
_MORE_IS_BETTER = {"auc", "bleu", "dice", "f1", "iou", "map", "miou", "precision", "psnr", "r2", "recall", "ssim"}

#: Times that differ by less mean nothing on a machine with other work.
NOISE = 0.1


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure: what it is now and was before, as text; ``change`` says the difference, ``is_good`` how to see it."""

    what: str
    after: str
    before: str = ""
    change: str = ""
    is_good: bool | None = None
    note: str = ""


def accuracies(run: RunData) -> tuple[str, float | None, float | None]:
    """What was measured, before and after: ``("Top-1 accuracy", 97.5, 96.9)``; None where it was not."""
    before, after = finite(run.summary.get("top1_before")), finite(run.summary.get("top1_after"))
    if after is not None or before is not None:
        return "Top-1 accuracy", before, after
    firsts, lasts = part(run.summary, "metrics_before"), part(run.summary, "metrics_after")
    for name in (*_SCORES, *lasts):
        if finite(lasts.get(name)) is not None:
            return name, finite(firsts.get(name)), finite(lasts.get(name))
    curve = next((c["Top1"] for group, c in run.curves.items() if group == "Validation" and "Top1" in c), [])
    found = [value for _, value in curve if finite(value) is not None]
    return "Top-1 accuracy (validation)", None, found[-1] if found else None


def is_less_better(name: str) -> bool | None:
    """Whether a small value of what is called ``name`` is the good one; None for names that do not say it."""
    words = set(re.split("[^a-z0-9]+", name.lower()))
    if words & _LESS_IS_BETTER or any(part in name.lower() for part in ("loss", "error", "perplexity")):
        return True
    is_known = name in _SCORES or name.startswith("Top") or "acc" in name.lower() or words & _MORE_IS_BETTER
    return False if is_known else None


def headline(run: RunData, *, everything: bool = False) -> list[Figure]:
    """The figures that matter most, those that are known; the model's own size only where no file's is known, or with
    ``everything``."""
    makers: list[Callable[[RunData], Figure | None]] = [_accuracy, _deployed, _speed, _file_size, _weights, _macs]
    if everything or _file_size(run) is None:
        makers.insert(4, _model_size)
    return [figure for maker in makers if (figure := maker(run)) is not None]


def cards(figures: list[Figure]) -> str:
    """Figures as a row of cards."""
    items = []
    for one in figures:
        kind = {True: ' class="good"', False: ' class="bad"', None: ""}[one.is_good]
        change = f"<span{kind}>{escape(one.change)}</span>" if one.change else ""
        was = f"was {escape(one.before)}" if one.before else ""
        line = ", ".join(part for part in (was, change) if part)
        items.append(
            f'<li class="card"><span class="what">{escape(one.what)}</span><b class="big">{escape(one.after)}</b>'
            + (f'<span class="was">{line}</span>' if line else "")
            + (f'<span class="note">{escape(one.note)}</span>' if one.note else "")
            + "</li>"
        )
    return f'<ul class="cards">{"".join(items)}</ul>' if items else ""


# -- figures -----------------------------------------------------------------------------------------------------------


def _accuracy(run: RunData) -> Figure | None:
    name, before, after = accuracies(run)
    note = ""
    if after is None:
        means = [value for value in _epoch_means(run.curves.get("Training", {})) if finite(value) is not None]
        if not means:
            return None
        name, before, after = "Training loss", means[0], means[-1]
        note = "mean of the first and of the last epoch; nothing else was measured"
    is_percent = name.startswith("Top")
    text = (lambda value: f"{value:.2f} %") if is_percent else (lambda value: f"{value:.4g}")
    return replace(_scored(name, before, after, text, " points" if is_percent else ""), note=note)


def _epoch_means(metrics: Mapping[str, Curve]) -> list[float]:
    """The loss at the end of every epoch, which is its mean over the epoch."""
    last = {math.ceil(x): y for x, y in metrics.get("Overall Loss", ())}
    return [last[epoch] for epoch in sorted(last)]


def _deployed(run: RunData) -> Figure | None:
    """Accuracy of the last measured model, as it runs."""
    rows = measured(run)
    scored = [row for row in rows if row.top1 is not None]
    if not rows:
        return _quantized(run)
    if len(rows) < 2 or not scored or rows[-1].top1 is None:
        return None
    first = scored[0].top1 if scored[0].name != rows[-1].name else None
    figure = _scored("Top-1 as deployed", first, rows[-1].top1, lambda value: f"{value:.2f} %", " points")
    return replace(figure, note=_where(rows[-1]))


def _quantized(run: RunData) -> Figure | None:
    """Accuracy of the file that ``quantize`` wrote, where it was measured."""
    scores = part(run.quantization, "accuracy")
    before, after = (finite(part(scores, which).get("top1")) for which in ("model", "file"))
    if after is None:
        return None
    figure = _scored("Top-1 as deployed", before, after, lambda value: f"{value:.2f} %", " points")
    return replace(figure, note="the quantized file in its runtime; before: the model")


def _scored(what: str, before: float | None, after: float, text: Callable[[float], str], unit: str) -> Figure:
    if before is None:
        return Figure(what, text(after))
    change = after - before
    shown = f"{change:+.2f}{unit}" if unit else f"{change:+.3g}"
    if unit:  # a point is what people give away for a smaller model; half of one is within what training varies by
        return Figure(what, text(after), text(before), shown, True if change > 0 else False if change < -1 else None)
    less = is_less_better(what)
    is_good = None if less is None or change == 0 else (change < 0) == less
    return Figure(what, text(after), text(before), shown, is_good)


def _speed(run: RunData) -> Figure | None:
    rows = measured(run)
    if not rows or not rows[-1].latency:
        return None
    batch = min(rows[-1].latency, key=_as_size)
    now, machine = rows[-1].latency[batch], machine_text(run)
    note = f"batch {batch}, {_where(rows[-1])}" + (f"; {machine}" if machine else "")
    base = _baseline(rows, batch)
    if base is None:
        return Figure("Latency", milliseconds_text(now), note=note)
    before = base.latency[batch]
    factor = before / now if now else 1.0
    change, note = times_text(factor, 1.0, "faster", "slower"), f"{note}; before: {_where(base)}"
    return Figure("Latency", milliseconds_text(now), milliseconds_text(before), change, _judged(factor, NOISE), note)


def _baseline(rows: list[Measured], batch: str) -> Measured | None:
    """What the last row is compared with: the first in the same runtime, so that a runtime's gain is not claimed."""
    others = [row for row in rows[:-1] if row.latency.get(batch)]
    same = [row for row in others if row.runtime == rows[-1].runtime]
    return next(iter(same or others), None)


def _file_size(run: RunData) -> Figure | None:
    rows = [row for row in measured(run) if row.file_bytes]
    export = part(run.quantization, "export")
    now, before = finite(export.get("bytes")), finite(export.get("float_bytes"))
    if not rows and now and before:
        return _sized("File size", before, now, "quantized; before: the same in floating point")
    if len(rows) < 2 or not rows[0].file_bytes or not rows[-1].file_bytes:
        return None
    return _sized("File size", rows[0].file_bytes, rows[-1].file_bytes, f"{rows[-1].name}; before: {rows[0].name}")


def _model_size(run: RunData) -> Figure | None:
    model = _model(run)
    before, now = finite(model["before"].get("bytes")), finite(model["after"].get("bytes"))
    if before is None or now is None:
        return None
    at_bits = finite(model["after"].get("bytes_at_bits")) or now
    where = "weights at their bits, as a file of integers holds them" if at_bits < now else "in memory"
    return _sized("Model size", before, at_bits, f"{where}; zeros stored as values")


def _sized(what: str, before: float, now: float, note: str) -> Figure:
    change = times_text(before, now, "smaller", "larger")
    return Figure(what, bytes_text(now), bytes_text(before), change, _judged(before / now if now else 1.0), note)


def _weights(run: RunData) -> Figure | None:
    sparsity, model = finite(run.summary.get("total_sparsity")), _model(run)
    before, now = finite(model["before"].get("nonzero")), finite(model["after"].get("nonzero"))
    if before is None or now is None:
        return Figure("Sparsity", percent_text(sparsity), note="of the weights are zero") if sparsity else None
    change = times_text(before, now, "fewer", "more")
    note = f"{percent_text(sparsity)} of the weights are zero" if sparsity else ""
    good = _judged(before / now if now else 1.0)
    return Figure("Non-zero parameters", count_text(now), count_text(before), change, good, note)


def _macs(run: RunData) -> Figure | None:
    model = _model(run)
    before, now = finite(model["before"].get("macs")), finite(model["after"].get("macs"))
    if before is None or now is None:
        return None
    change = times_text(before, now, "fewer", "more")
    note = "multiply-accumulates of one input, zeros included"
    return Figure("MACs", count_text(now), count_text(before), change, _judged(before / now if now else 1.0), note)


def _judged(factor: float, tolerance: float = 0.005) -> bool | None:
    return True if factor > 1 + tolerance else False if factor < 1 - tolerance else None


def _where(row: Measured) -> str:
    return ", ".join(part for part in (row.name, row.runtime, row.precision) if part)


def _model(run: RunData) -> dict[str, Mapping[str, Any]]:
    return {moment: part(part(run.summary, "model"), moment) for moment in ("before", "after")}


def _as_size(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("inf")
