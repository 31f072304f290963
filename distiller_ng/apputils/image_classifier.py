"""The image-classification application: train, compress, evaluate, resume (layer 5).

``ClassifierCompressor`` has Distiller's attributes and methods, and the module has its functions, so that scripts
written as ``import distiller.apputils.image_classifier as classifier`` go on working; hence the length of this file.
"""

from __future__ import annotations

import argparse
import copy
import logging
import os
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from torch import nn

from distiller_ng.apputils import classifier_loops as loops
from distiller_ng.apputils.classifier_activations import (
    activations_watched,
    acts_histogram_collection,
    acts_quant_stats_collection,
)
from distiller_ng.apputils.classifier_args import init_classifier_compression_arg_parser
from distiller_ng.apputils.classifier_exporting import export_onnx
from distiller_ng.apputils.classifier_loops import load_data, test, train, validate
from distiller_ng.apputils.classifier_quantization import (
    check_quantization_flags,
    evaluate_model,
    idle_quantization_flags,
    quantize_and_test_model,
)
from distiller_ng.apputils.classifier_sensitivity import sensitivity_analysis
from distiller_ng.apputils.classifier_setup import infer_implicit_args_, init_learner, set_up_device_, set_up_seeds
from distiller_ng.apputils.log_setup import config_pylogger, log_execution_env_state
from distiller_ng.apputils.run_folder import RunFolder, RunState
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
from distiller_ng.data_loggers import (
    DataLogger,
    create_activation_stats_collectors,
    log_training_progress,
    log_weights_sparsity,
    save_collectors_data,
)
from distiller_ng.errors import ArgumentError
from distiller_ng.ops.weights import model_sparsity
from distiller_ng.reports import masks_sparsity_tbl_summary, weights_sparsity_tbl_summary

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


