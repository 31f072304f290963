"""Loading checkpoints: everything is checked first, then the model is filled (layer 3)."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from distiller_ng.checkpoint._undo import Undo
from distiller_ng.checkpoint.contents import Checkpoint, read_checkpoint
from distiller_ng.checkpoint.files import PathLike
from distiller_ng.checkpoint.optimizers import check_optimizer, follow_structure, rebuild_optimizer
from distiller_ng.checkpoint.resumable import LoadedScheduler
from distiller_ng.core.scheduler import CompressionScheduler
from distiller_ng.errors import CheckpointError, did_you_mean, listed
from distiller_ng.names import ParameterIndex, strip_wrappers, unwrap

__all__ = ["ModelFactory", "load_checkpoint", "load_lean_checkpoint", "restore"]

logger = logging.getLogger(__name__)

#: Builds the model a checkpoint was made with: ``factory(dataset, arch)``.
ModelFactory: TypeAlias = "Callable[[str, str], nn.Module]"
Loaded: TypeAlias = "tuple[nn.Module, CompressionScheduler | None, Optimizer | None, int]"

#: What reading a state raises whose values are of other types or shapes than they were saved with.
UNREADABLE_STATE = (KeyError, IndexError, TypeError, AttributeError, ValueError, RuntimeError)
# Written since torch 0.4.1 only; an older file loads without it.
_OPTIONAL_SUFFIX = "num_batches_tracked"


def load_checkpoint(
    model: nn.Module | None,
    chkpt_file: PathLike,
    optimizer: Optimizer | None = None,
    model_device: str | torch.device | None = None,
    lean_checkpoint: bool = False,
    strict: bool = False,
    *,
    scheduler: CompressionScheduler | None = None,
    model_factory: ModelFactory | None = None,
    restore_position: bool = True,
) -> Loaded:
    """Load a file of ``save_checkpoint``, of Distiller, or one with nothing but ``state_dict``.

    Args:
        model: filled in place; None builds it with ``model_factory(dataset, arch)`` from what the file says.
        chkpt_file: nothing in it is executed.
        optimizer: restored in place; None makes a new one of the saved class.
        model_device: where to move the model; None leaves it where it is.
        lean_checkpoint: the weights alone: the result is ``(model, None, None, 0)``.
        strict: names in the file that the model does not have are an error, not a logged warning.
        scheduler: a scheduler with the run's schedule, restored in place for an exact resume. Without one the result
            holds a new scheduler with the saved masks and no policies; ``file_config(model, optimizer, filename,
            scheduler, start_epoch - 1)`` with the run's own schedule then restores the rest (:class:`LoadedScheduler`).
        restore_position: False takes only the masks, and the schedule then starts anywhere.

    Returns ``(model, scheduler, optimizer, start_epoch)``; the latter is the saved epoch + 1. Of a file with weights
    alone they are ``(model, None, None, 0)``, unless given. Raises ``FileNotFoundError``, and
    :class:`CheckpointError` for a damaged file, missing or misshapen weights, another architecture, optimizer or
    schedule; then model, optimizer and scheduler are unchanged.
    """
    checkpoint = read_checkpoint(chkpt_file)
    return restore(
        checkpoint,
        model,
        optimizer,
        model_device,
        lean=lean_checkpoint,
        strict=strict,
        scheduler=scheduler,
        model_factory=model_factory,
        restore_position=restore_position,
    )


def load_lean_checkpoint(
    model: nn.Module | None,
    chkpt_file: PathLike,
    model_device: str | torch.device | None = None,
    *,
    model_factory: ModelFactory | None = None,
) -> nn.Module:
    """Load only the weights of a checkpoint and return the model; see :func:`load_checkpoint`."""
    return load_checkpoint(model, chkpt_file, None, model_device, lean_checkpoint=True, model_factory=model_factory)[0]


def restore(
    checkpoint: Checkpoint,
    model: nn.Module | None,
    optimizer: Optimizer | None = None,
    model_device: str | torch.device | None = None,
    *,
    lean: bool = False,
    strict: bool = False,
    scheduler: CompressionScheduler | None = None,
    model_factory: ModelFactory | None = None,
    restore_position: bool = True,
) -> Loaded:
    """:func:`load_checkpoint` for a checkpoint that was already read."""
    if model is None:
        model = _build(checkpoint, model_factory)
    else:
        _check_arch(checkpoint, model)
    if len(checkpoint.record):
        # Structure and weights are tried on a copy first: a transform that fails half-way leaves the model alone.
        changed = checkpoint.record.replay(copy.deepcopy(unwrap(model)))
        _fitting(checkpoint, changed, strict=strict)
        _refuse_buckets(checkpoint, model, changed)
    undo = Undo(model, optimizer)
    finished = False
    try:
        if len(checkpoint.record):
            parameters = dict(ParameterIndex(model))
            model = checkpoint.record.replay(model)
            if optimizer is not None and not lean and checkpoint.optimizer_names is not None:
                follow_structure(optimizer, model, parameters, checkpoint.optimizer_names)
        weights = _fitting(checkpoint, model, strict=strict)
        if not lean:
            _check_model(scheduler, model)
            # What policies train beside the model joins the optimizer with the schedule's state.
            has_late = scheduler is not None and restore_position and _lacks_groups(optimizer, checkpoint)
            if has_late:
                scheduler = _restore_scheduler(checkpoint, model, scheduler, restore_position)
            optimizer = _restore_optimizer(checkpoint, model, optimizer)
            if not has_late:
                scheduler = _restore_scheduler(checkpoint, model, scheduler, restore_position)
        finished = True
    finally:
        if not finished:
            undo.run()
    unwrap(model).load_state_dict(weights, strict=False)
    if model_device is not None:
        model.to(model_device)
    if lean:
        return model, None, None, 0
    logger.info("Loaded %s: weights, and %s", checkpoint.path, _rest(checkpoint))
    return model, scheduler, optimizer, checkpoint.start_epoch


def _build(checkpoint: Checkpoint, factory: ModelFactory | None) -> nn.Module:
    if factory is None:
        raise CheckpointError(f"{checkpoint.path}: pass the model to load into, or model_factory to build it")
    missing = [key for key in ("dataset", "arch") if getattr(checkpoint, key) is None]
    if missing:
        raise CheckpointError(
            f"{checkpoint.path}: does not say its {' and '.join(missing)}, so the model cannot be built from it: "
            "build it yourself and pass it as model"
        )
    return factory(str(checkpoint.dataset), str(checkpoint.arch))


def _check_arch(checkpoint: Checkpoint, model: nn.Module) -> None:
    arch = getattr(unwrap(model), "arch", None)
    if isinstance(arch, str) and checkpoint.arch is not None and arch != checkpoint.arch:
        raise CheckpointError(f"{checkpoint.path}: is of a {checkpoint.arch!r}, but the model is a {arch!r}")


def _fitting(checkpoint: Checkpoint, model: nn.Module, *, strict: bool) -> dict[str, Any]:
    """The weights under the model's own names; raises :class:`CheckpointError` listing everything that does not fit."""
    raw = unwrap(model).state_dict()
    wanted = {short: (full, raw[full]) for short, full in strip_wrappers(raw).items()}
    given = checkpoint.state_dict
    problems = []
    missing = [name for name in wanted if name not in given and not name.endswith(_OPTIONAL_SUFFIX)]
    if missing:
        problems.append(f"{len(missing)} missing: {listed(missing, limit=5)}")
    unexpected = [name for name in given if name not in wanted]
    if unexpected:
        text = f"{len(unexpected)} not in the model: {listed(unexpected, limit=5)}"
        if strict or missing:
            hint = f" ({did_you_mean(unexpected[0], missing)})" if missing else ""
            problems.append(text + hint)
        else:
            logger.warning("%s: ignored, %s", checkpoint.path, text)
    problems += _misshapen(given, wanted)
    if problems:
        raise CheckpointError(f"{checkpoint.path}: does not fit the model: {'; '.join(problems)}")
    return {full: given[short] for short, (full, _) in wanted.items() if short in given}


