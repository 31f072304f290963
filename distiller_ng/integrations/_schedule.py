"""What every integration is given: a schedule to load for a model and its optimizer (layer 5)."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from torch import nn
from torch.optim import Optimizer

from distiller_ng.checkpoint import CompressionRecord
from distiller_ng.checkpoint.optimizers import follow_structure, group_names
from distiller_ng.config import dict_config, file_config
from distiller_ng.core.scheduler import CompressionScheduler
from distiller_ng.errors import ArgumentError, LifecycleError
from distiller_ng.names import ParameterIndex, unwrap
from distiller_ng.policies.layer_thinning import LayerThinning
from distiller_ng.policies.low_rank_thinning import LowRankThinning
from distiller_ng.policies.rates import RATE_POLICIES
from distiller_ng.policies.structure_remover import StructureRemover

__all__ = [
    "Schedule",
    "checked_monitor",
    "compressed_module",
    "end_saved_epoch",
    "load_schedule",
    "make_structure_again",
    "refuse_engine",
    "refuse_structure_in_ddp",
    "sets_rates",
    "structure_of",
]

#: A file, its content as a dictionary, or a function ``(model, optimizer) -> CompressionScheduler``.
Schedule: TypeAlias = (
    "str | os.PathLike[str] | Mapping[str, Any] | Callable[[nn.Module, Optimizer], CompressionScheduler]"
)


def load_schedule(schedule: Schedule, model: nn.Module, optimizer: Optimizer, **options: Any) -> CompressionScheduler:
    """The scheduler of ``schedule``; ``options`` are those of :func:`distiller_ng.file_config`.

    Raises what :func:`file_config` raises, and :class:`ArgumentError` for anything that is no schedule.
    """
    if isinstance(schedule, str | os.PathLike):
        return file_config(model, optimizer, schedule, **options)
    if isinstance(schedule, Mapping):
        return dict_config(model, optimizer, schedule, **options)
    made = schedule(model, optimizer) if callable(schedule) else schedule
    if not isinstance(made, CompressionScheduler):
        raise ArgumentError(
            "a schedule is a file, a dictionary, or a function (model, optimizer) that returns a "
            f"CompressionScheduler, got {made!r}",
            argument=("schedule",),
        )
    return made


def sets_rates(scheduler: CompressionScheduler) -> bool:
    """Whether the schedule has learning rates, which a trainer's own would overwrite."""
    return any(isinstance(entry.policy, RATE_POLICIES) for entry in scheduler.entries)


def compressed_module(model: nn.Module, module: str | None) -> nn.Module:
    """The submodule of that name, or the model itself. Raises :class:`ArgumentError` for a name it does not have."""
    if module is None:
        return model
    try:
        return model.get_submodule(module)
    except AttributeError as error:
        raise ArgumentError(f"{type(model).__name__} has no module {module!r}: {error}") from error


def checked_monitor(monitor: Mapping[str, str] | None) -> dict[str, str]:
    """``{"min": metric, "max": metric}``, either key or none. Raises :class:`ArgumentError` for other keys."""
    if monitor is not None and not set(monitor) <= {"min", "max"}:
        raise ArgumentError(f"monitor names metrics as 'min' and 'max', got {dict(monitor)}", argument=("monitor",))
    return dict(monitor or {})


def structure_of(scheduler: CompressionScheduler, whole: nn.Module, optimizer: Optimizer | None) -> dict[str, Any]:
    """The structural changes made to the scheduler's model so far, for a checkpoint that others write.

    ``whole`` is the model whose parameters the optimizer holds, the compressed one or what it is part of.
    """
    record = CompressionRecord().completed(unwrap(scheduler.model)).to_json()
    return {"record": record, "names": None if optimizer is None else group_names(optimizer, whole)}


def make_structure_again(
    saved: Mapping[str, Any], scheduler: CompressionScheduler, whole: nn.Module, optimizer: Optimizer | None
) -> None:
    """Make the changes of :func:`structure_of` on a fresh model, before others load weights into it.

    Changes that were made already are left alone. Raises :class:`CheckpointError` where they do not fit.
    """
    before = dict(ParameterIndex(whole))
    CompressionRecord.from_json(saved["record"]).replay(scheduler.model)
    if optimizer is not None and saved["names"] is not None:
        follow_structure(optimizer, whole, before, saved["names"])


def end_saved_epoch(scheduler: CompressionScheduler, epoch: int, monitor: Mapping[str, str]) -> None:
    """Before ``epoch`` begins: end the one in which a checkpoint was saved after its last minibatch.

    Trainers go on with the next epoch then. Raises :class:`LifecycleError` where that end needs metrics, which the
    checkpoint was saved without.
    """
    point, opened = scheduler.resume_point, scheduler.open_epoch
    if point is None or opened is None or opened >= epoch or point.minibatch_id < point.minibatches_per_epoch:
        return
    if monitor:
        raise LifecycleError(
            f"the checkpoint was saved after the last minibatch of epoch {opened}, but before the validation whose "
            f"{', '.join(map(repr, monitor.values()))} the schedule needs: resume from one saved at the end of an epoch"
        )
    scheduler.on_epoch_end(opened, scheduler.optimizer)


def refuse_engine(user: str, engine: str | None) -> None:
    """Raises :class:`LifecycleError`, naming it, for an engine that owns parameters and the optimizer's step."""
    if engine:
        raise LifecycleError(f"the {user} runs {engine}, whose engine owns parameters and steps: use DDP")


def refuse_structure_in_ddp(user: str, scheduler: CompressionScheduler) -> None:
    """Raises :class:`LifecycleError` for a schedule that changes parameters which DistributedDataParallel has seen.

    Trainers wrap the model themselves, so that the policies, which check the model they are given, cannot see it.
    """
    kinds = (StructureRemover, LayerThinning, LowRankThinning)
    found = next((entry.policy for entry in scheduler.entries if isinstance(entry.policy, kinds)), None)
    if found is not None:
        raise LifecycleError(
            f"the {user} runs DistributedDataParallel, whose gradient buckets have the model's first sizes, but the "
            f"schedule changes its structure ({type(found).__name__}): train in one process, or change the "
            "model between two runs"
        )