class ClassifierCompressor:
    """One run: arguments, run folder, model, data, training loop and results.

    ``args`` is what :func:`init_classifier_compression_arg_parser` parsed (missing values take their defaults); it is
    copied. ``script_dir`` is where a ``logging.conf`` may lie; None logs to no folder. Attributes: ``args``, ``model``,
    ``optimizer``, ``compression_scheduler``, ``start_epoch``, ``ending_epoch``, ``criterion``, ``pylogger``,
    ``tflogger``, ``performance_tracker``, ``data_loaders``, ``activations_collectors``, ``results``, ``logdir``.

    Raises the typed errors of what the arguments name; nothing has been trained then. Example::

        app = ClassifierCompressor(parser.parse_args(), script_dir)
        app.run_training_loop()
        top1, top5, loss = app.test()
    """

    def __init__(self, args: argparse.Namespace, script_dir: str | os.PathLike[str] | None) -> None:
        self.args = infer_implicit_args_(copy.deepcopy(args))
        check_quantization_flags(self.args)
        self.folder = self._open_folder(script_dir)
        self.logdir = None if self.folder is None else str(self.folder.path)
        set_up_seeds(self.args)
        set_up_device_(self.args)
        learner = init_learner(self.args)
        self.model, self.optimizer = learner.model, learner.optimizer
        self.compression_scheduler = learner.scheduler
        self.start_epoch, self.ending_epoch = learner.start_epoch, self.args.epochs
        self.schedule_text = learner.schedule_text
        self.criterion: nn.Module = nn.CrossEntropyLoss().to(self.args.device)
        self.train_loader: Any = None
        self.val_loader: Any = None
        self.test_loader: Any = None
        self.activations_collectors = create_activation_stats_collectors(self.model, *self.args.activation_stats)
        self.performance_tracker = SparsityAccuracyTracker(self.args.num_best_scores)
        self.results = RunResults(self._facts())
        self._epoch = self.start_epoch - 1  # the last one that was finished
        self._resume_history()
        if self.folder is not None and self.schedule_text is not None:
            self.folder.keep_schedule(self.schedule_text)

    # -- set-up -----------------------------------------------------------------------------------------------------

    def _open_folder(self, script_dir: str | os.PathLike[str] | None) -> RunFolder | None:
        if script_dir is None or self.args.output_dir is None:
            self.pylogger, self.tflogger = DataLogger(), DataLogger()
            self.loggers: list[DataLogger] = []
            return None
        config = Path(script_dir) / "logging.conf"
        run_log = config_pylogger(
            config if config.is_file() else None, self.args.name, self.args.output_dir, self.args.verbose
        )
        log_execution_env_state(None, run_log.logdir)
        logger.debug("Arguments: %s", vars(self.args))
        folder = RunFolder(
            Path(run_log.logdir), run_log, name=self.args.name, histograms=self.args.log_params_histograms
        )
        self.pylogger, self.tflogger, self.loggers = folder.console, folder.tensorboard, folder.loggers
        return folder

    def _facts(self) -> dict[str, Any]:
        args = self.args
        return {
            "arch": args.arch,
            "dataset": args.dataset,
            "schedule": os.path.basename(args.compress) if args.compress else None,
            "epochs": args.epochs,
            "batch_size": args.batch_size,
            "optimizer": args.opt,
            "lr": args.lr,
            "seed": args.seed if args.seed is not None or not args.deterministic else 0,
        }

    def _resume_history(self) -> None:
        """Best scores and the accuracy before pruning, which an exact continuation must know."""
        if self.args.resumed_checkpoint_path and not self.args.reset_optimizer:
            extras = read_checkpoint(self.args.resumed_checkpoint_path).extras
            if "performance_tracker" in extras:
                self.performance_tracker.load_state_dict(extras["performance_tracker"])
            self.results.load_state_dict(extras.get("results", {}))

    def _state(self) -> RunState:
        return RunState(self.args.arch, self.model, self.optimizer, self.compression_scheduler, self.schedule_text)

    @staticmethod
    def mock_args() -> argparse.Namespace:
        """The arguments of a command line without any flags."""
        return infer_implicit_args_(init_classifier_compression_arg_parser().parse_args([]))

    @classmethod
    def mock_classifier(cls) -> ClassifierCompressor:
        """An application with default arguments that writes nothing."""
        return cls(cls.mock_args(), None)

    # -- data -------------------------------------------------------------------------------------------------------

    @property
    def data_loaders(self) -> tuple[Any, Any, Any]:
        """Training, validation and test loader; None before :meth:`load_datasets`."""
        return self.train_loader, self.val_loader, self.test_loader

    def load_datasets(self) -> tuple[Any, Any, Any]:
        """Open the data set, once, and return the three loaders. Raises :class:`DatasetError`."""
        if any(loader is None for loader in self.data_loaders):
            self.train_loader, self.val_loader, self.test_loader = load_data(self.args)
        return self.data_loaders

    # -- training ---------------------------------------------------------------------------------------------------

    def train_one_epoch(self, epoch: int, verbose: bool = True) -> loops.Scores:
        """Train for one epoch, without the scheduler's epoch hooks: ``(top1, top5, mean loss)``."""
        self.load_datasets()
        if self.optimizer is None:
            raise ArgumentError("this run only evaluates (--evaluate): it has no optimizer to train with")
        with self._watched("train", epoch):
            scores = train(
                self.train_loader,
                self.model,
                self.criterion,
                self.optimizer,
                epoch,
                self.compression_scheduler,
                self.loggers,
                self.args,
            )
        if verbose:
            tables = [one for one in self.loggers if self.args.verbose or one is not self.pylogger]
            log_weights_sparsity(self.model, epoch, tables)
            logger.info("Total sparsity: %.2f\n", model_sparsity(self.model))
        if self.args.masks_sparsity:
            logger.info("\n%s", masks_sparsity_tbl_summary(self.model, self.compression_scheduler))
        return scores

    def validate_one_epoch(self, epoch: int, verbose: bool = True) -> loops.Scores:
        """Measure on the validation set: ``(top1, top5, mean loss)``; ``verbose`` also logs it to the files."""
        self.load_datasets()
        with self._watched("valid", epoch):
            scores = validate(self.val_loader, self.model, self.criterion, [self.pylogger], self.args, epoch)
        top1, top5, loss = scores
        if verbose:
            self._log("Performance/Validation/", {"Loss": loss, "Top1": top1, "Top5": top5}, epoch)
        return top1, top5, loss

    def train_validate_with_scheduling(self, epoch: int, validate: bool = True, verbose: bool = True) -> loops.Scores:
        """One whole epoch with the scheduler's hooks; the scores are validation's, or without it training's."""
        self.compression_scheduler.on_epoch_begin(epoch, self.optimizer)
        top1, top5, loss = self.train_one_epoch(epoch, verbose)
        if validate:
            top1, top5, loss = self.validate_one_epoch(epoch, verbose)
        self.compression_scheduler.on_epoch_end(epoch, self.optimizer, metrics={"min": loss, "max": top1})
        return top1, top5, loss

    def run_training_loop(self) -> list[PerformanceRecord]:
        """Train from ``start_epoch`` up to ``ending_epoch``, saving a checkpoint after each; the epochs' records.

        Raises :class:`ArgumentError` when there is no epoch left to run.
        """
        if self.start_epoch >= self.ending_epoch:
            raise ArgumentError(
                f"--epochs {self.ending_epoch}: the next epoch is {self.start_epoch}, so there is nothing to do. "
                "--epochs counts from the beginning of the run, not from the checkpoint",
                argument=("epochs",),
            )
        self.load_datasets()
        self.compression_scheduler.data.see_loader(self.train_loader)
        for text in unfinished_policies(self.compression_scheduler, self.ending_epoch):
            logger.warning("--epochs %d: %s", self.ending_epoch, text)
        began = time.monotonic()
        if self.compression_scheduler.resume_point is not None:
            self.compression_scheduler.resume_point.restore_rng()
        for epoch in range(self.start_epoch, self.ending_epoch):
            logger.info("")
            self._measure_before_pruning(epoch)
            top1, top5, _ = self.train_validate_with_scheduling(epoch)
            self._epoch = epoch
            self._finalize_epoch(epoch, top1, top5)
        self._finish(time.monotonic() - began)
        return self.performance_tracker.perf_scores_history

    def _measure_before_pruning(self, epoch: int) -> None:
        scheduler = self.compression_scheduler
        first = first_pruning_epoch(scheduler)
        if first is None or self.results.before is not None or epoch < first or scheduler.masks.masked():
            return
        logger.info("Pruning begins in epoch %d: accuracy before it", epoch)
        self.results.before = self._test_scores(epoch - 1)

    def _test_scores(self, epoch: int) -> Scores:
        with undisturbed():
            top1, top5, loss = test(self.test_loader, self.model, self.criterion, [self.pylogger], args=self.args)
        return Scores(epoch, top1, top5, loss, model_sparsity(self.model) / 100.0)

    def _finalize_epoch(self, epoch: int, top1: float, top5: float) -> None:
        tracker = self.performance_tracker
        tracker.step(self.model, epoch, top1=top1, top5=top5)
        for record in tracker.best_scores():
            logger.info(
                "==> Best [Top1: %.3f   Top5: %.3f   Sparsity:%.2f   NNZ-Params: %d on epoch: %d]",
                record.top1,
                record.top5,
                record.sparsity,
                record.params_nnz_cnt,
                record.epoch,
            )
        best = tracker.best_scores(1)[0]
        self.results.best = {"top1": best.top1, "top5": best.top5, "epoch": best.epoch}
        extras = {
            "current_top1": top1,
            "best_top1": best.top1,
            "best_epoch": best.epoch,
            "performance_tracker": tracker.state_dict(),
            "results": self.results.state_dict(),
        }
        if self.folder is not None:
            self.folder.save(self._state(), epoch, extras=extras, is_best=best.epoch == epoch)

    def _finish(self, seconds: float) -> CompressionSummary:
        """Fire what is pending in the schedule and compare planned with achieved sparsity."""
        before = {name: value.clone() for name, value in self.model.state_dict().items()}
        summary = self.compression_scheduler.finish()
        changed = any(not value.equal(before[name]) for name, value in self.model.state_dict().items())
        if changed and self.folder is not None:
            # The last epoch's checkpoint stays as it is: a run that continues must not see the end's actions.
            self.folder.save_final(self._state(), self._epoch)
        self.results.summary, self.results.seconds = summary, round(seconds, 2)
        return summary

    # -- evaluation -------------------------------------------------------------------------------------------------

    def validate(self, epoch: int = -1) -> loops.Scores:
        """Measure on the validation set: ``(top1, top5, mean loss)``."""
        self.load_datasets()
        return validate(self.val_loader, self.model, self.criterion, self.loggers, self.args, epoch)

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
        top1, top5, loss = evaluate_model(
            self.test_loader, self.model, self.criterion, [self.pylogger], args=self.args, logdir=self.logdir
        )
        return self._keep(Scores(self._epoch, top1, top5, loss, model_sparsity(self.model) / 100.0))

    def _keep(self, after: Scores) -> loops.Scores:
        """Remember and write the scores of the run's end."""
        self.results.after = after
        self._log("Performance/Test/", {"Loss": after.loss, "Top1": after.top1, "Top5": after.top5}, -1)
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

    def _watched(self, phase: str, epoch: int) -> AbstractContextManager[None]:
        """Collects the activation statistics that ``--act-stats`` asks for in this phase."""
        return activations_watched(self.activations_collectors, phase, epoch, self.loggers, self.logdir)

    def _log(self, group: str, stats: dict[str, float], epoch: int) -> None:
        files = [one for one in self.loggers if one is not self.pylogger]
        log_training_progress((group, stats), None, epoch, 0, 1, 1, files)
