"""What a checkpoint file holds, as one value (layer 3)."""

from __future__ import annotations

import logging
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from numbers import Number
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distiller_ng.checkpoint.files import PathLike, read_file
from distiller_ng.checkpoint.legacy import thinning_recipes
from distiller_ng.checkpoint.legacy_quantized import LegacyQuantization
from distiller_ng.checkpoint.optimizers import GroupNames, optimizer_type_name
from distiller_ng.checkpoint.packing import unpack_masks
from distiller_ng.checkpoint.record import CompressionRecord
from distiller_ng.errors import CheckpointError, listed
from distiller_ng.names import strip_wrappers
from distiller_ng.ops.table import Table

__all__ = ["FORMAT_VERSION", "Checkpoint", "environment", "get_contents_table", "library_version", "read_checkpoint"]

logger = logging.getLogger(__name__)

#: Version of the file's layout; a file of a newer one is refused.
FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """One checkpoint, read and checked but not yet put into anything.

    ``state_dict`` has canonical names; ``epoch`` is the last finished epoch, None in a file of weights alone;
    ``schedule_text`` is the YAML the run was started with; ``environment`` says what the file was written with.
    """

    path: str
    state_dict: Mapping[str, Any]
    epoch: int | None = None
    arch: str | None = None
    dataset: str | None = None
    scheduler_state: Mapping[str, Any] | None = None
    schedule_text: str | None = None
    optimizer_state: Mapping[str, Any] | None = None
    optimizer_type: str | None = None
    optimizer_names: GroupNames | None = None
    record: CompressionRecord = field(default_factory=CompressionRecord)
    extras: Mapping[str, Any] = field(default_factory=dict)
    version: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def start_epoch(self) -> int:
        """The epoch a resumed run continues with: the one after the last finished; 0 for weights alone."""
        return 0 if self.epoch is None else self.epoch + 1


def read_checkpoint(path: PathLike) -> Checkpoint:
    """Read a file of ``save_checkpoint``, of Distiller, or one with nothing but ``state_dict``; tensors on the CPU.

    Nothing in the file is executed. Raises ``FileNotFoundError``, and :class:`CheckpointError` for a damaged file, one
    without the key ``state_dict``, a newer format, and Distiller files of models
    quantized in a way that is not known here.
    """
    content = read_file(path)
    source = os.fspath(path)
    if "state_dict" not in content:
        hint = ""
        if content and all(isinstance(value, Tensor) for value in content.values()):
            hint = ". It looks like a bare state dict: save it as torch.save({'state_dict': state_dict}, path)"
        raise CheckpointError(
            f"{source}: a checkpoint holds the model's parameters under the key 'state_dict'; this file has the keys "
            f"{listed(map(str, content), limit=5)}{hint}"
        )
    version = content.get("format_version", 0)
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise CheckpointError(
            f"{source}: has format version {version!r}, this library reads up to {FORMAT_VERSION}: load it with "
            "a newer distiller_ng"
        )
    try:
        return _parse(content, source)
    except CheckpointError as error:
        if str(error).startswith(source):
            raise  # not damaged, but of a kind that is not known here
        raise CheckpointError(f"{source}: damaged: {error}") from error
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise CheckpointError(f"{source}: damaged: {type(error).__name__}: {error}") from error


def _parse(content: Mapping[str, Any], source: str) -> Checkpoint:
    raw = dict(content["state_dict"])
    state = {short: raw[name] for short, name in strip_wrappers(raw).items()}
    record, names = _record(content, source), content.get("optimizer_names")
    optimizer = content.get("optimizer_state_dict")
    if content.get("quantizer_metadata"):
        quantized = LegacyQuantization(content, state, source)
        state, names = quantized.state, quantized.optimizer_names
        record = CompressionRecord([*record, quantized.entry])
        if optimizer is not None and names is None:
            logger.warning("%s: which parameters its optimizer held is not known, its state is left out", source)
            optimizer = None
    epoch, scheduler = content.get("epoch"), content.get("compression_sched")
    return Checkpoint(
        path=source,
        state_dict=state,
        epoch=None if epoch is None else int(epoch),
        arch=content.get("arch"),
        dataset=content.get("dataset"),
        scheduler_state=None if scheduler is None else unpack_masks(scheduler),
        schedule_text=content.get("schedule_text"),
        optimizer_state=optimizer,
        optimizer_type=optimizer_type_name(content.get("optimizer_type")),
        optimizer_names=names,
        record=record,
        extras=dict(content.get("extras") or {}),
        version=content.get("library_version"),
        environment=dict(content.get("environment") or {}),
    )


def _record(content: Mapping[str, Any], source: str) -> CompressionRecord:
    record = CompressionRecord.from_json(content.get("structure") or "[]")
    recipes = thinning_recipes(content, source)
    if recipes:
        record.add("distiller_thinning", {"recipes": recipes})
    return record


def library_version() -> str:
    """The installed version of this library, e.g. ``"0.1.0"``."""
    try:
        return metadata.version("distiller_ng")
    except metadata.PackageNotFoundError:
        return "unknown"


def environment() -> dict[str, str]:
    """What a checkpoint is written with; no names of machines, users or folders."""
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "system": f"{platform.system()} {platform.machine()}",
    }


def get_contents_table(d: Mapping[str, Any]) -> str:
    """The keys of a checkpoint dictionary, sorted, with the type of each value and short values themselves.

    Example: ``{"epoch": 3}`` gives a line ``epoch  int  3``.
    """
    rows = [(str(key), type(value).__name__, _shown(value)) for key, value in d.items()]
    return str(Table("", ("Key", "Type", "Value"), tuple(sorted(rows))))


def _shown(value: Any) -> str:
    if isinstance(value, type):
        return value.__name__
    text = str(value) if isinstance(value, Number | str) else ""
    line = text.partition("\n")[0]
    return line if line == text and len(text) <= 60 else f"{line[:57]}..."
