"""The folder of one run: log, checkpoints, CSV, JSON lines, TensorBoard events and results (layer 5)."""

from __future__ import annotations

import csv
import io
import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from distiller_ng.apputils.run_facts import bits_by_module, layer_facts, model_facts, weight_histograms
from distiller_ng.apputils.run_results import RunResults
from distiller_ng.checkpoint import save_checkpoint
from distiller_ng.core.scheduler import CompressionScheduler
from distiller_ng.data_loggers import (
    CsvLogger,
    DataLogger,
    JsonLinesLogger,
    NullLogger,
    PythonLogger,
    TensorBoardLogger,
)
from distiller_ng.errors import ArgumentError, DistillerError
from distiller_ng.graph.inputs import ExampleInputs
from distiller_ng.ops.files import write_text_atomically
from distiller_ng.reports._plan_rehearsal import is_structural
from distiller_ng.reports._plan_sizes import PredictedSizes
from distiller_ng.reports.schedule_plan import schedule_plan
from distiller_ng.reports.schedule_timeline import schedule_timeline

__all__ = ["NO_SIZES", "RunFolder", "RunState", "predicted_sizes"]

_RESULTS = (
    "acts_histograms.pt",
    "acts_quantization_stats.yaml",
    "benchmark.json",
    "histograms.json",
    "metrics.jsonl",
    "plan.json",
    "schedule.yaml",
    "summary.json",
    "training.csv",
    "weights_sparsity.csv",
)

#: Values of a model that is not copied any more to try removals on.
_MOST_TO_COPY = 200_000_000
#: Where nothing was predicted.
NO_SIZES = PredictedSizes(())

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RunState:
    """What a checkpoint is made of."""

    arch: str
    model: nn.Module
    optimizer: Optimizer | None
    scheduler: CompressionScheduler
    schedule_text: str | None


def predicted_sizes(
    scheduler: CompressionScheduler,
    steps_per_epoch: float,
    epochs: int | None,
    inputs: ExampleInputs | None,
    before: Mapping[str, Any] | None = None,
) -> PredictedSizes:
    """What the model will cost after each step of its schedule; nothing where that cannot be planned.

    Removals are tried on copies of the model, as it is now, unless it is too large or its parameters are shared out
    over processes. ``before``: :func:`~distiller_ng.apputils.run_facts.model_facts` of the model at the beginning of a
    run whose first epoch has begun to change it.
    """
    parameters = list(scheduler.model.parameters())
    is_sharded = any(hasattr(parameter, "full_tensor") for parameter in parameters)
    if is_sharded or sum(parameter.numel() for parameter in parameters) > _MOST_TO_COPY:
        return NO_SIZES
    if any(is_structural(entry) for entry in scheduler.entries):
        logger.info("Trying on copies of the model what the schedule removes, to predict sizes")
    try:
        plan = schedule_plan(scheduler, steps_per_epoch, epochs, predict=True, example_inputs=inputs)
    except DistillerError:  # told by keep_plan
        return NO_SIZES
    known, rows = set(scheduler.notes), list(plan.sizes)
    if before:
        rows[0] = replace(
            rows[0], parameters=before["parameters"], nonzero=before["nonzero"], size_bytes=before["bytes"]
        )
    return PredictedSizes(tuple(rows), tuple(note for note in plan.notes if note not in known))


