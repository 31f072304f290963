"""Checkpoints for applications: models built from the zoo, schedules read again from their text (layer 5)."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Mapping
from typing import TypeAlias

import torch
from torch import nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_map_only

from distiller_ng import checkpoint
from distiller_ng.checkpoint import Checkpoint
from distiller_ng.checkpoint.optimizers import check_optimizer, optimizer_type_name
from distiller_ng.config import file_config
from distiller_ng.core.scheduler import CompressionScheduler
from distiller_ng.errors import CheckpointError, ScheduleWarning
from distiller_ng.graph.inputs import ExampleInputs
from distiller_ng.models import create_model
from distiller_ng.names import unwrap
from distiller_ng.ops.modules import model_device

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
    example_inputs: ExampleInputs | None = None,
    add_policies: Callable[[CompressionScheduler], None] | None = None,
) -> tuple[nn.Module, CompressionScheduler, Optimizer | None, int]:
    """Continue a run from its checkpoint alone: ``(model, scheduler, optimizer, start_epoch)``, restored exactly.

    The schedule is read again from the text the checkpoint holds, or from ``schedule_file``. A different schedule keeps
    the masks and the absolute epoch and begins its own policies. ``make_optimizer`` builds the optimizer where the file
    has none, or one of a class that is not torch's. ``reset`` keeps only weights and masks: new optimizer, epoch 0.
    ``teachers`` are those the schedule names; ``example_inputs`` is what components need that follow the model's data
    flow (default: of its ``input_shape``); ``add_policies`` adds what the run had beyond its schedule, before its state
    is restored.

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
        fresh = reset or not _continued(optimizer, model, saved)
    elif reset:
        optimizer = None
    start_epoch = 0 if reset else start_epoch
    resumed = start_epoch - 1 if fresh and start_epoch else None
    text = None if reset else saved.schedule_text
    if schedule_file is not None or text is not None:
        source = schedule_file if schedule_file is not None else f"{text}\n"  # with a line break: not a path
        scheduler: CompressionScheduler | None = load_schedule(
            model, optimizer, source, resumed_epoch=resumed, teachers=teachers, example_inputs=example_inputs
        )
    else:
        scheduler = None
    if saved.scheduler_state is None:
        scheduler = scheduler or masked
    scheduler = scheduler or CompressionScheduler(model, optimizer=optimizer)
    if add_policies is not None:
        add_policies(scheduler)
    if saved.scheduler_state is not None:
        _restore(scheduler, saved, exact=not reset)
    return model, scheduler, optimizer, start_epoch


def _continued(optimizer: Optimizer, model: nn.Module, saved: Checkpoint) -> bool:
    """Give an optimizer of a class that is not torch's its saved state; whether the file had one."""
    if saved.optimizer_state is None or saved.optimizer_type != optimizer_type_name(optimizer):
        return False
    state, names = saved.optimizer_state, saved.optimizer_names
    check_optimizer(optimizer, model, kind=saved.optimizer_type, state=state, names=names)
    optimizer.load_state_dict(dict(state))
    return True


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
    example_inputs: ExampleInputs | None = None,
) -> CompressionScheduler:
    """``file_config`` with an example input of the model's own ``input_shape``, unless one is given.

    What is odd about the file is logged.
    """
    example, shape = example_inputs, getattr(unwrap(model), "input_shape", None)
    if example is None and shape is not None:
        example = ExampleInputs((torch.randn(tuple(shape), generator=torch.Generator().manual_seed(0)),))
    if example is not None:
        args, kwargs = tree_map_only(
            torch.Tensor, lambda tensor: tensor.to(model_device(model)), (example.args, dict(example.kwargs))
        )
        example = ExampleInputs(args, kwargs)
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
