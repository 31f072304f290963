"""Model, data and optimizer of the application, and one epoch at a time (layer 5)."""

from __future__ import annotations

import argparse
import copy
import logging
import os
from contextlib import AbstractContextManager
from typing import Any

from torch import nn

from distiller_ng.apputils import classifier_loops as loops
from distiller_ng.apputils.classifier_activations import activations_watched
from distiller_ng.apputils.classifier_args import init_classifier_compression_arg_parser
from distiller_ng.apputils.classifier_batches import Criterion
from distiller_ng.apputils.classifier_loops import load_data, train, validate
from distiller_ng.apputils.classifier_quantization import check_quantization_flags
from distiller_ng.apputils.classifier_run import open_run_folder, without_leftovers
from distiller_ng.apputils.classifier_setup import infer_implicit_args_, init_learner, set_up_device_, set_up_seeds
from distiller_ng.apputils.classifier_task import Loaders, Task, check_fit
from distiller_ng.apputils.meters import known
from distiller_ng.data_loggers import (
    DataLogger,
    create_activation_stats_collectors,
    log_training_progress,
    log_weights_sparsity,
)
from distiller_ng.errors import ArgumentError
from distiller_ng.ops.weights import model_sparsity
from distiller_ng.reports import masks_sparsity_tbl_summary

__all__ = ["ClassifierLearner"]

logger = logging.getLogger("distiller_ng.apputils.image_classifier")


class ClassifierLearner:
    """What trains: built from arguments, or from a ``task``; the run around it is ``ClassifierCompressor``.

    Raises the typed errors of what the arguments name.
    """

    def __init__(
        self, args: argparse.Namespace, script_dir: str | os.PathLike[str] | None, *, task: Task | None = None
    ) -> None:
        self.task = task or Task()
        self.args = infer_implicit_args_(copy.deepcopy(args), self.task)
        check_quantization_flags(self.args)
        self.folder = open_run_folder(self.args, script_dir)
        self.logdir = None if self.folder is None else str(self.folder.path)
        self.pylogger = DataLogger() if self.folder is None else self.folder.console
        self.tflogger = DataLogger() if self.folder is None else self.folder.tensorboard
        self.loggers: list[DataLogger] = [] if self.folder is None else self.folder.loggers
        with without_leftovers(self.folder):
            set_up_seeds(self.args)
            set_up_device_(self.args)
            learner = init_learner(self.args, self.task)
        self.model, self.optimizer = learner.model, learner.optimizer
        self.compression_scheduler = learner.scheduler
        self.start_epoch, self.ending_epoch = learner.start_epoch, self.args.epochs
        self.schedule_text = learner.schedule_text
        self.criterion: Criterion = self.task.criterion or nn.CrossEntropyLoss()
        if isinstance(self.criterion, nn.Module):
            self.criterion = self.criterion.to(self.args.device)
        self.train_loader: Any = None
        self.val_loader: Any = None
        self.test_loader: Any = None
        self.activations_collectors = create_activation_stats_collectors(self.model, *self.args.activation_stats)

    @staticmethod
    def mock_args() -> argparse.Namespace:
        """The arguments of a command line without any flags."""
        return infer_implicit_args_(init_classifier_compression_arg_parser().parse_args([]))

    # -- data -------------------------------------------------------------------------------------------------------

    @property
    def data_loaders(self) -> tuple[Any, Any, Any]:
        """Training, validation and test loader; None before :meth:`load_datasets`."""
        return self.train_loader, self.val_loader, self.test_loader

    def load_datasets(self) -> tuple[Any, Any, Any]:
        """Open the data set, once, and return the three loaders.

        Raises :class:`DatasetError`; for a model or loaders of one's own also :class:`DistillerError` where they do not
        go together.
        """
        if any(loader is None for loader in self.data_loaders):
            with without_leftovers(self.folder):
                loaders = Loaders.of(self.task.loaders or load_data(self.args))
                if self.task.model is not None or self.task.loaders is not None:
                    check_fit(self.model, loaders, self.criterion)
            self.train_loader, self.val_loader, self.test_loader = loaders
        return self.data_loaders

    # -- one epoch --------------------------------------------------------------------------------------------------

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
            self._log("Performance/Validation/", {"Loss": loss, **known(Top1=top1, Top5=top5)}, epoch)
        return top1, top5, loss

    def train_validate_with_scheduling(self, epoch: int, validate: bool = True, verbose: bool = True) -> loops.Scores:
        """One whole epoch with the scheduler's hooks; the scores are validation's, or without it training's."""
        self.compression_scheduler.on_epoch_begin(epoch, self.optimizer)
        top1, top5, loss = self.train_one_epoch(epoch, verbose)
        if validate:
            top1, top5, loss = self.validate_one_epoch(epoch, verbose)
        self.compression_scheduler.on_epoch_end(epoch, self.optimizer, metrics={"min": loss, **known(max=top1)})
        return top1, top5, loss

    def validate(self, epoch: int = -1) -> loops.Scores:
        """Measure on the validation set: ``(top1, top5, mean loss)``."""
        self.load_datasets()
        return validate(self.val_loader, self.model, self.criterion, self.loggers, self.args, epoch)

    def _watched(self, phase: str, epoch: int) -> AbstractContextManager[None]:
        """Collects the activation statistics that ``--act-stats`` asks for in this phase."""
        return activations_watched(self.activations_collectors, phase, epoch, self.loggers, self.logdir)

    def _log(self, group: str, stats: dict[str, float], epoch: int) -> None:
        files = [one for one in self.loggers if one is not self.pylogger]
        log_training_progress((group, stats), None, epoch, 0, 1, 1, files)
