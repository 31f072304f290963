"""Read a pickled CIFAR batch without running any code it may contain.

A pickle may name any importable function and call it, so nothing it names is ever looked up here: the few names an
array needs become inert stand-ins that only remember what they were given, every other name is refused. numpy's own
``__setstate__`` is not used either; bytes become an array through ``np.frombuffer``.
"""

from __future__ import annotations

import io
import math
import pickle
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from distiller_ng.errors import DatasetError

__all__ = ["load_pickled_batch"]

_DAMAGE = (
    pickle.UnpicklingError,
    EOFError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    OverflowError,
    MemoryError,
)


class _DType:
    """Stand-in for ``numpy.dtype``: an integer type and its byte order."""

    def __init__(self, code: str | bytes, *_: object) -> None:
        self.code = code.decode("ascii") if isinstance(code, bytes) else str(code)
        if self.code not in ("u1", "i1", "i4", "i8", "u4", "u8", "i2", "u2"):
            raise pickle.UnpicklingError(f"arrays of type {self.code!r} do not belong in a CIFAR batch")
        self.order = "<"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        order = state[1].decode("ascii") if isinstance(state[1], bytes) else str(state[1])
        self.order = ">" if order == ">" else "<"

    def read(self, content: bytes | bytearray, shape: tuple[int, ...], fortran: bool) -> np.ndarray:
        flat = np.frombuffer(content, np.dtype(self.order + self.code))
        if flat.size != math.prod(shape):
            raise pickle.UnpicklingError(f"array of shape {shape} has {flat.size} elements")
        return flat.reshape(shape, order="F" if fortran else "C")


class _Array:
    """Stand-in for ``numpy.ndarray``."""

    value: np.ndarray

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, content = state
        if not isinstance(dtype, _DType) or not isinstance(content, bytes | bytearray):
            raise pickle.UnpicklingError("an array without plain integer contents")
        self.value = dtype.read(content, tuple(int(n) for n in shape), bool(fortran))


def _reconstruct(*_: object) -> _Array:
    return _Array()


def _from_buffer(content: Any, dtype: Any, shape: Any, order: Any) -> _Array:
    array = _Array()
    array.__setstate__((1, shape, dtype, order == "F", content))
    return array


def _scalar(dtype: Any, content: Any) -> int:
    return int(dtype.read(content, (), False))


def _encode(text: str, encoding: str = "latin1") -> bytes:
    # Python 3 writes bytes into an old-protocol pickle as _codecs.encode(text, "latin1").
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"unexpected text encoding {encoding!r}")
    return str(text).encode("latin1")


def _empty_bytes() -> bytes:
    return b""


class _StandIn:
    """A function a pickle may call but not change: given the function itself, ``BUILD`` could set its attributes."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *arguments: object) -> Any:
        return self._function(*arguments)

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError("it tries to change the functions that read it")


class _BatchUnpickler(pickle.Unpickler):
    """Resolves only the names that arrays and byte strings need."""

    allowed: ClassVar[dict[tuple[str, str], Callable[..., Any]]] = {
        **{
            (f"numpy.{core}.{module}", name): _StandIn(function)
            for core in ("core", "_core")
            for module, name, function in (
                ("multiarray", "_reconstruct", _reconstruct),
                ("multiarray", "scalar", _scalar),
                ("numeric", "_frombuffer", _from_buffer),
            )
        },
        ("numpy", "ndarray"): _Array,
        ("numpy", "dtype"): _DType,
        ("_codecs", "encode"): _StandIn(_encode),
        ("builtins", "bytes"): _StandIn(_empty_bytes),
        ("__builtin__", "bytes"): _StandIn(_empty_bytes),
    }

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self.allowed[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it refers to {module}.{name}, which no CIFAR batch needs") from None


def _plain(value: object) -> object:
    return value.value if isinstance(value, _Array) else value


def load_pickled_batch(content: bytes, *, source: str) -> dict[str, object]:
    """The dictionary of one batch file: text keys; arrays, lists, numbers and bytes as values.

    Example: a pickle of ``{b"labels": [6, 9]}`` gives ``{"labels": [6, 9]}``. Raises :class:`DatasetError`, naming
    ``source``, for a damaged file and for one that refers to anything but integer arrays.
    """
    try:
        batch = _BatchUnpickler(io.BytesIO(content), encoding="bytes").load()
        if not isinstance(batch, dict):
            raise pickle.UnpicklingError(f"it holds a {type(batch).__name__}, not a dictionary")
        return {k.decode("latin1") if isinstance(k, bytes) else str(k): _plain(v) for k, v in batch.items()}
    except _DAMAGE as error:
        raise DatasetError(f"{source}: not a usable pickled CIFAR batch: {error}") from error
