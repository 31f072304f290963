"""What the benchmarks share: timing variants in turn, naming the machine, the command line."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from distiller_ng.ops.timing import Step, interleave, machine, ratio

__all__ = ["Step", "interleave", "machine", "ratio", "run_benchmark"]


def run_benchmark(description: str | None, measured: Callable[[bool], Iterable[dict[str, Any]]]) -> int:
    """Print each result as a JSON object on a line; with ``--output`` write them all, with the machine.

    ``measured`` is told whether ``--quick`` was given.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="under 50 seconds, noisier")
    parser.add_argument("--output", type=Path, help="also write all results, with the machine, as JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results = []
    for result in measured(arguments.quick):
        results.append(result)
        print(json.dumps(result), flush=True)
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps({"machine": machine(), "results": results}, indent=1) + "\n")
    return 0
