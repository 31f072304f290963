"""How fast, how large, how much memory: models measured in the runtimes they run in (layer 4)."""

from __future__ import annotations

import json
import math
import os
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

import torch
from torch import nn

from distiller_ng.errors import ArgumentError
from distiller_ng.export.benchmarking_memory import peak_memory
from distiller_ng.export.benchmarking_runtimes import Subject, as_subject
from distiller_ng.graph.inputs import ExampleInputs, ExampleInputsLike, as_example_inputs, with_batch
from distiller_ng.graph.trace import evaluating
from distiller_ng.ops.files import write_text_atomically
from distiller_ng.ops.table import Table
from distiller_ng.ops.timing import CLOCKS, Step, interleave, machine, ratio

__all__ = ["BenchmarkResult", "BenchmarkRow", "benchmark_model"]

#: What can be measured: a module (also compiled, or of a runtime), or a file.
Measurable: TypeAlias = "nn.Module | str | os.PathLike[str]"
_FAILURES = (RuntimeError, ValueError, TypeError, IndexError, KeyError, AssertionError)


@dataclass(frozen=True, slots=True)
class BenchmarkRow:
    """One model. ``latency``: ``{batch size: median milliseconds of one call}``; ``throughput``: samples a second.

    ``speedup``: median of the first model's time over this one's, within each round. ``precision``: ``int8`` where
    integer kernels run, ``simulated`` for quantization computed in floating point. ``peak_memory``: bytes that the
    model adds to a process at the largest batch, None where not measured (``note`` says why).
    """

    name: str
    runtime: str
    precision: str
    latency: Mapping[int, float]
    throughput: Mapping[int, float]
    speedup: Mapping[int, float]
    file_bytes: int
    peak_memory: int | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class BenchmarkResult:
    """All rows, in the order given, and what they were measured on; ``print(result)``."""

    rows: tuple[BenchmarkRow, ...]
    machine: Mapping[str, Any]
    clock: str
    rounds: Mapping[int, int]

    def __getitem__(self, name: str) -> BenchmarkRow:
        found = next((row for row in self.rows if row.name == name), None)
        if found is None:
            raise ArgumentError(f"no model {name!r} was measured; there are {', '.join(r.name for r in self.rows)}")
        return found

    def table(self) -> Table:
        """One row a model; speed-ups are relative to the first."""
        batches = list(self.rows[0].latency)
        columns = ["Model", "Runtime", "Precision"]
        for batch in batches:
            columns += [f"ms, batch {batch}", f"samples/s, {batch}", f"x, {batch}"]
        columns += ["File (KiB)", "Peak memory (MiB)"]
        rows = []
        for row in self.rows:
            cells: list[Any] = [row.name, row.runtime, row.precision]
            for batch in batches:
                speed = f"{row.speedup[batch]:.2f}"
                cells += [f"{row.latency[batch]:.3f}", f"{row.throughput[batch]:,.0f}", speed]
            cells.append(f"{row.file_bytes / 1024:,.0f}" if row.file_bytes else None)
            cells.append(None if row.peak_memory is None else f"{row.peak_memory / 2**20:.1f}")
            rows.append(tuple(cells))
        about = self.machine
        where = f"{about['cpu']}, {about['threads']} of {about['cores']} threads"
        title = f"{where}, torch {about['torch']}, {self.clock} time"
        return Table(title, tuple(columns), tuple(rows))

    def __str__(self) -> str:
        notes = sorted({row.note for row in self.rows if row.note})
        return "\n".join([str(self.table()), *(f"note: {note}" for note in notes)])

    def to_json(self, path: str | os.PathLike[str] | None = None) -> str:
        """Everything as JSON text; written to ``path`` too if one is given."""
        text = json.dumps(
            {
                "machine": dict(self.machine),
                "clock": self.clock,
                "rounds": dict(self.rounds),
                "rows": [asdict(row) for row in self.rows],
            },
            indent=2,
        )
        if path is not None:
            write_text_atomically(path, text + "\n")
        return text


