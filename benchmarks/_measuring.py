"""What the benchmarks share: timing variants in turn, and naming the machine."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

Step = Callable[[], None]


def interleave(steps: dict[str, Step], seconds: float, least: int = 5) -> dict[str, list[float]]:
    """CPU seconds of each variant, called in turn (in a rotating order) until the time is used up."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        step(), step()
    order, start, rounds = list(steps), time.perf_counter(), 0
    while rounds < least or time.perf_counter() - start < seconds:
        for name in order:
            begin = time.process_time()
            steps[name]()
            times[name].append(time.process_time() - begin)
        order = order[1:] + order[:1]
        rounds += 1
    return times


def ratio(times: dict[str, list[float]], name: str, base: str) -> float:
    """Median over rounds of the ratio of two variants timed in the same round."""
    return statistics.median(a / b for a, b in zip(times[name], times[base], strict=True))


def machine() -> dict[str, Any]:
    """What a result was measured on."""
    return {"cpu": _cpu(), "cores": os.cpu_count(), "torch": torch.__version__, "threads": torch.get_num_threads()}


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
