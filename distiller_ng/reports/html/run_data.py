"""What a run folder holds, read for the report (layer 4)."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from distiller_ng.data_loggers.collecting import HISTOGRAMS_FILE, STATS_FILE
from distiller_ng.data_loggers.quant_stats_file import load_quant_stats
from distiller_ng.errors import ArgumentError, CalibrationError, listed
from distiller_ng.reports.activation_histograms import collected_histograms
from distiller_ng.reports.html.parts import finite

__all__ = ["Bars", "Curve", "RunData", "name_and_time", "read_run"]

#: ``[(epoch, value), ...]``; a value that was not finite is NaN.
Curve: TypeAlias = list[tuple[float, float]]
_BARS = 48
_STAMPED = re.compile(r"(.+)___(\d{4})\.(\d\d)\.(\d\d)-(\d\d)(\d\d)\d\d(?:_\d+)?")
_RANGE = ("min", "max", "mean", "std")
#: What a summary of ours has at least one of.
_KNOWN = {"top1_after", "top1_before", "total_sparsity", "parameters", "layers", "status", "metrics_after", "epochs"}


@dataclass(frozen=True, slots=True)
class Bars:
    """A histogram to draw: ``counts`` in equal bins from ``low`` to ``high``, and ``zeros`` counted apart."""

    low: float
    high: float
    counts: Sequence[float]
    zeros: float = 0.0


@dataclass(frozen=True, slots=True)
class RunData:
    """One run: ``summary`` (``summary.json``), ``curves`` by group and name (``metrics.jsonl``), the ``schedule``'s
    text, ``benchmark`` (``benchmark.json``: models measured in runtimes, with their ``top1``), ``quantization``
    (``quantization.json``: layers of a quantized file), ``plan`` (``plan.json``), ``environment``, histograms of
    ``weights`` (``{"before": {name: bars}, "after": ...}``) and ``activations``, or the ``ranges`` of these.

    ``sparsities``: ``{parameter: sparsity over the epochs}``. ``has_summary``: False for a run that left none.
    """

    name: str
    summary: Mapping[str, Any]
    curves: Mapping[str, Mapping[str, Curve]] = field(default_factory=dict)
    sparsities: Mapping[str, Curve] = field(default_factory=dict)
    total_sparsity: Curve = field(default_factory=list)
    schedule: str = ""
    benchmark: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    quantization: Mapping[str, Any] = field(default_factory=dict)
    plan: Mapping[str, Any] = field(default_factory=dict)
    weights: Mapping[str, Mapping[str, Bars]] = field(default_factory=dict)
    activations: Mapping[str, Bars] = field(default_factory=dict)
    ranges: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    has_summary: bool = True
    path: str = ""

    @property
    def is_finished(self) -> bool:
        """Whether the run came to its end."""
        return self.has_summary and self.summary.get("status", "finished") == "finished"


def read_run(folder: str | os.PathLike[str]) -> RunData:
    """Read the folder of a run, finished or not; what it does not have is left out.

    Raises :class:`ArgumentError` for a folder that is none, and for files that hold something else.
    """
    path = Path(folder).expanduser()
    if path.is_file():
        raise ArgumentError(f"{path} is a file; a report is made of the folder of a run")
    if not path.is_dir():
        raise ArgumentError(f"{path} is no folder of a run")
    summary = _json(path / "summary.json")
    metrics = path / "metrics.jsonl"
    benchmark = _benchmark(path / "benchmark.json")
    activations = _activations(path / HISTOGRAMS_FILE)
    if summary and not _KNOWN & summary.keys():
        raise ArgumentError(f"{path / 'summary.json'} is not the summary of a run of ours")
    if not (summary or metrics.exists() or benchmark or activations):
        runs = sorted(p.parent.name for kind in ("summary.json", "metrics.jsonl") for p in path.glob(f"*/{kind}"))
        inside = f". These in it are: {listed(dict.fromkeys(runs))}" if runs else ""
        raise ArgumentError(
            f"{path} is no folder of a run: it has no summary.json, metrics.jsonl or benchmark.json. Runs of the "
            f"application and of distiller.record_run have{inside}"
        )
    curves, sparsities, total = _curves(metrics)
    schedule = path / "schedule.yaml"
    return RunData(
        path.resolve().name,
        summary,
        curves,
        sparsities,
        total,
        schedule.read_text(encoding="utf-8", errors="replace") if schedule.exists() else "",
        benchmark,
        _environment(path),
        _json(path / "quantization.json"),
        _plan(path / "plan.json"),
        {moment: _bars(found) for moment, found in _json(path / "histograms.json").items()},
        activations,
        {} if activations else _ranges(path / STATS_FILE),
        bool(summary) or not metrics.exists(),
        str(folder),
    )


def name_and_time(folder: str) -> tuple[str, str]:
    """What the application calls a folder, apart: ``agp___2026.11.21-102036`` -> ``agp``, ``2026-11-21 10:20``."""
    found = _STAMPED.fullmatch(folder)
    if found is None:
        return folder, ""
    name, *digits = found.groups()
    return name, "{}-{}-{} {}:{}".format(*digits)


def _json(path: Path) -> dict[str, Any]:
    """A mapping; empty without the file."""
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ArgumentError(f"{path} is no JSON: {error}") from error
    if not isinstance(content, dict):
        raise ArgumentError(f"{path} must hold a mapping, got {type(content).__name__}")
    return content


def _benchmark(path: Path) -> dict[str, Any]:
    content = _json(path)
    rows = content.get("rows", [])
    if not isinstance(rows, list) or not all(isinstance(row, dict) and _is_text(row.get("name")) for row in rows):
        raise ArgumentError(f"{path} is no result of a benchmark: its rows must be mappings with a name")
    return content


def _plan(path: Path) -> dict[str, Any]:
    """``{"plan": ..., "timeline": ...}``; what ``plan --json`` prints has the plan's fields beside the timeline."""
    content = _json(path)
    if content and "plan" not in content:
        return {"plan": {k: v for k, v in content.items() if k != "timeline"}, "timeline": content.get("timeline", {})}
    return content


