"""From command-line arguments to a model, an optimizer and a scheduler (layer 5)."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.optim import Optimizer

from distiller_ng.apputils.checkpoints import load_lean_checkpoint, load_schedule, resume_checkpoint
from distiller_ng.apputils.classifier_args import init_classifier_compression_arg_parser
from distiller_ng.apputils.classifier_distillation import add_distillation_policy, load_teachers
from distiller_ng.apputils.classifier_task import Task
from distiller_ng.apputils.data_loaders import classification_dataset_str_from_arch, classification_num_classes
from distiller_ng.checkpoint import read_checkpoint
from distiller_ng.core.scheduler import CompressionScheduler
from distiller_ng.errors import ArgumentError
from distiller_ng.models import create_model, model_names
from distiller_ng.utils import set_deterministic, set_seed

__all__ = ["Learner", "infer_implicit_args_", "init_learner", "make_optimizer", "set_up_device_", "set_up_seeds"]

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Learner:
    """What is trained, and where it stands. ``schedule_text`` is the YAML the scheduler was built from, if any."""

    model: nn.Module
    scheduler: CompressionScheduler
    optimizer: Optimizer | None
    start_epoch: int
    schedule_text: str | None


def infer_implicit_args_(args: argparse.Namespace, task: Task | None = None) -> argparse.Namespace:
    """Fill in, in place, what was not given: defaults of flags, data set and number of classes.

    The data set follows from the architecture: ``resnet20_cifar`` -> cifar10; a model registered for one data set
    alone -> that one. A ``task`` with a model gives the architecture's name (its ``arch``, or its class), one with
    loaders needs no data set. Raises :class:`DatasetError` for an unknown data set, :class:`ArgumentError` where
    nothing says what data a model of one's own takes.
    """
    task = task or Task()
    if task.model is not None:
        own = getattr(task.model, "arch", None)
        args.arch = own if isinstance(own, str) else type(task.model).__name__
    for name, value in vars(init_classifier_compression_arg_parser().parse_args([])).items():
        if not hasattr(args, name):
            setattr(args, name, value)
    if task.loaders is not None and (args.dataset is None or task.model is not None):
        args.num_classes = None
        args.batch_size = getattr(task.loaders.train, "batch_size", None) or args.batch_size
        return args
    if args.dataset is None and task.model is not None:
        raise ArgumentError(f"{args.arch}: say what data it takes: --dataset NAME, or loaders of your own")
    if args.dataset is None:
        args.dataset = "digits" if args.arch in model_names("digits") else None
        args.dataset = args.dataset or classification_dataset_str_from_arch(args.arch)
    if getattr(args, "num_classes", None) is None:
        args.num_classes = classification_num_classes(args.dataset)
    return args


def set_up_seeds(args: argparse.Namespace) -> None:
    """Seed the generators as the arguments say; evaluation is always deterministic."""
    args.deterministic = args.deterministic or args.evaluate
    if args.deterministic:
        set_deterministic(args.seed)
    elif args.seed is not None:
        set_seed(args.seed)


def set_up_device_(args: argparse.Namespace) -> None:
    """Set ``args.device``: the CPU, unless ``--gpus`` names a device that exists.

    Raises :class:`ArgumentError` for something else than numbers and for a GPU this machine does not have.
    """
    args.device = "cpu"
    if args.cpu or args.gpus is None:
        return
    try:
        wanted = [int(part) for part in str(args.gpus).split(",")]
    except ValueError:
        raise ArgumentError(f"--gpus takes the number of a GPU, e.g. --gpus 0; got {args.gpus!r}") from None
    if not torch.cuda.is_available():
        logger.warning("--gpus %s: this machine has no usable GPU, the CPU is used", args.gpus)
        return
    available = torch.cuda.device_count()
    if not all(0 <= number < available for number in wanted):
        raise ArgumentError(f"--gpus {args.gpus}: this machine has the GPUs 0 to {available - 1}")
    if len(wanted) > 1:
        more = "For several, write the loop with DistributedDataParallel"
        logger.warning("one process uses one GPU: GPU %d is used. %s", wanted[0], more)
    args.device = f"cuda:{wanted[0]}"


def make_optimizer(args: argparse.Namespace, model: nn.Module) -> Optimizer:
    """The optimizer of ``--opt`` with ``--lr``, ``--weight-decay`` and, for sgd, ``--momentum``."""
    parameters = model.parameters()
    optimizer: Optimizer
    if args.opt == "sgd":
        optimizer = torch.optim.SGD(parameters, args.lr, momentum=args.momentum, weight_decay=args.weight_decay)
    else:
        kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[args.opt]
        optimizer = kind(parameters, args.lr, weight_decay=args.weight_decay)
    logger.debug("Optimizer: %s %s", type(optimizer).__name__, optimizer.defaults)
    return optimizer


def init_learner(args: argparse.Namespace, task: Task | None = None) -> Learner:
    """Build the model, or take that of ``task``, load what the arguments name, and read the schedule.

    ``--resume-from`` continues exactly. ``--resume`` is Distiller's deprecated form: it implies ``--reset-optimizer``.
    Raises :class:`ArgumentError`, :class:`CheckpointError`, :class:`ScheduleError` and ``FileNotFoundError``.
    """
    if args.pretrained:
        raise ArgumentError(
            "--pretrained: nothing is downloaded. Give a file with weights: --exp-load-weights-from FILE"
        )
    if args.deprecated_resume:
        logger.warning("--resume is deprecated: write --resume-from FILE --reset-optimizer")
        args.resumed_checkpoint_path, args.reset_optimizer = args.deprecated_resume, True
    task = task or Task()
    model = create_model(False, args.dataset, args.arch) if task.model is None else task.model
    model = model.to(args.device)
    teachers = {**load_teachers(args), **{name: one.to(args.device) for name, one in task.teachers.items()}}
    if args.resumed_checkpoint_path:
        return _resumed(args, model, teachers, task)
    if args.load_model_path:
        model = load_lean_checkpoint(model, args.load_model_path, args.device)
        logger.info("Loaded weights from %s", args.load_model_path)
    optimizer = None if args.evaluate else _optimizer(args, model, task)
    if not args.compress:
        scheduler, text = CompressionScheduler(model, optimizer=optimizer), None
    else:
        example = task.inputs_for(model)
        scheduler = load_schedule(model, optimizer, args.compress, teachers=teachers, example_inputs=example)
        model, text = model.to(args.device), _text_of(args.compress)
    add_distillation_policy(args, scheduler, teachers)
    return Learner(model, scheduler, optimizer, 0, text)


def _optimizer(args: argparse.Namespace, model: nn.Module, task: Task) -> Optimizer:
    return task.optimizer_for(model) or make_optimizer(args, model)


def _resumed(args: argparse.Namespace, model: nn.Module, teachers: Mapping[str, nn.Module], task: Task) -> Learner:
    path = args.resumed_checkpoint_path
    model, scheduler, optimizer, start_epoch = resume_checkpoint(
        model,
        path,
        args.device,
        schedule_file=args.compress or None,
        make_optimizer=None if args.evaluate else lambda model: _optimizer(args, model, task),
        reset=args.reset_optimizer,
        teachers=teachers,
        example_inputs=task.inputs_for(model),
        add_policies=lambda scheduler: add_distillation_policy(args, scheduler, teachers),
    )
    text = _text_of(args.compress) if args.compress else None
    if text is None and not args.reset_optimizer:
        text = read_checkpoint(path).schedule_text
    return Learner(model, scheduler, optimizer, start_epoch, text)


def _text_of(path: str) -> str:
    return Path(path).read_text(encoding="utf-8")
