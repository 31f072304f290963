"""Timing variants in turn, and naming the machine they ran on (layer 1).

Other work on a machine comes and goes; variants that are called in turn suffer from it alike, so their ratios within
one round mean something where single times do not.
"""

from __future__ import annotations

import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch

from distiller_ng.errors import ArgumentError, did_you_mean

__all__ = ["CLOCKS", "Step", "interleave", "machine", "ratio"]

#: One call of a variant.
Step: TypeAlias = Callable[[], object]
#: ``cpu`` counts the time of this process alone (all its threads), ``wall`` what passes meanwhile.
CLOCKS: Mapping[str, Callable[[], float]] = {"cpu": time.process_time, "wall": time.perf_counter}


def interleave(
    steps: Mapping[str, Step], seconds: float, least: int = 5, *, clock: str = "cpu", warmups: int = 2
) -> dict[str, list[float]]:
    """Seconds of each variant in every round, called in turn until the time is used up.

    The order is drawn anew for each round (the same in every run): with neighbours that never change, one variant would
    always find the caches that the same other one left, which is worth tens of percent for a call of a millisecond.

    ``least``: rounds to make in any case. ``warmups``: calls of each variant before. Raises :class:`ArgumentError` for
    an unknown clock. ``interleave({"a": f, "b": g}, 1.0)`` -> ``{"a": [0.0021, ...], "b": [0.0019, ...]}``.
    """
    if clock not in CLOCKS:
        raise ArgumentError(f"unknown clock {clock!r}. {did_you_mean(clock, CLOCKS)}", argument=("clock",))
    now = CLOCKS[clock]
    times: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        for _ in range(warmups):
            step()
    order, draw, start, rounds = list(steps), random.Random(0), time.perf_counter(), 0
    while rounds < least or time.perf_counter() - start < seconds:
        draw.shuffle(order)
        for name in order:
            begin = now()
            steps[name]()
            times[name].append(now() - begin)
        rounds += 1
    return times


def ratio(times: Mapping[str, Sequence[float]], name: str, base: str) -> float:
    """Median over rounds of the ratio of two variants timed in the same round."""
    return statistics.median(a / b for a, b in zip(times[name], times[base], strict=True))


def machine() -> dict[str, Any]:
    """What a result was measured on: processor, cores, torch's version and threads."""
    return {"cpu": _cpu(), "cores": os.cpu_count(), "torch": torch.__version__, "threads": torch.get_num_threads()}


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
