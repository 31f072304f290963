"""Results of commands in the folder of a run, for its report (layer 5)."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distiller_ng.errors import ArgumentError
from distiller_ng.ops.files import write_text_atomically

__all__ = ["add_run_argument", "given_run", "keep_benchmark", "keep_quantization"]


def add_run_argument(parser: argparse.ArgumentParser) -> None:
    """Add ``--run``."""
    parser.add_argument("--run", dest="run_dir", metavar="RUN_DIR", help="also keep the result in the folder of a run")


def given_run(options: argparse.Namespace) -> Path | None:
    """The folder of ``--run``; raises :class:`ArgumentError` where there is none."""
    if options.run_dir is None:
        return None
    path = Path(options.run_dir).expanduser()
    if not path.is_dir():
        raise ArgumentError(f"--run {options.run_dir}: there is no such folder")
    return path


def keep_benchmark(folder: Path, result: Mapping[str, Any]) -> Path:
    """Write ``benchmark.json``; models of an earlier one stay if they were measured on the same machine and batches.

    Speed-ups are then relative to the first model of both. Raises :class:`ArgumentError` for a file of another kind.
    """
    path = folder / "benchmark.json"
    merged = dict(result)
    if path.exists():
        merged = _merged(_read(path), result)
    return _write(path, merged)


def keep_quantization(folder: Path, content: Mapping[str, Any]) -> Path:
    """Write ``quantization.json``: layers with their bits, and what was written."""
    return _write(folder / "quantization.json", content)


def _merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Old rows in their places, measured again or not, then new ones; speed-ups relative to the first."""
    fresh = {row["name"]: row for row in new["rows"]}
    batches = set(new["rows"][0]["latency"])
    is_same = old.get("machine") == new["machine"] and old.get("clock") == new["clock"]
    fits = all(row["name"] in fresh or set(row.get("latency") or ()) == batches for row in old.get("rows", []))
    if not (is_same and fits):
        return dict(new)
    rows = [fresh.pop(row["name"], row) for row in old.get("rows", [])] + list(fresh.values())
    first = rows[0]["latency"]
    rows = [{**row, "speedup": {b: first[b] / max(t, 1e-9) for b, t in row["latency"].items()}} for row in rows]
    return {**new, "rows": rows, "top1": {**old.get("top1", {}), **new.get("top1", {})}}


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ArgumentError(f"{path} is no JSON: {error}") from error
    rows = content.get("rows", []) if isinstance(content, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) and "name" in row for row in rows):
        raise ArgumentError(f"{path} is no result of a benchmark; remove it, or name another folder")
    return dict(content)


def _write(path: Path, content: Mapping[str, Any]) -> Path:
    return write_text_atomically(path, json.dumps(content, indent=1, default=str) + "\n")
