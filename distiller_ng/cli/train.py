"""``distiller-ng train``: train and compress a classifier, leaving a run folder (layer 5)."""

from __future__ import annotations

import argparse
import copy
import warnings
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from distiller_ng.apputils.checkpoints import load_lean_checkpoint
from distiller_ng.apputils.classifier_args import OPTIMIZERS
from distiller_ng.apputils.classifier_exits import add_early_exit_arguments
from distiller_ng.apputils.classifier_setup import make_optimizer
from distiller_ng.apputils.classifier_task import Task, check_fit
from distiller_ng.apputils.guard import INTERRUPTED
from distiller_ng.apputils.image_classifier import ClassifierCompressor
from distiller_ng.checkpoint import read_checkpoint
from distiller_ng.cli._data import add_data_arguments
from distiller_ng.cli._models import GivenModel, add_model_arguments, add_teacher_argument, required_model
from distiller_ng.cli._numbers import above_zero, fraction, whole
from distiller_ng.cli._places import check_folder_place
from distiller_ng.cli._printing import add_json_argument, print_json, print_result, say
from distiller_ng.cli._task import add_loss_argument, application_arguments, checked_file, given_task, log_to_stderr
from distiller_ng.cli.base import COMMANDS, Command
from distiller_ng.config import file_config
from distiller_ng.config.policies import MAX_EPOCH
from distiller_ng.errors import ArgumentError, ScheduleWarning

__all__ = ["TrainCommand"]


@COMMANDS.register("train")
class TrainCommand(Command):
    """Train with a schedule, or without; the run folder has checkpoints, logs and what ``distiller-ng report`` shows.

    ``distiller-ng train agp.yaml --model mynet.py:MyNet --loaders mydata.py:make_loaders --epochs 30``
    """

    help: ClassVar[str] = "train and compress a classifier of yours or of the zoo; leaves a run folder"
    example: ClassVar[str] = (
        "distiller-ng train agp.yaml --model mynet.py:MyNet --loaders mydata.py:make_loaders --epochs 30 --lr 0.05\n"
        "  distiller-ng train agp.yaml --arch digits_cnn --checkpoint dense.pth.tar --epochs 24 --name pruned\n"
        "  distiller-ng train --arch digits_cnn --epochs 24 --resume-from logs/RUN/checkpoint.pth.tar"
    )

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """``train [SCHEDULE] model data [--epochs N] [--lr LR] [--opt O] [--resume-from PATH] [--name N] [--json]``."""
        parser.add_argument("compress", metavar="SCHEDULE", nargs="?", help="a schedule or recipe (default: none)")
        parser.add_argument(
            "--epochs",
            type=whole(1, MAX_EPOCH),
            metavar="N",
            help="in all, from the run's beginning (default: the schedule's)",
        )
        parser.add_argument("--lr", type=above_zero, default=0.1, metavar="LR", help="learning rate (default: 0.1)")
        parser.add_argument("--opt", choices=OPTIMIZERS, default="sgd", help="optimizer (default: sgd)")
        parser.add_argument("--momentum", type=_share, default=0.9, metavar="M", help="of sgd (default: 0.9)")
        parser.add_argument("--weight-decay", type=_share, default=1e-4, metavar="W", help="default: 1e-4")
        parser.add_argument(
            "--optimizer", metavar="FILE.PY:MAKE", help="of your own: make(model) returns it; instead of --opt, --lr"
        )
        add_loss_argument(parser)
        parser.add_argument(
            "--resume-from",
            dest="resumed_checkpoint_path",
            default="",
            metavar="FILE",
            help="continue a run exactly: weights, masks, schedule, optimizer, epoch, random generators",
        )
        parser.add_argument(
            "--reset-optimizer", action="store_true", help="with --resume-from: keep weights and masks, begin anew"
        )
        self._configure_run(parser)
        self._configure_teacher(parser)
        add_early_exit_arguments(parser)
        add_json_argument(parser)
        add_model_arguments(parser)
        add_data_arguments(parser)
        parser.add_argument("--workers", "-j", type=whole(0), default=0, metavar="N", help="loading processes")
        parser.add_argument(
            "--validation-split", type=_share, default=0.1, metavar="F", help="of a data set's training images (0.1)"
        )

    @staticmethod
    def _configure_run(parser: argparse.ArgumentParser) -> None:
        group = parser.add_argument_group("Run")
        group.add_argument("--name", metavar="NAME", help="of the run, part of its folder's name")
        group.add_argument("--out-dir", dest="output_dir", default="logs", metavar="DIR", help="parent folder (logs)")
        group.add_argument("--deterministic", action="store_true", help="the same results in every run")
        group.add_argument("--seed", type=whole(0), metavar="N", help="of all random generators, first weights too")
        group.add_argument("--gpus", type=_gpu, metavar="ID", help="use this GPU, e.g. 0 (default: the CPU)")
        group.add_argument("--print-freq", type=whole(1), default=50, metavar="N", help="steps a log line (50)")
        group.add_argument("--verbose", action="store_true", help="log more, the sparsity table of each epoch too")

    @staticmethod
    def _configure_teacher(parser: argparse.ArgumentParser) -> None:
        add_teacher_argument(parser)
        parser.add_argument(
            "--teacher-checkpoint",
            action="append",
            default=[],
            metavar="NAME=FILE",
            help="a teacher's weights; with one teacher the file alone will do",
        )
        parser.add_argument(
            "--temperature", type=above_zero, default=4.0, metavar="T", help="where the schedule has no distiller (4)"
        )
        parser.add_argument(
            "--distill-weight", type=fraction, default=0.5, metavar="W", help="of the teacher's loss then (0.5)"
        )

    def run(self, options: argparse.Namespace) -> int:
        """Train, then print what came of it."""
        app: ClassifierCompressor | None = None
        try:
            with log_to_stderr():
                app = _application(options)
                app.run_training_loop()
                app.test()
        except KeyboardInterrupt:
            say(f"interrupted{_how_to_continue(app)}")
            return INTERRUPTED
        result = _result(app)
        if options.json:
            print_json(result)
        else:
            print_result(f"{app.report()}\n{_exits(app)}\nRun folder: {app.logdir}")
            print_result(f"On one page: distiller-ng report {app.logdir} -o report.html")
        return 0


