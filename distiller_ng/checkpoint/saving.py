"""Writing checkpoints (layer 3)."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from distiller_ng.checkpoint.contents import FORMAT_VERSION, environment, get_contents_table, library_version
from distiller_ng.checkpoint.files import PathLike, copy_file, plain_data, write_file
from distiller_ng.checkpoint.optimizers import group_names, optimizer_type_name
from distiller_ng.checkpoint.packing import pack_masks
from distiller_ng.checkpoint.record import CompressionRecord
from distiller_ng.core.scheduler import CompressionScheduler
from distiller_ng.errors import ArgumentError, CheckpointError
from distiller_ng.names import strip_wrappers, unwrap

__all__ = ["save_checkpoint"]

logger = logging.getLogger(__name__)


def save_checkpoint(
    epoch: int,
    arch: str | None,
    model: nn.Module,
    optimizer: Optimizer | None = None,
    scheduler: CompressionScheduler | None = None,
    extras: Mapping[str, Any] | None = None,
    is_best: bool = False,
    name: str | None = None,
    dir: PathLike = ".",
    *,
    schedule_text: str | None = None,
    record: CompressionRecord | None = None,
) -> Path:
    """Write ``[name_]checkpoint.pth.tar`` into ``dir``, and with ``is_best`` ``[name_]best.pth.tar``; its path.

    Args:
        epoch: the epoch that just ended; a run resumed from the file continues with ``epoch + 1``.
        arch: name of the architecture, checked when loading; None leaves it out.
        model: wrapped or not; the file has canonical names.
        optimizer: its state is saved, and its class by name.
        scheduler: masks (packed to bits), the state of every policy, the position and the random generators.
        extras: a dict of plain values and tensors of your own.
        schedule_text: the YAML of the schedule, so that the file alone can be resumed.
        record: structural changes made to the model; loading makes them again on a fresh one. Those that can be seen
            on the model (quantization) need not be in it.

    The file holds plain data and tensors: ``torch.load(path, weights_only=True)`` reads it. It appears in one step, an
    older file stays whole until then. Raises ``FileNotFoundError`` when ``dir`` does not exist, ``TypeError`` for
    extras that are no dict, :class:`CheckpointError` for values a checkpoint cannot hold.
    """
    folder = Path(dir).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(f"checkpoint folder {str(dir)!r} does not exist: create it first")
    if extras is not None and not isinstance(extras, Mapping):
        raise TypeError(f"extras must be a dict, got {type(extras).__name__}")
    if name and Path(name).name != name:
        raise ArgumentError(f"name {name!r} is a file's prefix, without folders: use dir= for those")
    content = _content(epoch, arch, model, optimizer, scheduler)
    content["extras"] = plain_data(extras or {}, where="extras")
    content["schedule_text"] = schedule_text
    content["structure"] = (record or CompressionRecord()).completed(unwrap(model)).to_json()

    prefix = f"{name}_" if name else ""
    path = folder / f"{prefix}checkpoint.pth.tar"
    logger.debug("checkpoint:\n%s", get_contents_table(content))
    write_file(path, content)
    logger.info("Saved checkpoint to: %s", path)
    if is_best:
        copy_file(path, folder / f"{prefix}best.pth.tar")
    return path


def _content(
    epoch: int,
    arch: str | None,
    model: nn.Module,
    optimizer: Optimizer | None,
    scheduler: CompressionScheduler | None,
) -> dict[str, Any]:
    inner = unwrap(model)
    raw = inner.state_dict()
    state = {short: raw[full] for short, full in strip_wrappers(raw).items()}
    dataset = getattr(inner, "dataset", None)
    content: dict[str, Any] = {
        "format": "distiller_ng",
        "format_version": FORMAT_VERSION,
        "library_version": library_version(),
        "environment": environment(),
        "epoch": int(epoch),
        "arch": arch,
        "is_parallel": False,
        "state_dict": plain_data(state, where="state_dict"),
    }
    if isinstance(dataset, str):
        content["dataset"] = dataset
    if optimizer is not None:
        content["optimizer_type"] = optimizer_type_name(optimizer)
        content["optimizer_names"] = group_names(optimizer, inner)
        content["optimizer_state_dict"] = plain_data(optimizer.state_dict(), where="optimizer state")
    if scheduler is not None:
        if unwrap(scheduler.model) is not inner:
            raise CheckpointError("the scheduler belongs to another model than the one to be saved")
        content["compression_sched"] = plain_data(pack_masks(scheduler.state_dict()), where="scheduler state")
    return content
