"""Checkpoints for applications: models built from the zoo, schedules read again from their text (layer 5)."""

from __future__ import annotations

import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.optim import Optimizer

from distiller_ng import checkpoint
from distiller_ng.checkpoint import Checkpoint
from distiller_ng.config import file_config
from distiller_ng.core.scheduler import CompressionScheduler
from distiller_ng.errors import CheckpointError, ScheduleWarning
from distiller_ng.models import create_model
from distiller_ng.names import unwrap

__all__ = ["load_checkpoint", "load_lean_checkpoint", "load_schedule", "resume_checkpoint"]

logger = logging.getLogger(__name__)

PathLike: TypeAlias = "str | os.PathLike[str]"
Device: TypeAlias = "str | torch.device"


def load_checkpoint(
    model: nn.Module | None,
    chkpt_file: PathLike,
    optimizer: Optimizer | None = None,
    model_device: Device | None = None,
    lean_checkpoint: bool = False,
    strict: bool = False,
    *,
    scheduler: CompressionScheduler | None = None,
    restore_position: bool = True,
) -> tuple[nn.Module, CompressionScheduler | None, Optimizer | None, int]:
    """:func:`distiller_ng.checkpoint.load_checkpoint`; ``model=None`` builds the file's architecture from the zoo.

    Returns ``(model, scheduler, optimizer, start_epoch)``. The scheduler is ``scheduler``, restored exactly, or a new
    one with the saved masks and no policies; :func:`resume_checkpoint` also reads the saved schedule again.
    """
    return checkpoint.load_checkpoint(
        model,
        chkpt_file,
        optimizer,
        model_device,
        lean_checkpoint,
        strict,
        scheduler=scheduler,
        model_factory=_from_zoo,
        restore_position=restore_position,
    )


def load_lean_checkpoint(
    model: nn.Module | None, chkpt_file: PathLike, model_device: Device | None = None
) -> nn.Module:
    """Load only the weights of a checkpoint; ``model=None`` builds the file's architecture from the zoo."""
    return checkpoint.load_lean_checkpoint(model, chkpt_file, model_device, model_factory=_from_zoo)


def resume_checkpoint(
    model: nn.Module | None,
    chkpt_file: PathLike,
    model_device: Device | None = None,
    *,
    schedule_file: PathLike | None = None,
    make_optimizer: Callable[[nn.Module], Optimizer] | None = None,
    reset: bool = False,
    teachers: Mapping[str, nn.Module] | None = None,
    add_policies: Callable[[CompressionScheduler], None] | None = None,
) -> tuple[nn.Module, CompressionScheduler, Optimizer | None, int]:
    """Continue a run from its checkpoint alone: ``(model, scheduler, optimizer, start_epoch)``, restored exactly.

    The schedule is read again from the text the checkpoint holds, or from ``schedule_file``. A different schedule keeps
    the masks and the absolute epoch and begins its own policies. ``make_optimizer`` builds the optimizer where the file
    has none. ``reset`` keeps only weights and masks: new optimizer, epoch 0. ``teachers`` are those the schedule
    names; ``add_policies`` adds what the run had beyond its schedule, before its state is restored.

    A loop that calls the hooks itself must call ``scheduler.resume_point.restore_rng()`` before its first epoch.
    Raises what ``load_checkpoint`` and ``file_config`` raise. Example::

        model, scheduler, optimizer, _ = resume_checkpoint(None, "logs/run/checkpoint.pth.tar")
        for epoch in scheduler.epochs(90):
            ...
    """
    saved = checkpoint.read_checkpoint(chkpt_file)
    model, masked, optimizer, start_epoch = checkpoint.restore(
        saved, model, None, model_device, model_factory=_from_zoo
    )
    fresh = optimizer is None or reset
    if fresh and make_optimizer is not None:
        optimizer = make_optimizer(model)
    elif reset:
        optimizer = None
    start_epoch = 0 if reset else start_epoch
    resumed = start_epoch - 1 if fresh and start_epoch else None
    text = None if reset else saved.schedule_text
    scheduler = _schedule(text, model, optimizer, schedule_file, resumed, teachers)
    if saved.scheduler_state is None:
        scheduler = scheduler or masked
    scheduler = scheduler or CompressionScheduler(model, optimizer=optimizer)
    if add_policies is not None:
        add_policies(scheduler)
    if saved.scheduler_state is not None:
        _restore(scheduler, saved, exact=not reset)
    return model, scheduler, optimizer, start_epoch


def _schedule(
    text: str | None,
    model: nn.Module,
    optimizer: Optimizer | None,
    schedule_file: PathLike | None,
    resumed_epoch: int | None,
    teachers: Mapping[str, nn.Module] | None,
) -> CompressionScheduler | None:
    if schedule_file is not None:
        return load_schedule(model, optimizer, schedule_file, resumed_epoch=resumed_epoch, teachers=teachers)
    if text is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "schedule.yaml"
        path.write_text(text, encoding="utf-8")
        return load_schedule(model, optimizer, path, resumed_epoch=resumed_epoch, teachers=teachers)


def _restore(scheduler: CompressionScheduler, saved: Checkpoint, *, exact: bool) -> None:
    state = saved.scheduler_state or {}
    try:
        scheduler.load_state_dict(state, restore_position=exact)
    except CheckpointError as error:
        # Distiller's way of continuing a trained model with a new schedule. Masks that do not fit fail here again.
        scheduler.load_state_dict(state, restore_position=False)
        logger.warning("masks and epoch are kept, the schedule's policies begin afresh: %s", error)


def load_schedule(
    model: nn.Module,
    optimizer: Optimizer | None,
    schedule_file: PathLike,
    *,
    resumed_epoch: int | None = None,
    teachers: Mapping[str, nn.Module] | None = None,
) -> CompressionScheduler:
    """``file_config`` with the model's own input shape as example input; what is odd about the file is logged."""
    shape = getattr(unwrap(model), "input_shape", None)
    example: tuple[Any, ...] | None = None
    if shape is not None:
        device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
        example = (torch.randn(tuple(shape), generator=torch.Generator().manual_seed(0)).to(device),)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ScheduleWarning)
        scheduler = file_config(
            model, optimizer, schedule_file, resumed_epoch=resumed_epoch, example_inputs=example, teachers=teachers
        )
    for warning in caught:
        logger.warning("%s", warning.message)
    return scheduler


def _from_zoo(dataset: str, arch: str) -> nn.Module:
    return create_model(False, dataset, arch)
