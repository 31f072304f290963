"""IDX files, the format of MNIST and its relatives: finding, reading and checking them.

An IDX file is big-endian: two zero bytes, one byte for the element type (8 = unsigned byte), one for the number of
dimensions, a 32-bit size a dimension, then the elements. Described at http://yann.lecun.com/exdb/mnist/.
"""

from __future__ import annotations

import gzip
import logging
import math
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from distiller_ng.apputils.datasets.base import InMemorySource, Split
from distiller_ng.errors import DatasetError, listed

__all__ = ["IdxSource", "read_idx"]

_logger = logging.getLogger(__name__)
_UNSIGNED_BYTE = 8
_PREFIX: dict[Split, str] = {"train": "train", "test": "t10k"}
_GZIP_MAGIC = b"\x1f\x8b"


def _content(path: Path) -> bytes:
    try:
        raw = path.read_bytes()
        # By content, not by name: downloads are often unpacked, or renamed, without the suffix following.
        return gzip.decompress(raw) if raw.startswith(_GZIP_MAGIC) else raw
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DatasetError(f"{path}: damaged gzip file ({error}); fetch it again") from error
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read ({error})") from error


def read_idx(path: Path, *, dimensions: int) -> Tensor:
    """The unsigned bytes of an IDX file, gzipped or not, as uint8 with ``dimensions`` dimensions.

    Example: a label file starts with the bytes ``00 00 08 01``; one with the size ``00 00 00 03`` and the data
    ``07 02 01`` gives ``tensor([7, 2, 1])``. Raises :class:`DatasetError`, naming the file, for a wrong magic number,
    another element type, and a size that does not match the header.
    """
    content = _content(path)
    expected = bytes((0, 0, _UNSIGNED_BYTE, dimensions))
    if content[:4] != expected:
        raise DatasetError(
            f"{path}: not an IDX file of unsigned bytes with {dimensions} dimension(s): it starts with "
            f"{content[:4].hex(' ') or 'nothing'}, expected {expected.hex(' ')}"
        )
    start = 4 + 4 * dimensions
    if len(content) < start:
        raise DatasetError(f"{path}: truncated inside its header ({len(content)} bytes)")
    shape = struct.unpack(f">{dimensions}I", content[4:start])
    size = math.prod(shape)
    if len(content) - start != size:
        state = "truncated" if len(content) - start < size else "too long"
        raise DatasetError(
            f"{path}: {state}: its header says {' x '.join(map(str, shape))} = {size} bytes, "
            f"it holds {len(content) - start}; fetch it again"
        )
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=start).copy()).view(shape)


class IdxSource(InMemorySource):
    """A data set of four IDX files, ``{train,t10k}-{images-idx3,labels-idx1}-ubyte``, gzipped or not.

    They are looked for in ``data_dir``, in its ``subfolders`` and in ``system_dirs``. One folder must hold both files
    of a split: images of one folder are never paired with labels of another.
    """

    name: str
    how_to_get: str
    subfolders: Sequence[str] = ()
    system_dirs: Sequence[Path] = ()

    def read(self, split: Split) -> tuple[Tensor, Tensor]:
        """uint8 images ``[N, 1, H, W]`` and int64 labels; :class:`DatasetError` says what is missing or damaged."""
        images_path, labels_path = self._find(split)
        images = read_idx(images_path, dimensions=3).unsqueeze(1)
        labels = read_idx(labels_path, dimensions=1).long()
        if len(images) != len(labels):
            raise DatasetError(
                f"{images_path} holds {len(images)} images, but {labels_path} {len(labels)} labels: "
                "they are not of the same set"
            )
        return images, labels

    def _find(self, split: Split) -> tuple[Path, Path]:
        prefix = _PREFIX[split]
        images_name, labels_name = f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte"
        folders = self._folders()
        for folder in folders:
            images, labels = _existing(folder, images_name), _existing(folder, labels_name)
            if images is not None and labels is not None:
                if self.data_dir is not None and folder in self.system_dirs:
                    _logger.info("%s: nothing in %s, using the installed files in %s", self.name, self.data_dir, folder)
                return images, labels
            if images is not None or labels is not None:
                present, absent = (images, labels_name) if images is not None else (labels, images_name)
                raise DatasetError(f"{self.name}: found {present}, but no {absent}[.gz] beside it. {self.how_to_get}")
        where = listed(map(str, folders), limit=20) or "nowhere (no data_dir was given)"
        raise DatasetError(
            f"{self.name}: {images_name}[.gz] and {labels_name}[.gz] not found. Looked in: {where}. {self.how_to_get}"
        )

    def _folders(self) -> list[Path]:
        own = [self.data_dir, *(self.data_dir / sub for sub in self.subfolders)] if self.data_dir is not None else []
        return [*own, *self.system_dirs]


def _existing(folder: Path, name: str) -> Path | None:
    for spelling in (name, name.replace("-idx", ".idx")):
        for path in (folder / spelling, folder / f"{spelling}.gz"):
            if path.is_file():
                return path
    return None