def _curves(path: Path) -> tuple[dict[str, dict[str, Curve]], dict[str, Curve], Curve]:
    curves: dict[str, dict[str, Curve]] = {}
    sparsities: dict[str, Curve] = {}
    total: Curve = []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    for number, line in enumerate(lines, start=1):
        try:
            event = json.loads(line)
        except ValueError as error:
            if number == len(lines) and number > 1:  # an interrupted run's last line may be cut off
                break
            raise ArgumentError(f"{path}:{number} holds no event of a run: {error}") from error
        try:
            epoch = float(event["epoch"])
            if event["event"] == "weights_sparsity":
                total.append((epoch + 1, _value(event["total_sparsity"])))
                for name, value in event["parameters"].items():
                    sparsities.setdefault(name, []).append((epoch + 1, _value(value)))
            elif event["event"] == "training" and epoch >= 0:
                _take(event, epoch, curves)
            elif event["event"] == "test":
                event["metrics"].items()
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            raise ArgumentError(f"{path}:{number} holds no event of a run: {type(error).__name__}: {error}") from error
    return curves, sparsities, total


def _take(event: Mapping[str, Any], epoch: float, curves: dict[str, dict[str, Curve]]) -> None:
    group = str(event["group"]).rpartition("/")[2]
    # Training reports within its epoch, everything else when the epoch is over.
    done = float(event["completed"]) / max(float(event["total"]), 1.0) if group == "Training" else 1.0
    for name, value in event["metrics"].items():
        curves.setdefault(group, {}).setdefault(str(name), []).append((epoch + done, _value(value)))


def _value(value: Any) -> float:
    """Values that were not finite are null in the file."""
    return math.nan if value is None else float(value)


def _bars(found: Any) -> dict[str, Bars]:
    """The weights of one moment; entries that are no histograms are left out."""
    bars = {}
    for name, one in (found if isinstance(found, Mapping) else {}).items():
        given = one if isinstance(one, Mapping) else {}
        low, high, zeros = (finite(given.get(key)) for key in ("low", "high", "zeros"))
        listed = given.get("counts")
        counts = [finite(count) for count in listed] if isinstance(listed, list) else []
        known = [count for count in counts if count is not None and count >= 0]
        if low is not None and high is not None and low < high and known and len(known) == len(counts):
            bars[str(name)] = Bars(low, high, known, max(zeros or 0.0, 0.0))
    return bars


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _activations(path: Path) -> dict[str, Bars]:
    """Outputs of every layer, in fewer bins."""
    if not path.exists():
        return {}
    try:
        collected = collected_histograms(path)
    except CalibrationError as error:
        raise ArgumentError(str(error)) from error
    found = {}
    for layer, which, histogram in collected:
        if which == "output":
            few = histogram.rebinned(histogram.low, histogram.high, _BARS)
            found[layer or "the model"] = Bars(few.low, few.high, few.counts.tolist())
    return found


def _ranges(path: Path) -> dict[str, dict[str, float]]:
    """Minimum, maximum and mean of every layer's output, of calibration statistics."""
    if not path.exists():
        return {}
    try:
        stats = load_quant_stats(path)
    except (CalibrationError, ArgumentError) as error:
        raise ArgumentError(f"{path}: {error}") from error
    found = {}
    for layer, entry in stats.items():
        output = entry.get("output") or {}
        numbers = {key: finite(output.get(key)) for key in _RANGE}
        found[layer or "the model"] = {key: value for key, value in numbers.items() if value is not None}
    return {layer: values for layer, values in found.items() if values}


def _environment(path: Path) -> dict[str, str]:
    """``environment.json``, else the first lines of the log, ``Python: 3.11.7`` and the like."""
    known = _json(path / "environment.json")
    if known:
        return {str(name): str(value) for name, value in known.items()}
    found: dict[str, str] = {}
    log = next(iter(sorted(path.glob("*.log"))), None)
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if log else []:
        name, colon, value = line.partition(" - ")[2].partition(": ")
        if not colon or len(name) > 40:
            break
        found[name] = value
    return found
