"""How one tensor is stored: as it is, as its nonzero values, or as integers of few bits (layer 4).

==========  ==================================================================  ==================================
encoding    stored                                                              size of ``n`` values, density ``d``
==========  ==================================================================  ==================================
dense       the tensor                                                          ``n`` values
mask        one bit a value (1: not zero), the values that are not zero         ``n / 8`` bytes + ``d * n`` values
grid        integers of ``b`` bits, scale and zero point (tensor, channel or    ``n * b / 8`` bytes + scales
            group of weights)
codebook    numbers of the tensor's distinct values, and these (at most 256)    ``n * b / 8`` bytes + ``2**b`` values
==========  ==================================================================  ==================================

Integers take a mask too where that is smaller: then only those of values other than zero are stored. What is read back
equals what was stored, value for value (only the sign of a zero is not kept); grids and codebooks are tried on
the tensor itself before they are chosen.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from distiller_ng.errors import CheckpointError
from distiller_ng.export.packed_bits import pack_bits, unpack_bits
from distiller_ng.ops.linear_quantization import QuantizationParameters, along_axis

__all__ = ["Encoded", "WeightGrid", "decode", "encode", "full_entries", "grid_of_entry", "short_entries"]

_FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_INTEGERS = (torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64)
_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in (*_FLOATS, *_INTEGERS)}
_WORTH = 64  # bytes an encoding must save, for its entry in the description
_PAIR = 192  # a mask and its values are two tensors, each with its place in safetensors' index and a checksum
#: What entries do not say: most tensors are stored as they are, most grids have these.
_USUAL: dict[str, Any] = {"axis": None, "group_size": None, "reciprocal": False, "masked": False}
_SAMPLE = 4096


@dataclass(frozen=True, slots=True)
class WeightGrid:
    """Where a tensor's values lie: ``(q - zero_point) * scale``, or Distiller's ``(q + zero_point) / scale``.

    ``scale`` and ``zero_point``: one value (``axis`` None), one for each slice along ``axis``, or ``[C, groups]`` for
    groups of ``group_size`` consecutive weights of each output channel.
    """

    scale: Tensor
    zero_point: Tensor
    axis: int | None = None
    group_size: int | None = None
    reciprocal: bool = False
    qmin: int | None = None
    qmax: int | None = None

    @classmethod
    def of(cls, params: QuantizationParameters) -> WeightGrid:
        """The grid of a quantizer."""
        return cls(params.scale, params.zero_point, params.axis, qmin=params.qmin, qmax=params.qmax)

    def integers(self, values: Tensor) -> Tensor:
        """The nearest integers ``q`` of the grid, int64."""
        scale, zero = self._like(values)
        wide = values.to(_wide(values.dtype))
        steps = torch.round(wide * scale if self.reciprocal else wide / scale)
        return (steps - zero if self.reciprocal else steps + zero).to(torch.int64)

    def values(self, integers: Tensor, dtype: torch.dtype, kept: Tensor | None = None) -> Tensor:
        """What the integers stand for, in ``dtype``; zero where ``kept`` (bool) is False."""
        scale, zero = self._like(integers, _wide(dtype))
        steps = integers.to(scale.dtype)
        steps = steps + zero if self.reciprocal else steps - zero
        if kept is not None:
            steps = steps * kept
        return (steps / scale if self.reciprocal else steps * scale).to(dtype)

    def _like(self, tensor: Tensor, wide: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
        """Scale and zero point in the shape of ``tensor``."""
        dtype = wide or _wide(tensor.dtype)
        if self.group_size is None:
            parts = (along_axis(part.to(dtype).reshape(-1), tensor.dim(), self.axis) for part in self._parts())
            scale, zero = parts if self.axis is not None else (part.reshape(()) for part in parts)
            return scale, zero
        row = math.prod(tensor.shape[1:])
        spread = (part.to(dtype).repeat_interleave(self.group_size, dim=1)[:, :row] for part in self._parts())
        scale, zero = (part.reshape(tensor.shape) for part in spread)
        return scale, zero

    def _parts(self) -> tuple[Tensor, Tensor]:
        return self.scale.detach().cpu(), self.zero_point.detach().cpu()


@dataclass(frozen=True, slots=True)
class Encoded:
    """One tensor's entry in the description, and what the file holds for it."""

    entry: dict[str, Any]
    tensors: dict[str, Tensor]

    @property
    def file_bytes(self) -> int:
        """Bytes of the stored tensors."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors.values())


def encode(name: str, tensor: Tensor, grid: WeightGrid | None = None, *, coded: bool = True) -> Encoded:
    """The smallest encoding of ``tensor`` that gives it back; ``coded`` allows grids and codebooks.

    A float32 tensor ``[1000, 10]`` with 900 zeros in 1000 takes 40,000 bytes dense and 1,250 + 4,000 with a mask.
    """
    plain = tensor.detach().as_subclass(Tensor).cpu().contiguous()
    best = Encoded({"encoding": "dense"}, {name: plain})
    if plain.dtype not in _DTYPES.values() or plain.numel() == 0:
        return best
    for candidate in _candidates(name, plain, grid, coded=coded):
        least = _PAIR if candidate.entry["encoding"] == "mask" else _WORTH
        if candidate.file_bytes + least <= best.file_bytes and _gives_back(name, candidate, plain):
            best = candidate
    return best


def short_entries(encoded: Mapping[str, Encoded]) -> dict[str, dict[str, Any]]:
    """Entries as a file keeps them: without tensors stored as they are, and without what is usual."""
    return {
        name: {key: value for key, value in one.entry.items() if key not in _USUAL or value != _USUAL[key]}
        for name, one in encoded.items()
        if one.entry["encoding"] != "dense"
    }


def full_entries(entries: Mapping[str, Mapping[str, Any]], stored: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Entries of :func:`short_entries` with all they say, and one for every other tensor of the file."""
    full = {name: {**_USUAL, **entry} for name, entry in entries.items()}
    whole = (name for name in stored if name.rpartition(":")[0] not in entries)
    return full | {name: {"encoding": "dense"} for name in whole if name not in entries}


