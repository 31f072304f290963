"""The image-classification application: train, compress, evaluate, resume (layer 5).

``ClassifierCompressor`` has Distiller's attributes and methods, and the module has its functions, so that scripts
written as ``import distiller.apputils.image_classifier as classifier`` go on working.
"""

from __future__ import annotations

import argparse
import logging
import os
import time

from distiller_ng.apputils import classifier_loops as loops
from distiller_ng.apputils.classifier_activations import acts_histogram_collection, acts_quant_stats_collection
from distiller_ng.apputils.classifier_args import init_classifier_compression_arg_parser
from distiller_ng.apputils.classifier_exits import ExitsMeter
from distiller_ng.apputils.classifier_exporting import export_onnx
from distiller_ng.apputils.classifier_learner import ClassifierLearner
from distiller_ng.apputils.classifier_loops import load_data, test, train, validate
from distiller_ng.apputils.classifier_quantization import (
    evaluate_model,
    idle_quantization_flags,
    quantize_and_test_model,
)
from distiller_ng.apputils.classifier_run import check_epochs_left, log_best_epochs, run_facts, without_leftovers
from distiller_ng.apputils.classifier_sensitivity import sensitivity_analysis
from distiller_ng.apputils.classifier_task import PartOf, Task
from distiller_ng.apputils.meters import known
from distiller_ng.apputils.run_facts import first_inputs
from distiller_ng.apputils.run_folder import NO_SIZES, RunState, predicted_sizes
from distiller_ng.apputils.run_results import (
    RunResults,
    Scores,
    first_pruning_epoch,
    undisturbed,
    unfinished_policies,
)
from distiller_ng.apputils.trackers import PerformanceRecord, SparsityAccuracyTracker
from distiller_ng.checkpoint import read_checkpoint
from distiller_ng.core.summary import CompressionSummary
from distiller_ng.data_loggers import create_activation_stats_collectors, save_collectors_data
from distiller_ng.graph.inputs import ExampleInputs
from distiller_ng.ops.weights import model_sparsity
from distiller_ng.reports import weights_sparsity_tbl_summary

__all__ = [
    "ClassifierCompressor",
    "acts_histogram_collection",
    "acts_quant_stats_collection",
    "create_activation_stats_collectors",
    "evaluate_model",
    "export_onnx",
    "init_classifier_compression_arg_parser",
    "load_data",
    "quantize_and_test_model",
    "save_collectors_data",
    "sensitivity_analysis",
    "test",
    "train",
    "validate",
]

logger = logging.getLogger(__name__)


