"""Reading and writing checkpoint files: plain data and tensors only, whole or not at all (layer 3)."""

from __future__ import annotations

import os
import pickle
import re
import secrets
import shutil
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
import torch
from torch import Tensor

from distiller_ng.checkpoint.legacy import placeholders_for
from distiller_ng.errors import CheckpointError

__all__ = ["PathLike", "copy_file", "plain_data", "read_file", "write_file"]

PathLike: TypeAlias = "str | os.PathLike[str]"
_ATOMS = (str, bytes, bool, int, float, complex, type(None), torch.dtype, torch.device, torch.Size)
# What torch.load raises for a damaged or foreign file, depending on how its first bytes read.
_UNREADABLE = (
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    LookupError,
    ValueError,
    AttributeError,
    TypeError,
    AssertionError,
    OSError,
    OverflowError,
    MemoryError,
    zipfile.BadZipFile,
    NotImplementedError,
)


class _ChangedError(ValueError):
    """The one reason for a damaged file that a user understands; torch's own speak of its unpickler."""


def plain_data(value: Any, *, where: str) -> Any:
    """A copy of ``value`` that ``torch.load(weights_only=True)`` can read, for writing.

    Mappings become dicts, numpy scalars Python numbers, parameters tensors; a tensor that is a view of a larger storage
    is copied, so that the file holds no more than what is shown. ``where`` names the value in messages. Raises
    :class:`CheckpointError` naming the place of anything else.
    """
    if isinstance(value, Tensor):
        return _compact(value.detach())
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str | int | float | bool | None):
                raise CheckpointError(f"{where}: the key {key!r} is a {type(key).__name__}; use a string or a number")
        return {key: plain_data(item, where=f"{where}[{key!r}]") for key, item in value.items()}
    if isinstance(value, _ATOMS):
        # A subclass of str or int (an enum member) would be pickled as a reference to its class.
        return value if type(value) in _ATOMS else _base_of(value)
    if isinstance(value, list | tuple):
        items = [plain_data(item, where=f"{where}[{position}]") for position, item in enumerate(value)]
        return tuple(items) if isinstance(value, tuple) else items
    raise CheckpointError(
        f"{where} is a {type(value).__name__}, which a checkpoint cannot hold: files are loaded without running any "
        "code. Store numbers, strings, lists, dicts and tensors"
    )


def _base_of(value: Any) -> Any:
    kinds: tuple[type[Any], ...] = (str, bytes, int, float, complex)
    return next((kind(value) for kind in kinds if isinstance(value, kind)), value)


def _compact(tensor: Tensor) -> Tensor:
    if tensor.layout is not torch.strided or tensor.device.type == "meta" or type(tensor) is not Tensor:
        return tensor
    used = tensor.numel() * tensor.element_size()
    return tensor.clone() if used < tensor.untyped_storage().nbytes() else tensor


def write_file(path: Path, payload: Mapping[str, Any]) -> None:
    """Write ``payload`` in one step: temporary file, flushed to the disk, then moved into place.

    ``payload`` must be :func:`plain_data`. Raises ``OSError`` when it cannot be written; an older file of that name is
    then still whole.
    """
    _replace(path, lambda file: torch.save(dict(payload), file))


def copy_file(source: Path, target: Path) -> None:
    """Copy a file as :func:`write_file` writes one."""
    with source.open("rb") as original:
        _replace(target, lambda file: shutil.copyfileobj(original, file))


def _replace(path: Path, write: Callable[[BinaryIO], None]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def read_file(path: PathLike) -> dict[str, Any]:
    """The dictionary a checkpoint file holds, tensors on the CPU; nothing in the file is executed.

    Class references of Distiller's own files become placeholders. Raises ``FileNotFoundError``, and
    :class:`CheckpointError` for a damaged file, one that needs code to load, and one that holds no dictionary.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise FileNotFoundError(f"there is no checkpoint file {os.fspath(path)!r}")
    if file.stat().st_size == 0:
        raise CheckpointError(f"{file}: damaged: the file is empty")
    try:
        with torch.serialization.safe_globals(placeholders_for(file)):
            content = torch.load(file, map_location="cpu", weights_only=True)
        _check_sums(file)
    except _UNREADABLE as error:
        raise CheckpointError(f"{file}: {_reason(error)}") from error
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{file}: holds a {type(content).__name__}, not the dictionary of a checkpoint")
    return dict(content)


def _check_sums(file: Path) -> None:
    """Raise :class:`_ChangedError` where bytes of a member changed since it was written; torch itself does not look.

    Torch can be told to write no checksums (``set_crc32_options(False)``): then none fits, and nothing is known.
    """
    if not zipfile.is_zipfile(file):
        return
    with zipfile.ZipFile(file) as archive:
        members = [member for member in archive.infolist() if member.file_size]
        damaged = [member.filename for member in members if not _is_whole(archive, member)]
    if damaged and len(damaged) < len(members):
        raise _ChangedError(f"bytes of {damaged[0]!r} changed since it was written")


def _is_whole(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bool:
    try:
        with archive.open(member) as stream:
            while stream.read(1 << 20):
                pass
    except zipfile.BadZipFile:
        return False
    return True


def _reason(error: BaseException) -> str:
    refused = re.search(r"GLOBAL (\S+)", str(error))
    if refused is not None:
        return (
            f"not loaded, since it refers to code ({refused[1]}). Checkpoints hold tensors and plain values only: save "
            "model.state_dict(), not the model"
        )
    changed = f" ({error})" if isinstance(error, _ChangedError) else ""
    return f"damaged, or not a checkpoint at all{changed}"
