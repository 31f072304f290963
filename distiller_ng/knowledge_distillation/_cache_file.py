"""The file that holds a teacher's logits: written as a stream, moved into place whole, read through a memory map.

The layout is that of safetensors (https://huggingface.co/docs/safetensors): eight bytes with the header's length, a
JSON header padded with spaces, then the arrays: ``logits`` float16 ``[N, ...]``, filling bytes, ``ids`` int64 ``[N]``
(row i of the logits belongs to sample ``ids[i]``). The header's metadata holds the :class:`Origin` as JSON.
"""

from __future__ import annotations

import json
import math
import os
import struct
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from distiller_ng.errors import CalibrationError

__all__ = ["CacheFile", "CacheWriter", "Origin"]

_KEY = "distiller_ng.teacher_cache"
_VERSION = 1
_HEADER = 8192 - 8  # bytes; room for a shape, the origin and a good margin
_LARGEST_HEADER = 1 << 20


@dataclass(frozen=True, slots=True)
class Origin:
    """What a cache was made from.

    ``fingerprint`` and ``teacher`` (a class name) say which teacher; ``samples`` is the length of the data set whose
    numbers the ids are, and ``digests`` maps a few of its samples to digests of their inputs. None where the data set
    has no length or its samples are random; ``is_random`` tells these apart.
    """

    fingerprint: str
    teacher: str
    samples: int | None = None
    digests: Mapping[str, str] = field(default_factory=dict)
    is_random: bool = False
    version: int = _VERSION


class CacheWriter:
    """Appends rows to a temporary file beside ``path``; :meth:`finish` moves it there, a failure removes it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.shape: tuple[int, ...] | None = None
        self.rows = 0
        self._temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
        self._file: BinaryIO | None = None

    def __enter__(self) -> CacheWriter:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self._temporary, "xb")
        self._file.write(b" " * (8 + _HEADER))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
        self._temporary.unlink(missing_ok=True)

    def append(self, logits: npt.NDArray[np.float16]) -> None:
        """Add rows ``[B, ...]``; all have the shape of the first."""
        assert self._file is not None
        self.shape = logits.shape[1:]
        self.rows += len(logits)
        self._file.write(np.ascontiguousarray(logits).data)

    def finish(self, ids: npt.NDArray[np.int64], origin: Origin) -> None:
        """Write ids and header, and put the file in place in one step; an older file is replaced."""
        assert self._file is not None and self.shape is not None
        end = self.rows * math.prod(self.shape) * 2
        filling = -end % 8  # readers view the bytes of int64 in place, which asks for a multiple of eight
        self._file.write(b"\0" * filling)
        self._file.write(ids.astype("<i8").data)
        begin = end + filling
        header: dict[str, Any] = {
            "__metadata__": {_KEY: json.dumps(asdict(origin))},
            "logits": {"dtype": "F16", "shape": [self.rows, *self.shape], "data_offsets": [0, end]},
            "ids": {"dtype": "I64", "shape": [self.rows], "data_offsets": [begin, begin + 8 * self.rows]},
        }
        if filling:
            header["filling"] = {"dtype": "U8", "shape": [filling], "data_offsets": [end, begin]}
        text = json.dumps(header).encode().ljust(_HEADER)
        self._file.seek(0)
        self._file.write(struct.pack("<Q", _HEADER) + text[:_HEADER])
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        os.replace(self._temporary, self.path)


class CacheFile:
    """An open cache: ``logits`` (a memory map ``[N, ...]``), ``ids`` ``[N]`` and ``origin``.

    Raises ``FileNotFoundError``, and :class:`CalibrationError` for a file that is no cache, is damaged or newer.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if self.path.is_dir():
            raise CalibrationError(f"{self.path} is a folder: give the file that cache_teacher wrote")
        header, start = self._header()
        self.origin = self._origin(header)
        try:
            shape = tuple(int(size) for size in header["logits"]["shape"])
            begin = start + int(header["ids"]["data_offsets"][0])
        except (KeyError, TypeError, ValueError, IndexError):
            raise self._damaged("its header does not describe logits and ids") from None
        size = self.path.stat().st_size
        if not shape or min(shape) < 1 or start + 2 * math.prod(shape) > begin or begin + 8 * shape[0] != size:
            raise self._damaged(f"its header speaks of {list(shape)} logits, which do not fill its {size} bytes")
        self.logits: npt.NDArray[np.float16] = np.memmap(self.path, "<f2", "r", start, shape)
        self.ids: npt.NDArray[np.int64] = np.fromfile(self.path, "<i8", shape[0], offset=begin)
        # Ids in ascending order, and the row of each: with them a batch is found in O(B log N).
        self._order = np.argsort(self.ids, kind="stable")
        self._sorted = self.ids[self._order]
        self._is_complete = bool((self._sorted == np.arange(len(self.ids))).all())
        if (np.diff(self._sorted) == 0).any():
            raise self._damaged("a sample id stands in it twice")

    def rows(self, ids: Sequence[int] | npt.NDArray[np.int64]) -> npt.NDArray[np.float16]:
        """The logits of these samples ``[B, ...]``; :class:`CalibrationError` for a sample the cache does not hold."""
        wanted = np.asarray(ids, np.int64)
        if self._is_complete and len(wanted) and wanted.min() >= 0 and wanted.max() < len(self.ids):
            return self.logits[self._order[wanted]]  # the ids are 0 to N - 1: nothing to search
        places = np.searchsorted(self._sorted, wanted)
        places = np.minimum(places, len(self._sorted) - 1)
        missing = wanted[self._sorted[places] != wanted]
        if len(missing):
            raise CalibrationError(
                f"{self.path} holds no logits of sample {missing[0]}: it has {len(self.ids)} samples with ids from "
                f"{self._sorted[0]} to {self._sorted[-1]}. It belongs to other data: write it again with cache_teacher"
            )
        return self.logits[self._order[places]]

    def _header(self) -> tuple[dict[str, Any], int]:
        with open(self.path, "rb") as file:
            first = file.read(8)
            length = struct.unpack("<Q", first)[0] if len(first) == 8 else 0
            if not 2 <= length <= _LARGEST_HEADER:
                raise self._damaged("it does not begin as one")
            text = file.read(length)
        try:
            header = json.loads(text)
        except (ValueError, RecursionError):
            raise self._damaged("it does not begin as one") from None
        if not isinstance(header, dict):
            raise self._damaged("it does not begin as one")
        return header, 8 + length

    def _origin(self, header: Mapping[str, Any]) -> Origin:
        try:
            found = json.loads(header["__metadata__"][_KEY])
            version = int(found["version"])
            if version <= _VERSION:
                return Origin(**found)
        except (KeyError, TypeError, ValueError):
            raise self._damaged("it does not say which teacher made it") from None
        raise CalibrationError(
            f"{self.path} has version {version} of the format, this library reads up to {_VERSION}: write it again "
            "with cache_teacher, or update distiller_ng"
        )

    def _damaged(self, why: str) -> CalibrationError:
        return CalibrationError(
            f"{self.path} is no whole file of teacher logits ({why}): write it again with cache_teacher"
        )