def decode(name: str, entry: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Tensor:
    """The tensor of an entry; raises :class:`CheckpointError` when entry and stored tensors do not fit each other."""
    try:
        return _decode(name, entry, tensors)
    except (KeyError, TypeError, ValueError, RuntimeError, IndexError, OverflowError) as error:
        if isinstance(error, CheckpointError):
            raise CheckpointError(f"{name}: {error}") from error
        raise CheckpointError(f"{name}: its entry is damaged ({type(error).__name__}: {error})") from error


def grid_of_entry(name: str, entry: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> QuantizationParameters | None:
    """The quantizer's grid that was stored with a tensor; None where there was none."""
    if entry.get("encoding") != "grid" or entry.get("qmin") is None or entry.get("group_size") is not None:
        return None
    scale, zero_point = tensors[f"{name}:scale"], tensors[f"{name}:zero_point"]
    return QuantizationParameters(scale, zero_point, int(entry["qmin"]), int(entry["qmax"]), entry["axis"])


def _gives_back(name: str, candidate: Encoded, plain: Tensor) -> bool:
    if candidate.entry["encoding"] == "mask":  # exact by construction; NaN would not equal itself
        return True
    return torch.equal(_decode(name, candidate.entry, candidate.tensors), plain)


def _candidates(name: str, plain: Tensor, grid: WeightGrid | None, *, coded: bool) -> Iterator[Encoded]:
    kept = plain != 0
    about = {"shape": list(plain.shape), "dtype": str(plain.dtype).removeprefix("torch.")}
    mask = pack_bits(kept, 1)
    yield Encoded({"encoding": "mask", **about}, {f"{name}:mask": mask, f"{name}:values": plain[kept]})
    if not coded or not plain.is_floating_point():
        return
    if grid is not None:
        # Cloned: scales of several layers may share one storage, which safetensors refuses.
        stored = {f"{name}:scale": grid.scale.detach().clone(), f"{name}:zero_point": grid.zero_point.detach().clone()}
        fields = {
            **{"encoding": "grid", **about, "axis": grid.axis, "group_size": grid.group_size},
            **{"reciprocal": grid.reciprocal, "qmin": grid.qmin, "qmax": grid.qmax},
        }
        yield from _coded(name, fields, stored, grid.integers(plain), kept, mask)
    few = torch.unique(plain.reshape(-1)[:_SAMPLE]).numel() <= 256
    if few:
        yield from _codebooks(name, about, plain, kept, mask)


def _codebooks(name: str, about: dict[str, Any], plain: Tensor, kept: Tensor, mask: Tensor) -> Iterator[Encoded]:
    values, numbers = torch.unique(plain, return_inverse=True)
    if values.numel() <= 256:
        yield from _coded(name, {"encoding": "codebook", **about}, {f"{name}:codebook": values}, numbers, None, mask)
    values, numbers = torch.unique(plain[kept], return_inverse=True)
    if 0 < values.numel() <= 256:
        fields = {"encoding": "codebook", **about, "bits": _bits(numbers), "low": 0, "masked": True}
        stored = {f"{name}:codebook": values, f"{name}:mask": mask}
        yield Encoded(fields, {f"{name}:integers": pack_bits(numbers, fields["bits"]), **stored})


def _coded(
    name: str,
    fields: dict[str, Any],
    stored: dict[str, Tensor],
    integers: Tensor,
    kept: Tensor | None,
    mask: Tensor,
) -> Iterator[Encoded]:
    """All integers, and with ``kept`` also those alone, each in as many bits as their range takes."""
    for masked in (False, True) if kept is not None else (False,):
        chosen = integers[kept] if masked and kept is not None else integers
        if chosen.numel() == 0 or int(chosen.max()) - int(chosen.min()) > 255:
            continue
        low = int(chosen.min())
        bits = _bits(chosen - low)
        packed = {f"{name}:integers": pack_bits(chosen - low, bits), **stored}
        if masked:
            packed[f"{name}:mask"] = mask
        yield Encoded({**fields, "bits": bits, "low": low, "masked": masked}, packed)


def _bits(numbers: Tensor) -> int:
    return max(1, int(numbers.max()).bit_length())


def _decode(name: str, entry: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Tensor:
    encoding = entry["encoding"]
    if encoding == "dense":
        return tensors[name]
    shape, dtype = _shape(entry["shape"]), _DTYPES[entry["dtype"]]
    count = math.prod(shape)
    if encoding == "mask":
        kept = unpack_bits(tensors[f"{name}:mask"], 1, count).bool().reshape(shape)
        values = tensors[f"{name}:values"]
        if values.dtype != dtype or values.dim() != 1 or values.numel() != int(kept.sum()):
            raise CheckpointError(f"has {int(kept.sum())} values by its mask, the file holds {list(values.shape)}")
        result = torch.zeros(shape, dtype=dtype)
        result[kept] = values
        return result
    if encoding not in ("grid", "codebook"):
        raise CheckpointError(f"has the unknown encoding {encoding!r}")
    integers, kept_ones = _integers(name, entry, tensors, shape)
    if encoding == "codebook":
        codebook = tensors[f"{name}:codebook"].to(dtype)
        if codebook.dim() != 1 or (integers.numel() and int(integers.max()) >= codebook.numel()):
            raise CheckpointError("refers to values its codebook does not have")
        looked_up = codebook[integers]
        return looked_up if kept_ones is None else torch.where(kept_ones, looked_up, torch.zeros((), dtype=dtype))
    axis, group = entry["axis"], entry["group_size"]
    grid = WeightGrid(
        tensors[f"{name}:scale"], tensors[f"{name}:zero_point"], axis, group, reciprocal=entry["reciprocal"] is True
    )
    return grid.values(integers, dtype, kept_ones)


def _integers(
    name: str, entry: Mapping[str, Any], tensors: Mapping[str, Tensor], shape: list[int]
) -> tuple[Tensor, Tensor | None]:
    """The integers in their shape, int64, and which of them were stored (None: all)."""
    bits, low, count = int(entry["bits"]), int(entry["low"]), math.prod(shape)
    packed = tensors[f"{name}:integers"]
    if entry["masked"] is not True:
        return unpack_bits(packed, bits, count).to(torch.int64).add_(low).reshape(shape), None
    kept = unpack_bits(tensors[f"{name}:mask"], 1, count).bool().reshape(shape)
    integers = torch.zeros(shape, dtype=torch.int64)
    integers[kept] = unpack_bits(packed, bits, int(kept.sum())).to(torch.int64) + low
    return integers, kept


def _shape(value: Any) -> list[int]:
    if not isinstance(value, list) or not all(type(size) is int and 0 <= size < 1 << 40 for size in value):
        raise CheckpointError(f"has no shape: {str(value)[:60]}")
    return value


def _wide(dtype: torch.dtype) -> torch.dtype:
    """What grids are computed in, as ``fake_quantize`` does."""
    return torch.float64 if dtype == torch.float64 else torch.float32
