"""What a run folder holds, read for the report (layer 4)."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distiller_ng.errors import ArgumentError

__all__ = ["Curve", "RunData", "read_run"]

#: ``[(epoch, value), ...]``
Curve = list[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class RunData:
    """One run: ``summary`` (``summary.json``), ``curves`` by group and name (``metrics.jsonl``), the ``schedule``'s
    text, ``benchmark`` (``benchmark.json``: models measured in runtimes, with their ``top1``), ``environment`` (the
    first lines of the log).

    ``sparsities``: ``{parameter: sparsity over the epochs}``.
    """

    name: str
    summary: Mapping[str, Any]
    curves: Mapping[str, Mapping[str, Curve]] = field(default_factory=dict)
    sparsities: Mapping[str, Curve] = field(default_factory=dict)
    total_sparsity: Curve = field(default_factory=list)
    schedule: str = ""
    benchmark: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)


def read_run(folder: str | os.PathLike[str]) -> RunData:
    """Read a run folder of the application; of its files only ``summary.json`` must exist.

    Raises :class:`ArgumentError` for a folder that is none, and for files that hold something else.
    """
    path = Path(folder)
    if not path.is_dir():
        raise ArgumentError(f"{path} is no folder of a run")
    if not (path / "summary.json").exists():
        raise ArgumentError(f"{path} has no summary.json: it is no run folder, or the run did not finish")
    curves, sparsities, total = _curves(path / "metrics.jsonl")
    schedule = path / "schedule.yaml"
    return RunData(
        path.name,
        _json(path / "summary.json"),
        curves,
        sparsities,
        total,
        schedule.read_text(encoding="utf-8") if schedule.exists() else "",
        _json(path / "benchmark.json") if (path / "benchmark.json").exists() else {},
        _environment(path),
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ArgumentError(f"{path} is no JSON: {error}") from error
    if not isinstance(content, dict):
        raise ArgumentError(f"{path} must hold a mapping, got {type(content).__name__}")
    return content


def _curves(path: Path) -> tuple[dict[str, dict[str, Curve]], dict[str, Curve], Curve]:
    curves: dict[str, dict[str, Curve]] = {}
    sparsities: dict[str, Curve] = {}
    total: Curve = []
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    for number, line in enumerate(lines, start=1):
        try:
            event = json.loads(line)
            epoch = float(event["epoch"])
            if event["event"] == "weights_sparsity":
                total.append((epoch, float(event["total_sparsity"])))
                for name, value in event["parameters"].items():
                    sparsities.setdefault(name, []).append((epoch, float(value)))
                continue
            group = str(event["group"]).rpartition("/")[2]
            # Training reports within its epoch, everything else when the epoch is over.
            done = float(event["completed"]) / max(float(event["total"]), 1.0) if group == "Training" else 1.0
            if epoch < 0:
                continue
            for name, value in event["metrics"].items():
                curves.setdefault(group, {}).setdefault(str(name), []).append((epoch + done, float(value)))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ArgumentError(f"{path}:{number} holds no event of a run: {type(error).__name__}: {error}") from error
    return curves, sparsities, total


def _environment(path: Path) -> dict[str, str]:
    """The first lines of the log, ``Python: 3.11.7`` and the like, up to the first that is none."""
    found: dict[str, str] = {}
    log = next(iter(sorted(path.glob("*.log"))), None)
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if log else []:
        name, colon, value = line.partition(" - ")[2].partition(": ")
        if not colon or len(name) > 40:
            break
        found[name] = value
    return found
