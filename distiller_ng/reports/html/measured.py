"""The models of a run that were measured in runtimes (layer 4)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distiller_ng.reports.html.parts import finite, part
from distiller_ng.reports.html.run_data import RunData

__all__ = ["Measured", "machine_text", "measured"]


@dataclass(frozen=True, slots=True)
class Measured:
    """One row of a benchmark, with what of it is a number."""

    name: str
    runtime: str
    precision: str
    latency: Mapping[str, float]
    speedup: Mapping[str, float]
    file_bytes: float | None
    peak_memory: float | None
    top1: float | None
    note: str


def measured(run: RunData) -> list[Measured]:
    """The rows of the run's benchmark; a file without a top-1 there has the one ``quantize`` measured of it.

    Where one model alone was measured, the run's own accuracy is its.
    """
    rows = run.benchmark.get("rows") or []
    paths = part(run.quantization, "export").get("paths")
    of_file = part(part(run.quantization, "accuracy"), "file").get("top1")
    scores = {Path(str(path)).name: of_file for path in (paths if isinstance(paths, list) else [])}
    if len(rows) == 1 and "float" in str(rows[0].get("precision")):
        scores = {rows[0]["name"]: run.summary.get("top1_after")} | scores
    scores |= part(run.benchmark, "top1")
    return [
        Measured(
            str(row["name"]),
            str(row.get("runtime") or ""),
            str(row.get("precision") or ""),
            _numbers(row.get("latency")),
            _numbers(row.get("speedup")),
            finite(row.get("file_bytes")) or None,
            finite(row.get("peak_memory")),
            finite(scores.get(row["name"])),
            str(row.get("note") or ""),
        )
        for row in rows
    ]


def machine_text(run: RunData) -> str:
    """``AMD EPYC, 1 of 2 threads, torch 2.13.0``."""
    machine = run.benchmark.get("machine")
    if not isinstance(machine, Mapping):
        return ""
    parts = [str(machine.get("cpu") or "unknown processor")]
    if machine.get("threads"):
        of = f" of {machine['cores']}" if machine.get("cores") else ""
        parts.append(f"{machine['threads']}{of} threads")
    return ", ".join(parts + ([f"torch {machine['torch']}"] if machine.get("torch") else []))


def _numbers(value: Any) -> dict[str, float]:
    found = value if isinstance(value, Mapping) else {}
    return {str(key): number for key, one in found.items() if (number := finite(one)) is not None}