def _application(options: argparse.Namespace) -> ClassifierCompressor:
    """The run, after everything that can be wrong with what was given."""
    if options.checkpoint and options.resumed_checkpoint_path:
        raise ArgumentError("--checkpoint gives first weights, --resume-from continues a run: leave one of them out")
    if options.reset_optimizer and not options.resumed_checkpoint_path:
        raise ArgumentError("--reset-optimizer goes with --resume-from")
    check_folder_place(options.output_dir, "--out-dir")
    if options.compress:
        checked_file(options.compress, "SCHEDULE")
    given = required_model(options)
    task = given_task(options, given, training=True)
    _load_teachers(task, options)
    args = application_arguments(options, given)
    args.kd_temp, args.kd_start_epoch, args.kd_teacher_wt = options.temperature, 0, 0.0
    args.kd_distill_wt, args.kd_student_wt = options.distill_weight, 1.0 - options.distill_weight
    length = _rehearsed(options, given, task)
    args.epochs = options.epochs or length
    if not args.epochs:
        raise _no_length(options)
    if task.loaders is not None:  # before the run has a folder
        check_fit(given.model, task.loaders, task.criterion or nn.CrossEntropyLoss())
    return ClassifierCompressor(args, Path.cwd(), task=task)


def _rehearsed(options: argparse.Namespace, given: GivenModel, task: Task) -> int | None:
    """The length of the schedule, of the file or of the run that is resumed, after it was loaded onto a copy.

    So what is wrong with it, the optimizer or the checkpoint is told before there is a folder and a log.
    """
    source: str | None = options.compress
    if options.resumed_checkpoint_path:
        text = read_checkpoint(checked_file(options.resumed_checkpoint_path, "--resume-from")).schedule_text
        source = source or (f"{text}\n" if text else None)
    model = copy.deepcopy(given.model)  # a quantizer changes it when the schedule is loaded
    args = argparse.Namespace(opt="sgd", lr=options.lr, momentum=0.9, weight_decay=0.0)
    optimizer = task.optimizer_for(model) or make_optimizer(args, model)
    if source is None or (options.reset_optimizer and options.epochs and not options.compress):
        return None
    example = task.inputs_for(model)
    with warnings.catch_warnings():  # of these the run itself speaks
        warnings.simplefilter("ignore", ScheduleWarning)
        return file_config(model, optimizer, source, teachers=task.teachers, example_inputs=example).max_epochs


def _no_length(options: argparse.Namespace) -> ArgumentError:
    given = options.compress or options.resumed_checkpoint_path
    why = "the schedule has no end" if given else "without a schedule nothing says how long to train"
    return ArgumentError(f"give --epochs: {why}")


def _load_teachers(task: Task, options: argparse.Namespace) -> None:
    for text in options.teacher_checkpoint:
        name, equals, path = text.partition("=")
        if not equals:
            name, path = next(iter(task.teachers), ""), text
            if len(task.teachers) != 1:
                raise ArgumentError(f"--teacher-checkpoint {text}: write NAME=FILE, NAME as in --teacher NAME=...")
        if name not in task.teachers:
            raise ArgumentError(f"--teacher-checkpoint {text}: there is no --teacher {name}=...")
        load_lean_checkpoint(task.teachers[name], checked_file(path, "--teacher-checkpoint"))


def _gpu(text: str) -> str:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not the number of a GPU, e.g. 0")
    return text


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to below 1, got {text}")
    return value


def _result(app: ClassifierCompressor) -> dict[str, Any]:
    folder = Path(app.logdir or ".")
    files = {path.name: str(path) for path in sorted(folder.glob("*.pth.tar"))}
    return {**app.results.as_dict(), "folder": str(folder), "checkpoints": list(files.values())}


def _exits(app: ClassifierCompressor) -> str:
    return f"\n{app.exits.statistics()}\n" if app.exits is not None else ""


def _how_to_continue(app: ClassifierCompressor | None) -> str:
    if app is None or app.logdir is None:
        return ""
    found = [path for path in Path(app.logdir).glob("*checkpoint.pth.tar") if "final" not in path.name]
    if not found:
        return ": no epoch was finished, there is nothing to continue"
    return f": the same command with --resume-from {found[0]} goes on"