def benchmark_model(
    models: Measurable | Mapping[str, Measurable],
    example_inputs: ExampleInputsLike,
    *,
    batches: Sequence[int] = (1, 128),
    threads: int = 1,
    seconds: float = 2.0,
    clock: str = "wall",
    memory: bool = True,
) -> BenchmarkResult:
    """Measure models side by side: latency, throughput, file size, peak memory.

    ``models``: one, or ``{name: model}``; the first is what the others are compared with. A model is a module (run
    eagerly, or compiled: ``torch.compile(net)``), the ``model`` of an export report, or a file: ``.onnx`` runs in ONNX
    Runtime, ``.xml`` in OpenVINO, ``.pt2`` in torch's compiler with int8 kernels.

    The models take turns in every round, so that other load meets all of them; times are medians, speed-ups medians of
    the ratios within a round, and differences under some 20 % mean nothing on a shared machine. ``batches``: sizes,
    made from the first sample of ``example_inputs``. ``seconds`` for all models together at each size, at least five
    rounds. ``clock``: ``"wall"``, or ``"cpu"`` for the time of this process alone, which other processes disturb less
    (use it with one thread). ``memory``: also run each model at the largest size in a process of its own. ::

        result = benchmark_model({"fp32": net, "int8": "net.int8.onnx"}, images, batches=(1, 64))
        print(result)
        result["int8"].speedup[64]        # 1.8
        result.to_json("benchmark.json")

    Raises :class:`ArgumentError` for no models, sizes below 1, and a model that does not run at a size;
    ``FileNotFoundError`` for a missing file. Modes and threads are as before afterwards.
    """
    given = dict(models) if isinstance(models, Mapping) else {"model": models}
    if not given:
        raise ArgumentError("benchmark_model measures models, got none", argument=("models",))
    sizes = _checked(batches, threads, seconds, clock)
    inputs = as_example_inputs(example_inputs)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        subjects = [as_subject(str(name), value, threads) for name, value in given.items()]
        times = {size: _times(subjects, with_batch(inputs, size), size, seconds, clock) for size in sizes}
        largest = with_batch(inputs, max(sizes))
        peaks = [peak_memory(one, largest, threads) if memory else (None, "") for one in subjects]
        about = machine()
    finally:
        torch.set_num_threads(before)
    rows = tuple(_row(one, times, subjects[0].name, peak) for one, peak in zip(subjects, peaks, strict=True))
    return BenchmarkResult(rows, about, clock, {size: len(times[size][subjects[0].name]) for size in sizes})


def _checked(batches: Sequence[int], threads: int, seconds: float, clock: str) -> list[int]:
    sizes = [batches] if isinstance(batches, int) else list(batches)
    for name, values in (("batches", sizes), ("threads", [threads])):
        if not values or any(isinstance(one, bool) or not isinstance(one, int) or one < 1 for one in values):
            raise ArgumentError(f"{name}: whole numbers from 1, got {values}", argument=(name,))
    if not isinstance(seconds, int | float) or not math.isfinite(seconds) or seconds < 0:
        raise ArgumentError(f"seconds is a number from 0, got {seconds!r}", argument=("seconds",))
    if clock not in CLOCKS:
        raise ArgumentError(f"clock is one of {', '.join(CLOCKS)}, got {clock!r}", argument=("clock",))
    return list(dict.fromkeys(sizes))


def _times(
    subjects: Sequence[Subject], inputs: ExampleInputs, size: int, seconds: float, clock: str
) -> dict[str, list[float]]:
    steps: dict[str, Step] = {}
    with torch.no_grad(), _all_evaluating(subjects):
        for subject in subjects:
            try:
                inputs.call(subject.model)
            except _FAILURES as error:
                reason = str(error).strip().partition("\n")[0]
                message = f"{subject.name!r} does not run with batch {size}: {reason}. Measure other batches=..."
                raise ArgumentError(message, argument=("batches",)) from error
            steps[subject.name] = _call(subject.model, inputs)
        return interleave(steps, seconds, clock=clock)


def _call(model: nn.Module, inputs: ExampleInputs) -> Step:
    return lambda: inputs.call(model)


@contextmanager
def _all_evaluating(subjects: Sequence[Subject]) -> Iterator[None]:
    """Eval mode for all, put back in the order of entering's reverse."""
    if not subjects:
        yield
        return
    with evaluating(subjects[0].model), _all_evaluating(subjects[1:]):
        yield


def _row(
    subject: Subject, times: Mapping[int, Mapping[str, Sequence[float]]], first: str, peak: tuple[int | None, str]
) -> BenchmarkRow:
    latency = {size: 1000 * statistics.median(found[subject.name]) for size, found in times.items()}
    return BenchmarkRow(
        subject.name,
        subject.runtime,
        subject.precision,
        latency,
        {size: 1000 * size / max(milliseconds, 1e-9) for size, milliseconds in latency.items()},
        {size: ratio(found, first, subject.name) for size, found in times.items()},
        subject.file_bytes,
        *peak,
    )