class ClassifierCompressor(ClassifierLearner):
    """One run: arguments, run folder, model, data, training loop and results.

    ``args`` is what :func:`init_classifier_compression_arg_parser` parsed (missing values take their defaults); it is
    copied. ``script_dir`` is where a ``logging.conf`` may lie; None logs to no folder. ``task`` stands in for what the
    arguments would name: your own model, loaders, loss, optimizer and teachers. Attributes: ``args``, ``model``,
    ``optimizer``, ``compression_scheduler``, ``start_epoch``, ``ending_epoch``, ``criterion``, ``pylogger``,
    ``tflogger``, ``performance_tracker``, ``data_loaders``, ``activations_collectors``, ``results``, ``logdir``, and
    ``exits``: an :class:`~distiller_ng.apputils.classifier_exits.ExitsMeter` after testing with early exits.

    Raises the typed errors of what the arguments name; nothing has been trained then. Example::

        app = ClassifierCompressor(parser.parse_args(), script_dir)
        app.run_training_loop()
        top1, top5, loss = app.test()
    """

    def __init__(
        self, args: argparse.Namespace, script_dir: str | os.PathLike[str] | None, *, task: Task | None = None
    ) -> None:
        super().__init__(args, script_dir, task=task)
        self.performance_tracker = SparsityAccuracyTracker(self.args.num_best_scores)
        self.exits: ExitsMeter | None = None
        self.results = RunResults(run_facts(self.args, self.optimizer))
        self._epoch = self.start_epoch - 1  # the last one that was finished
        self._resume_history()
        if self.folder is not None and self.schedule_text is not None:
            self.folder.keep_schedule(self.schedule_text)

    @classmethod
    def mock_classifier(cls) -> ClassifierCompressor:
        """An application with default arguments that writes nothing."""
        return cls(cls.mock_args(), None)

    def _resume_history(self) -> None:
        """Best scores and the accuracy before pruning, which an exact continuation must know."""
        if self.args.resumed_checkpoint_path and not self.args.reset_optimizer:
            extras = read_checkpoint(self.args.resumed_checkpoint_path).extras
            if "performance_tracker" in extras:
                self.performance_tracker.load_state_dict(extras["performance_tracker"])
            self.results.load_state_dict(extras.get("results", {}))

    def _state(self) -> RunState:
        return RunState(self.args.arch, self.model, self.optimizer, self.compression_scheduler, self.schedule_text)

    # -- training ---------------------------------------------------------------------------------------------------

    def run_training_loop(self) -> list[PerformanceRecord]:
        """Train from ``start_epoch`` up to ``ending_epoch``, saving a checkpoint after each; the epochs' records.

        Raises :class:`ArgumentError` when there is no epoch left to run.
        """
        with without_leftovers(self.folder):
            check_epochs_left(self.start_epoch, self.ending_epoch)
        self.load_datasets()
        self.compression_scheduler.data.see_loader(self.train_loader)
        for text in unfinished_policies(self.compression_scheduler, self.ending_epoch):
            logger.warning("--epochs %d: %s", self.ending_epoch, text)
        began = time.monotonic()
        self._record_start()
        if self.compression_scheduler.resume_point is not None:
            self.compression_scheduler.resume_point.restore_rng()
        for epoch in range(self.start_epoch, self.ending_epoch):
            logger.info("")
            self._measure_before_pruning(epoch)
            scores = self.train_validate_with_scheduling(epoch)
            self._epoch = epoch
            self._finalize_epoch(epoch, *scores)
        self._finish(time.monotonic() - began)
        return self.performance_tracker.perf_scores_history

    def _record_start(self) -> None:
        if self.folder is None:
            return
        scheduler, steps, inputs = self.compression_scheduler, len(self.train_loader), self._example()
        is_new = not self.results.model_before
        if scheduler.entries and (is_new or not (self.folder.path / "plan.json").exists()):
            sizes = predicted_sizes(scheduler, steps, self.ending_epoch, inputs) if is_new else NO_SIZES
            self.folder.keep_plan(scheduler, steps, self.ending_epoch, sizes=sizes)
        if is_new:
            self.folder.record_start(self.results, scheduler, inputs)

    def _example(self) -> ExampleInputs | None:
        """What the model is called with for one sample."""
        known = self.compression_scheduler.graph.example_inputs or self.task.inputs_for(self.model)
        return known or first_inputs(self.train_loader)

    def _measure_before_pruning(self, epoch: int) -> None:
        scheduler = self.compression_scheduler
        first = first_pruning_epoch(scheduler)
        if first is None or self.results.before is not None or epoch < first or scheduler.masks.masked():
            return
        logger.info("Pruning begins in epoch %d: accuracy before it", epoch)
        self.results.before = self._test_scores(epoch - 1)

    def _test_scores(self, epoch: int) -> Scores:
        self.exits = ExitsMeter.of(self.args)
        with undisturbed():
            top1, top5, loss = test(
                self.test_loader, self.model, self.criterion, [self.pylogger], args=self.args, exits=self.exits
            )
        return Scores(epoch, top1, top5, loss, model_sparsity(self.model) / 100.0)

    def _finalize_epoch(self, epoch: int, top1: float, top5: float, loss: float) -> None:
        tracker = self.performance_tracker
        tracker.step(self.model, epoch, top1=top1, top5=top5, loss=loss)
        best = log_best_epochs(tracker)
        self.results.best = {**known(top1=best.top1, top5=best.top5, loss=best.loss), "epoch": best.epoch}
        extras = {
            "current_top1": top1,
            "best_top1": best.top1,
            "best_epoch": best.epoch,
            "performance_tracker": tracker.state_dict(),
            "results": self.results.state_dict(),
        }
        if self.folder is not None:
            self.folder.save(self._state(), epoch, extras=extras, is_best=best.epoch == epoch)
            self.results.status, self.results.epochs_done = "running", epoch + 1
            self.folder.record_state(self.results, self.compression_scheduler, self._example())
            self.folder.save_results(self.results)

    def _finish(self, seconds: float) -> CompressionSummary:
        """Fire what is pending in the schedule and compare planned with achieved sparsity."""
        before = {name: value.clone() for name, value in self.model.state_dict().items()}
        summary = self.compression_scheduler.finish()
        changed = any(not value.equal(before[name]) for name, value in self.model.state_dict().items())
        if changed and self.folder is not None:
            # The last epoch's checkpoint stays as it is: a run that continues must not see the end's actions.
            self.folder.save_final(self._state(), self._epoch)
        self.results.summary, self.results.seconds = summary, round(seconds, 2)
        self.results.status, self.results.epochs_done = "finished", self._epoch + 1
        if self.folder is not None:
            self.folder.record_end(self.results, self.compression_scheduler, self._example())
        return summary

    # -- evaluation -------------------------------------------------------------------------------------------------

    def test(self) -> loops.Scores:
        """Measure on the test set: ``(top1, top5, mean loss)``; after training also writes the run's results."""
        self.load_datasets()
        with self._watched("test", -1):
            after = self._test_scores(self._epoch)
        return self._keep(after)

    def evaluate(self) -> loops.Scores:
        """What ``--evaluate`` does: :meth:`test` with the masks applied, or quantized as the flags say."""
        self.compression_scheduler.mask_all_weights()
        if not (self.args.quantize_eval or self.args.qe_convert_pytorch or getattr(self.args, "qe_lapq", False)):
            for flag in idle_quantization_flags(self.args):
                logger.warning("%s has no effect without --quantize-eval", flag)
            return self.test()
        self.load_datasets()
        own = self.task.loaders is not None
        top1, top5, loss = evaluate_model(
            self.test_loader,
            self.model,
            self.criterion,
            [self.pylogger],
            args=self.args,
            logdir=self.logdir,
            calibration_loader=PartOf(self.val_loader, self.args.qe_calibration or 1.0) if own else None,
        )
        return self._keep(Scores(self._epoch, top1, top5, loss, model_sparsity(self.model) / 100.0))

    def _keep(self, after: Scores) -> loops.Scores:
        """Remember and write the scores of the run's end."""
        self.results.after = after
        if self.exits is not None:
            self.results.facts["early_exit"] = self.exits.statistics().as_dict()
        self._log("Performance/Test/", {"Loss": after.loss, **known(Top1=after.top1, Top5=after.top5)}, -1)
        if self.folder is not None:
            self.folder.save_results(self.results)
        return after.top1, after.top5, after.loss

    def report(self) -> str:
        """The sparsity table, planned and achieved sparsity, and accuracy before and after, as text."""
        parts = [weights_sparsity_tbl_summary(self.model)]
        if self.results.summary is not None and self.results.summary.parameters:
            parts.append(f"Planned and achieved sparsity:\n{self.results.summary}")
        parts.append(self.results.lines())
        return "\n\n".join(parts)
