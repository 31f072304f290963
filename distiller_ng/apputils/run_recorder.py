"""A run folder from a training loop of your own, for ``distiller-ng report`` (layer 5)."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor

from distiller_ng.apputils.log_setup import execution_env_state
from distiller_ng.apputils.run_facts import first_inputs, model_facts
from distiller_ng.apputils.run_folder import NO_SIZES, RunFolder, predicted_sizes
from distiller_ng.apputils.run_measuring import (
    EpochLosses,
    already_done,
    doubts,
    learning_rate,
    named_numbers,
    save_activation_histograms,
    schedule_text,
    validations,
)
from distiller_ng.apputils.run_results import RunResults, first_pruning_epoch
from distiller_ng.core.distributed import is_main_process
from distiller_ng.core.observer import RunObserver
from distiller_ng.core.policy import LossComponent
from distiller_ng.core.scheduler import CompressionScheduler
from distiller_ng.core.summary import CompressionSummary
from distiller_ng.data_loggers import log_training_progress, log_weights_sparsity
from distiller_ng.errors import ArgumentError
from distiller_ng.graph.inputs import ExampleInputs, ExampleInputsLike, as_example_inputs
from distiller_ng.names import unwrap
from distiller_ng.reports._plan_sizes import PredictedSizes

__all__ = ["RunRecorder", "record_run"]

_TRAINING, _VALIDATION, _TEST = "Performance/Training/", "Performance/Validation/", "Performance/Test/"
_REPORTED = {"min": "Loss", "max": "Score"}  # what scheduler.report calls results
_LINES_AN_EPOCH = 10
_ANY_STEPS = 100  # an epoch, before its loader is known; sizes do not depend on them
_OBJECTIVE, _OVERALL = "Objective Loss", "Overall Loss"


def record_run(
    folder: str | os.PathLike[str],
    scheduler: CompressionScheduler,
    *,
    schedule: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    example_inputs: ExampleInputsLike | None = None,
    facts: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    tensorboard: bool = False,
) -> RunRecorder:
    """Record what a training loop with ``scheduler`` does, into ``folder``, from now on.

    Losses (also what policies add), learning rate and sparsities are collected through the scheduler, in the short form
    and in a loop that calls the hooks; only what you measure has to be given, with :meth:`RunRecorder.log`::

        run = distiller.record_run("runs/agp", scheduler, schedule="schedule.yaml")
        for epoch in scheduler.epochs(30):
            for x, y in scheduler.minibatches(loader):
                optimizer.zero_grad()
                scheduler.backward(criterion(model(x), y))
                optimizer.step()
            run.log(top1=accuracy(model), loss=validation_loss)  # percent

    Then ``distiller-ng report runs/agp``. ``schedule``: the file or dictionary, to keep a copy of. ``example_inputs``:
    what the model is called with, to count its MACs; left out, the first minibatch of the loader is used.
    ``facts``: what else the report should show (``{"dataset": "flowers", "batch_size": 64}``). ``tensorboard``: also
    write its events.

    Files are complete after every epoch, so an interrupted run can be reported. A run that is resumed (load the
    checkpoint as always) and recorded into the same folder goes on there: what was measured after the checkpoint is
    forgotten. Training is the same, bit for bit, with and without it. With several processes rank 0 writes.

    Raises :class:`ArgumentError` for a schedule that is no file, for something that is no scheduler, and, when the
    first epoch begins, for a folder that holds another run (``overwrite=True`` replaces it).
    """
    if not isinstance(scheduler, CompressionScheduler):
        raise ArgumentError(f"expected a CompressionScheduler, got {type(scheduler).__name__}", argument=("scheduler",))
    path = Path(folder).expanduser()
    if path.exists() and not path.is_dir():
        raise ArgumentError(f"{path} is a file, not a folder", argument=("folder",))
    text = schedule_text(schedule)
    inputs = None if example_inputs is None else as_example_inputs(example_inputs)
    recorder = RunRecorder(path, scheduler, text, inputs, dict(facts or {}), overwrite, tensorboard)
    if is_main_process():
        scheduler.observers.append(recorder)
    return recorder


class RunRecorder(RunObserver):
    """Made by :func:`record_run`; ``path`` is its folder. Use it as a context manager to note why a run stopped."""

    def __init__(
        self,
        path: Path,
        scheduler: CompressionScheduler,
        schedule_text: str,
        inputs: ExampleInputs | None,
        facts: dict[str, Any],
        overwrite: bool,
        tensorboard: bool,
    ) -> None:
        self.path, self._scheduler, self._text = path, scheduler, schedule_text
        self._inputs, self._overwrite, self._tensorboard = inputs, overwrite, tensorboard
        self._folder: RunFolder | None = None
        self._results = RunResults({"model_class": type(unwrap(scheduler.model)).__name__, **facts})
        self._early: list[dict[str, float]] = []  # logged before it was known whether this run is a resumed one
        self._logged: set[str] = set()
        self._epoch, self._done, self._steps = -1, 0, 0
        self._losses = EpochLosses()
        self._began, self._seconds = time.monotonic(), 0.0
        self._first_pruning: int | None = None
        self._not_finite: set[int] = set()
        self._sizes: PredictedSizes | None = NO_SIZES  # None: once it is known what the model is called with

    def log(self, **values: Any) -> None:
        """Keep results: of the open epoch, of the model before training, or after it, depending on when it is called.

        ``top1`` and ``top5`` are percent, ``loss`` the mean loss; any other name is taken as it is (``f1=0.81``). The
        last ones before the first epoch that prunes are the report's "before", the last of all its "after". Raises
        :class:`ArgumentError` for values that are no numbers.
        """
        found = named_numbers(values)
        if not is_main_process() or not found:
            return
        self._logged.update(found)
        if self._folder is None:
            self._early.append(found)
            return
        self._keep(found)

    def collect_activations(self, batches: Iterable[Any]) -> None:
        """Histograms of all activations on ``batches`` (a loader, a list), into the folder; runs the model twice.

        The model is in evaluation mode meanwhile. Raises :class:`CalibrationError` for batches it does not run on.
        """
        if is_main_process():
            save_activation_histograms(self._scheduler.model, batches, self.path)

    def close(self, status: str = "finished") -> None:
        """Stop listening and write what there is; ``status`` says how the run ended."""
        if self in self._scheduler.observers:
            self._scheduler.observers.remove(self)
        if self._folder is not None:
            self._save(status if self._results.status == "running" else self._results.status)
            self._folder.close()

    def __enter__(self) -> RunRecorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close("finished" if kind is None else f"stopped by {kind.__name__}")

    def epoch_began(self, epoch: int) -> None:
        """Open the folder in the first epoch; begin counting."""
        if self._folder is None:
            self._open(epoch)
        self._epoch, self._done, self._losses = epoch, 0, EpochLosses()

    def loss_seen(
        self,
        epoch: int,
        minibatch_id: int,
        minibatches_per_epoch: int,
        losses: tuple[Tensor | None, Tensor],
        components: Sequence[LossComponent],
    ) -> None:
        """Add up; some ten lines an epoch are written."""
        if self._folder is None:  # a loop with nothing but loss terms may call that hook alone
            self.epoch_began(epoch)
        if not self._steps:
            self._first_step(minibatches_per_epoch)
        given, total = losses
        values = {} if given is None else {_OBJECTIVE: given}
        self._losses.add(values | {_OVERALL: total} | {part.name: part.value for part in components})
        self._done, self._steps = minibatch_id + 1, minibatches_per_epoch
        every = max(minibatches_per_epoch // _LINES_AN_EPOCH, 1)
        if self._done % every == 0 or self._done == minibatches_per_epoch:
            self._log_training()

    def epoch_ended(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Sparsities, what was reported, and the summary so far."""
        # Not open yet: resumed from a checkpoint that was saved at the end of the epoch's body.
        folder = self._folder or self._open(epoch)
        if not self._done:
            self._log_training()
        reported = {_REPORTED[key]: value for key, value in metrics.items() if key in _REPORTED}
        if unknown := {name: value for name, value in reported.items() if name not in self._logged}:
            self._keep(unknown)
        log_weights_sparsity(unwrap(self._scheduler.model), epoch, folder.loggers)
        self._results.epochs_done = epoch + 1
        self._save("running")

    def finished(self, summary: CompressionSummary) -> None:
        """The whole summary, and the weights at the end."""
        folder = self._folder or self._open(max(self._epoch, 0))
        self._results.summary = summary
        self._save("finished")
        folder.keep_histograms(self._scheduler.model, "after")

    # -- internals ----------------------------------------------------------------------------------------------------

    def _open(self, epoch: int) -> RunFolder:
        """Begin a run, or go on with the one in the folder if the loop does."""
        folder = RunFolder(self.path, None, tensorboard=self._tensorboard)
        before, results = folder.results_so_far(), self._results
        done, total = already_done(self._scheduler, epoch)
        is_resumed = epoch > 0 or done > 0
        if self._overwrite and not is_resumed:
            folder.forget()
        elif (before or (self.path / "metrics.jsonl").exists()) and not is_resumed:
            message = "holds a run already: name another folder, load its checkpoint to go on, or say overwrite=True"
            raise ArgumentError(f"{self.path} {message}", argument=("folder",))
        self.path.mkdir(parents=True, exist_ok=True)
        folder.continue_at(epoch, done, total)
        self._folder, self._epoch, self._done = folder, epoch, done
        self._first_pruning = first_pruning_epoch(self._scheduler)
        if self._text:
            folder.keep_schedule(self._text)
        folder.keep_environment(execution_env_state())
        if is_resumed and before:
            results.metrics_before = before.get("metrics_before") or {}
            results.model_before = (before.get("model") or {}).get("before") or {}
            self._seconds = float(before.get("seconds") or 0.0)
            for values, at in validations(folder.events()):
                self._remember(values, at)
        else:
            inputs = self._known_inputs()
            folder.record_start(results, self._scheduler, inputs)
            self._sizes = None if inputs is None else predicted_sizes(self._scheduler, _ANY_STEPS, None, inputs)
            self._epoch = -1
            for values in self._early:
                self._keep(values)
            self._epoch = epoch
        self._save("running")
        return folder

    def _known_inputs(self) -> ExampleInputs | None:
        self._inputs = self._inputs or self._scheduler.graph.example_inputs
        return self._inputs

    def _first_step(self, minibatches_per_epoch: int) -> None:
        """Now the loader is known: what the schedule will do in steps, and what the model is called with."""
        scheduler = self._scheduler
        if self._known_inputs() is None:
            self._inputs = first_inputs(scheduler.data.loader)
        if self._folder is not None and not (self.path / "plan.json").exists() and scheduler.entries:
            steps = -(-minibatches_per_epoch // scheduler.accumulation_steps)
            if self._sizes is None:
                self._sizes = predicted_sizes(scheduler, steps, None, self._inputs, self._results.model_before)
            self._folder.keep_plan(scheduler, steps, sizes=self._sizes)
        before = self._results.model_before
        if before.get("macs") is None:
            self._results.model_before = {**before, "macs": model_facts(scheduler.model, self._inputs)["macs"]}

    def _log_training(self) -> None:
        metrics = self._losses.means()
        if not all(map(math.isfinite, metrics.values())):
            self._not_finite.add(self._epoch)
        self._write(_TRAINING, metrics | learning_rate(self._scheduler), self._epoch, self._done, max(self._steps, 1))

    def _keep(self, values: Mapping[str, float]) -> None:
        """Values of the model before training, of the epoch that is open or was the last, or of the finished run."""
        is_over = self._results.summary is not None
        is_of_epoch = self._epoch >= 0 and not is_over
        self._remember(values, math.inf if is_over else self._epoch)
        self._write(_VALIDATION if is_of_epoch else _TEST, values, self._epoch if is_of_epoch else -1)
        if is_over:
            self._save(self._results.status)

    def _remember(self, values: Mapping[str, float], epoch: float) -> None:
        """What is "before" and "after": until pruning begins, the one; from the first epoch on, the other."""
        results, first = self._results, self._first_pruning
        if epoch < 0 or (first is not None and epoch < first):
            results.metrics_before = {**results.metrics_before, **values}
        if epoch >= 0:
            results.metrics_after = {**results.metrics_after, **values}

    def _write(self, group: str, values: Mapping[str, Any], epoch: int, completed: int = 0, total: int = 1) -> None:
        if self._folder is not None and values:
            log_training_progress((group, values), None, epoch, completed, total, 1, self._folder.loggers)

    def _save(self, status: str) -> None:
        if self._folder is None:
            return
        results = self._results
        results.status = status
        self._folder.record_state(results, self._scheduler, self._known_inputs())
        results.seconds = round(self._seconds + time.monotonic() - self._began, 1)
        results.notes = [*self._scheduler.notes, *doubts(self._not_finite, results.metrics_after.get("Top1"))]
        self._folder.save_results(results)