def _misshapen(given: Mapping[str, Any], wanted: Mapping[str, tuple[str, Any]]) -> list[str]:
    found = []
    for name, (_, mine) in wanted.items():
        theirs = given.get(name)
        if isinstance(mine, Tensor) and name in given and not isinstance(theirs, Tensor):
            found.append(f"{name} is a {type(theirs).__name__}, the model's a tensor")
        elif (
            isinstance(mine, Tensor) and isinstance(theirs, Tensor) and not is_lazy(mine) and mine.shape != theirs.shape
        ):
            found.append(f"{name} is {list(theirs.shape)}, the model's {list(mine.shape)}")
    return [f"{len(found)} of another shape: {listed(found, limit=5)}"] if found else []


def _refuse_buckets(checkpoint: Checkpoint, model: nn.Module, changed: nn.Module) -> None:
    shapes = ([parameter.shape for parameter in each.parameters()] for each in (unwrap(model), changed))
    if isinstance(model, nn.parallel.DistributedDataParallel) and next(shapes) != next(shapes):
        raise CheckpointError(
            f"{checkpoint.path}: changes the model's structure, and DistributedDataParallel has sized its gradient "
            "buckets already: load into the bare model on every rank, then wrap it"
        )


def _check_model(scheduler: CompressionScheduler | None, model: nn.Module) -> None:
    if scheduler is not None and unwrap(scheduler.model) is not unwrap(model):
        raise CheckpointError("the scheduler belongs to another model than the one to load into")


