"""Results of a sensitivity analysis as a table, and as a picture (layer 4)."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping
from typing import TypeAlias

from distiller_ng.errors import ArgumentError, did_you_mean
from distiller_ng.ops.files import replacing, write_text_atomically
from distiller_ng.ops.optional import require
from distiller_ng.ops.scores import Scores

__all__ = ["Sensitivities", "sensitivities_to_csv", "sensitivities_to_png"]

#: ``{parameter: {level: (top1, top5, loss)}}``, top1 and top5 in percent.
Sensitivities: TypeAlias = Mapping[str, Mapping[float, Scores]]

_METRICS = ("top1", "top5", "loss")


def sensitivities_to_csv(sensitivities: Sensitivities, fname: str | os.PathLike[str]) -> None:
    """Write ``parameter,sparsity,top1,top5,loss``, one line a measurement, in one step."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["parameter", "sparsity", *_METRICS])
    for name, levels in sensitivities.items():
        writer.writerows([name, level, *scores] for level, scores in levels.items())
    write_text_atomically(fname, text.getvalue())


def sensitivities_to_png(sensitivities: Sensitivities, fname: str | os.PathLike[str], *, metric: str = "top1") -> None:
    """Draw one line a parameter: ``metric`` (``top1``, ``top5`` or ``loss``) over the level.

    The parameters that lose most at their last level stand first in the legend. Raises :class:`ArgumentError` for
    another metric, and without matplotlib.
    """
    if metric not in _METRICS:
        raise ArgumentError(f"unknown metric {metric!r}. {did_you_mean(metric, _METRICS)}", argument=("metric",))
    figure_class = require("matplotlib.figure", "plots", "drawing sensitivities").Figure
    at = _METRICS.index(metric)
    lines = {name: [(level, scores[at]) for level, scores in levels.items()] for name, levels in sensitivities.items()}
    worst_first = sorted(lines, key=lambda name: lines[name][-1][1], reverse=metric == "loss")
    height = max(4.5, 0.2 * len(lines) + 1)
    figure = figure_class(figsize=(10, height), layout="constrained")
    axes = figure.add_subplot()
    for number, name in enumerate(worst_first):
        style = ("-", "--", "-.", ":")[number // 10 % 4]  # ten colours: lines beyond them differ by style
        axes.plot(*zip(*lines[name], strict=True), style, marker=".", label=name)
    axes.set(xlabel="level", ylabel=metric if metric == "loss" else f"{metric} (%)")
    axes.grid(alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize="small", title="most sensitive first")
    with replacing(fname) as file:
        figure.savefig(file, format="png", dpi=110)
