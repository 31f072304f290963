"""A safetensors file with a checked description: what sparse and packed models are stored in (layer 4).

Any reader of safetensors opens it and sees plain tensors; the description (JSON in the header) says how they were made
smaller. Each tensor has a checksum, so a changed byte is found before a model computes with it.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distiller_ng.checkpoint.contents import environment, library_version
from distiller_ng.errors import ArgumentError, CheckpointError, ExportError, listed
from distiller_ng.ops.files import replacing
from distiller_ng.ops.optional import require

__all__ = ["FORMAT_VERSION", "TensorFile", "read_tensor_file", "write_tensor_file"]

#: Version of the layout; a file of a newer one is refused.
FORMAT_VERSION = 2
_FORMAT = "distiller_ng"


@dataclass(frozen=True, slots=True)
class TensorFile:
    """What a file holds: its tensors by their names in the file, and the description (JSON values)."""

    path: str
    tensors: Mapping[str, Tensor]
    description: Mapping[str, Any]


def write_tensor_file(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], description: Mapping[str, Any]
) -> Path:
    """Write the file in one step; tensors are stored contiguous, on the CPU, each in its own dtype.

    Raises :class:`ExportError` for a dtype or layout safetensors cannot hold, :class:`ArgumentError` without the
    package, ``OSError`` when the file cannot be written (an older one is then still whole).
    """
    save = require("safetensors.torch", "export", "writing safetensors").save
    plain: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if tensor.layout is not torch.strided or tensor.device.type == "meta":
            raise ExportError(f"{name}: a tensor with layout {tensor.layout} on {tensor.device} cannot be stored")
        plain[name] = tensor.detach().as_subclass(Tensor).cpu().contiguous().clone()
    header = {
        "format": _FORMAT,
        "format_version": str(FORMAT_VERSION),
        "library_version": library_version(),
        "environment": json.dumps(environment()),
        "checksums": json.dumps([_checksum(plain[name]) for name in sorted(plain)], separators=(",", ":")),
        "description": json.dumps(description, allow_nan=False, separators=(",", ":")),
    }
    try:
        content = save(plain, metadata=header)
    except (KeyError, ValueError, RuntimeError, TypeError) as error:
        raise ExportError(f"safetensors cannot hold these tensors: {error}") from error
    with replacing(path) as file:
        file.write(content)
    return Path(path)


def read_tensor_file(path: str | os.PathLike[str]) -> TensorFile:
    """Read and check a file of :func:`write_tensor_file`; tensors on the CPU. Nothing in the file is executed.

    Raises ``FileNotFoundError``, and :class:`CheckpointError` for a damaged or foreign file and one of a newer format.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise FileNotFoundError(f"there is no file {os.fspath(path)!r}")
    safetensors = require("safetensors", "export", "reading safetensors")
    try:
        with safetensors.safe_open(file, framework="pt", device="cpu") as opened:
            header = dict(opened.metadata() or {})
            description, checksums = _read_header(file, header)
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - not a mapping
            if isinstance(checksums, list):
                checksums = dict(zip(sorted(tensors), checksums, strict=True))
    except (safetensors.SafetensorError, OSError, ValueError, RuntimeError, TypeError, RecursionError) as error:
        if isinstance(error, CheckpointError | ArgumentError):
            raise
        raise CheckpointError(f"{file}: damaged, or no safetensors file ({error})") from error
    _check_sums(file, tensors, checksums)
    return TensorFile(os.fspath(path), tensors, description)


def _read_header(file: Path, header: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, Any] | list[Any]]:
    """The description, and checksums: in the order of the tensors' names, in version 1 by name."""
    if header.get("format") != _FORMAT:
        raise CheckpointError(
            f"{file}: holds tensors, but no description by distiller_ng: load it with safetensors.torch.load_file"
        )
    version = header.get("format_version", "")
    if not version.isdecimal() or int(version[:9]) > FORMAT_VERSION:
        raise CheckpointError(
            f"{file}: has format version {version[:20]!r}, this library reads up to {FORMAT_VERSION}: load it with a "
            "newer distiller_ng"
        )
    parts = [json.loads(header.get(name, "null")) for name in ("description", "checksums")]
    if not isinstance(parts[0], dict) or not isinstance(parts[1], dict | list):
        raise CheckpointError(f"{file}: damaged: its description or its checksums are missing")
    return parts[0], parts[1]


def _check_sums(file: Path, tensors: Mapping[str, Tensor], checksums: Mapping[str, Any]) -> None:
    if set(tensors) != set(checksums):
        odd = sorted(set(tensors) ^ set(checksums))
        raise CheckpointError(f"{file}: damaged: tensors and checksums differ in {listed(odd, limit=4)}")
    damaged = [name for name, tensor in tensors.items() if _checksum(tensor) != checksums[name]]
    if damaged:
        raise CheckpointError(f"{file}: damaged: bytes of {listed(damaged, limit=4)} changed since it was written")


def _checksum(tensor: Tensor) -> int:
    return zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().tobytes()) if tensor.numel() else 0