class RunFolder:
    """Writes everything a run leaves behind, into ``path``; the application and the recorder of other loops share it.

    ``metrics.jsonl``, ``training.csv``, ``weights_sparsity.csv``, the checkpoints ``[name_]checkpoint.pth.tar`` and
    ``[name_]best.pth.tar``, ``schedule.yaml``, ``plan.json``, ``environment.json``, ``histograms.json``,
    ``summary.json``, and TensorBoard's events where that is installed (``tensorboard=False``: never). Without ``log``
    nothing is printed. Raises :class:`ArgumentError` when ``histograms`` are wanted without TensorBoard.
    """

    def __init__(
        self,
        path: Path,
        log: logging.Logger | None,
        *,
        name: str | None = None,
        histograms: bool = False,
        tensorboard: bool = True,
    ) -> None:
        self.path, self.name = path, name
        if histograms and find_spec("tensorboard") is None:
            raise ArgumentError("--param-hist draws in TensorBoard: pip install 'distiller_ng[tensorboard]'")
        self.console: DataLogger = NullLogger() if log is None else PythonLogger(log)
        has_events = tensorboard and find_spec("tensorboard") is not None
        self.tensorboard: DataLogger = TensorBoardLogger(path) if has_events else NullLogger()
        files: list[DataLogger] = [CsvLogger("", path), JsonLinesLogger(path / "metrics.jsonl")]
        self.loggers = [self.tensorboard, self.console, *files]

    def keep_schedule(self, text: str) -> None:
        """Keep a copy of the schedule the run uses."""
        write_text_atomically(self.path / "schedule.yaml", text)

    def keep_environment(self, environment: Mapping[str, Any]) -> None:
        """Write ``environment.json``: versions, machine, command line."""
        self._write_json("environment.json", environment)

    def keep_plan(
        self,
        scheduler: CompressionScheduler,
        steps_per_epoch: float,
        epochs: int | None = None,
        *,
        sizes: PredictedSizes = NO_SIZES,
    ) -> None:
        """Write ``plan.json``, what the schedule will do, with the ``sizes`` that :func:`predicted_sizes` expects.

        A schedule that cannot be planned leaves it out.
        """
        try:
            plan = replace(schedule_plan(scheduler, steps_per_epoch, epochs), sizes=sizes.rows)
            timeline = schedule_timeline(scheduler, steps_per_epoch, epochs, optimizer=scheduler.optimizer)
        except DistillerError as error:
            logger.warning("the plan of the schedule was not written: %s", error)
            return
        content = {"plan": plan.as_dict(), "timeline": timeline.as_dict(), "size_notes": list(sizes.notes)}
        self._write_json("plan.json", content)

    def record_start(self, results: RunResults, scheduler: CompressionScheduler, inputs: ExampleInputs | None) -> None:
        """Note in ``results`` what the model is, and its weights in ``histograms.json``, before training."""
        results.model_before = model_facts(scheduler.model, inputs)
        self.keep_histograms(scheduler.model, "before")

    def record_state(self, results: RunResults, scheduler: CompressionScheduler, inputs: ExampleInputs | None) -> None:
        """Note what the model is now, with its layers and their bits."""
        results.model_after = model_facts(scheduler.model, inputs, scheduler)
        results.layers = layer_facts(scheduler.model, bits_by_module(scheduler))

    def record_end(self, results: RunResults, scheduler: CompressionScheduler, inputs: ExampleInputs | None) -> None:
        """The same at the end of training, with its weights in ``histograms.json``."""
        self.record_state(results, scheduler, inputs)
        self.keep_histograms(scheduler.model, "after")

    def keep_histograms(self, model: nn.Module, moment: str) -> None:
        """Add the weights of ``moment`` (``"before"``, ``"after"``) to ``histograms.json``."""
        known = self._read_json("histograms.json")
        self._write_json("histograms.json", {**known, moment: weight_histograms(model)})

    def save(self, state: RunState, epoch: int, *, extras: Mapping[str, Any], is_best: bool) -> None:
        """Write the checkpoint of a finished epoch, and the best one if it is that."""
        self._write(state, epoch, extras=extras, is_best=is_best, name=self.name)

    def save_final(self, state: RunState, epoch: int) -> None:
        """Write ``[name_]final_checkpoint.pth.tar``: the model after the schedule's last actions."""
        self._write(state, epoch, extras={}, is_best=False, name=f"{self.name}_final" if self.name else "final")

    def save_results(self, results: RunResults) -> None:
        """Write ``summary.json``."""
        results.save(self.path / "summary.json")

    def results_so_far(self) -> dict[str, Any]:
        """What ``summary.json`` says of an earlier part of this run; empty without one."""
        return self._read_json("summary.json")

    def events(self) -> list[dict[str, Any]]:
        """The lines of ``metrics.jsonl``; a last one that was cut off is left out."""
        path = self.path / "metrics.jsonl"
        found = []
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
            try:
                found.append(json.loads(line))
            except ValueError:
                break
        return [event for event in found if isinstance(event, dict)]

    def forget(self) -> None:
        """Remove what another run left here, but for its log and checkpoints."""
        for name in _RESULTS:
            (self.path / name).unlink(missing_ok=True)

    def continue_at(self, epoch: int, completed: int = 0, total: int = 0) -> None:
        """Forget what an interrupted run measured after the point it goes on from: ``completed`` of ``total``
        minibatches of ``epoch``. When all are done, its validation is too, but not the epoch's end."""

        def is_kept(row: Mapping[str, Any]) -> bool:
            at = int(row.get("epoch") or 0)  # -1: outside training
            if at != epoch:
                return at < epoch
            of_training = "Training" in str(row.get("group"))
            if of_training or not 0 < total <= completed:
                return of_training and int(row.get("completed") or 0) <= completed
            return "group" in row

        path = self.path / "metrics.jsonl"
        if path.exists():
            lines = [json.dumps(event) + "\n" for event in self.events() if is_kept(event)]
            write_text_atomically(path, "".join(lines))
        table = self.path / "training.csv"
        if table.exists():
            with open(table, encoding="utf-8", newline="") as file:
                reader = csv.reader(file)
                rows = list(reader)
            head, body = rows[:1], rows[1:]
            kept = [row for row in body if head and is_kept(dict(zip(head[0], row, strict=False)))]
            text = io.StringIO(newline="")
            csv.writer(text, lineterminator="\n").writerows(head + kept)
            write_text_atomically(table, text.getvalue())

    def discard_unused(self) -> None:
        """Remove the folder of a run that ended before it measured or saved anything; any other stays."""
        self.close()
        if not (self.path / "metrics.jsonl").exists() and not list(self.path.glob("*.pth.tar")):
            shutil.rmtree(self.path, ignore_errors=True)

    def close(self) -> None:
        """Finish writing."""
        for one in self.loggers:
            one.close()

    # -- internals --------------------------------------------------------------------------------------------------

    def _write_json(self, name: str, content: Mapping[str, Any]) -> None:
        write_text_atomically(self.path / name, json.dumps(content, indent=1, default=str) + "\n")

    def _read_json(self, name: str) -> dict[str, Any]:
        path = self.path / name
        if not path.exists():
            return {}
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ArgumentError(f"{path} is no JSON: {error}") from error
        return content if isinstance(content, dict) else {}

    def _write(
        self, state: RunState, epoch: int, *, extras: Mapping[str, Any], is_best: bool, name: str | None
    ) -> None:
        save_checkpoint(
            epoch,
            state.arch,
            state.model,
            state.optimizer,
            state.scheduler,
            extras,
            is_best,
            name,
            self.path,
            schedule_text=state.schedule_text,
        )