def _lacks_groups(optimizer: Optimizer | None, checkpoint: Checkpoint) -> bool:
    state = checkpoint.optimizer_state
    saved = state.get("param_groups") if isinstance(state, Mapping) else None  # a damaged one is told later
    return optimizer is not None and isinstance(saved, list) and len(optimizer.param_groups) < len(saved)


def _restore_optimizer(checkpoint: Checkpoint, model: nn.Module, optimizer: Optimizer | None) -> Optimizer | None:
    kind, state, names = checkpoint.optimizer_type, checkpoint.optimizer_state, checkpoint.optimizer_names
    try:
        if optimizer is None:
            return rebuild_optimizer(model, kind=kind, state=state, names=names)
        if state is not None:
            check_optimizer(optimizer, model, kind=kind, state=state, names=names)
            optimizer.load_state_dict(dict(state))
    except CheckpointError:
        raise
    except UNREADABLE_STATE as error:
        reason = f"{type(error).__name__}: {error}"
        raise CheckpointError(f"{checkpoint.path}: optimizer state is damaged: {reason}") from error
    return optimizer


def _restore_scheduler(
    checkpoint: Checkpoint, model: nn.Module, scheduler: CompressionScheduler | None, restore_position: bool
) -> CompressionScheduler | None:
    state = checkpoint.scheduler_state
    if state is None:
        if scheduler is not None:
            logger.warning("%s holds no scheduler state: the schedule starts afresh", checkpoint.path)
        return scheduler
    exact = scheduler is not None and restore_position
    owed = state if restore_position else None
    restored = scheduler if scheduler is not None else LoadedScheduler(model, owed)
    try:
        restored.load_state_dict(state, restore_position=exact)
    except CheckpointError:
        raise
    except UNREADABLE_STATE as error:
        reason = f"{type(error).__name__}: {error}"
        raise CheckpointError(f"{checkpoint.path}: scheduler state is damaged: {reason}") from error
    return restored


def _rest(checkpoint: Checkpoint) -> str:
    parts = {
        "masks and schedule state": checkpoint.scheduler_state,
        f"{checkpoint.optimizer_type} state": checkpoint.optimizer_state,
    }
    held = [name for name, value in parts.items() if value is not None]
    return f"{', '.join(held) or 'nothing else'}; continues with epoch {checkpoint.start_epoch}"
