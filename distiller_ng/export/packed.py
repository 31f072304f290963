"""Weights of few bits, and pruned weights, in files of their real size (layer 4)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from distiller_ng.errors import ArgumentError, ExportError, did_you_mean
from distiller_ng.export.packed_contents import Contents, contents_of
from distiller_ng.export.packed_encoding import Encoded, WeightGrid, encode, short_entries
from distiller_ng.export.packed_file import write_tensor_file
from distiller_ng.names import canonical_name, unwrap
from distiller_ng.ops.linear_quantization import LinearQuantMode, check_bits, quantized_range, scale_and_zero_point
from distiller_ng.ops.sparsity import sparsity
from distiller_ng.ops.table import Table
from distiller_ng.quantization._weights import channel_axis, is_quantizable

__all__ = ["PackedReport", "PackedRow", "save_packed", "write_contents"]


@dataclass(frozen=True, slots=True)
class PackedRow:
    """One tensor: how it is stored, its bits for each stored value, its sparsity, and bytes before and in the file."""

    name: str
    encoding: str
    bits: int
    sparsity: float
    dense_bytes: int
    stored_bytes: int


@dataclass(frozen=True, slots=True)
class PackedReport:
    """What a file holds; ``print(report)`` shows a table. ``dense_bytes``: of all tensors stored as they are."""

    path: Path
    rows: tuple[PackedRow, ...]
    dense_bytes: int
    file_bytes: int

    @property
    def ratio(self) -> float:
        """File size by the size of the same tensors stored as they are."""
        return self.file_bytes / self.dense_bytes if self.dense_bytes else 1.0

    def table(self) -> Table:
        """One row a tensor."""
        title = f"{self.path.name}: {self.file_bytes:,} bytes, {self.ratio:.3f} of {self.dense_bytes:,}"
        columns = ("Name", "Encoding", "Bits", "Sparsity", "Bytes before", "Bytes in file")
        rows = [(r.name, r.encoding, r.bits, r.sparsity, r.dense_bytes, r.stored_bytes) for r in self.rows]
        return Table(title, columns, tuple(rows), decimals=3)

    def __str__(self) -> str:
        return str(self.table())


def save_packed(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    bits: int | None = None,
    group_size: int | None = None,
    keep: Sequence[str] = (),
) -> PackedReport:
    """Write the model with its quantized weights as integers of few bits; ``load_packed(factory, path)`` reads it.

    Takes models of every quantizer: post-training (``PostTrainLinearQuantizer(model, bits_activations=None,
    bits_parameters=4)`` quantizes weights alone) and aware. Each weight is stored in the bits its integers take, with
    its scales for the tensor or for each channel; zeros of pruned weights are left out where that is smaller; methods
    without uniform steps (DoReFa) store a codebook. Tensors that are not quantized are stored as they are.

    A model that no quantizer touched is rounded to the nearest of ``2**bits`` steps between smallest and largest
    weight, for each output channel, or for every ``group_size`` weights of one; zero stays zero. The model itself is
    not changed. ``keep``: names of layers that stay in floating point, such as the first and the last.

    A linear layer of 256 x 256 float32 weights takes 262,144 bytes, with 4 bits and groups of 64 about 38,000.
    Limits: this saves space, not time. Inference runs in floating point, since no kernel here multiplies 4-bit weights;
    for speed export int8 to ONNX, OpenVINO or torchao. Example::

        report = save_packed(model, "net.int4.safetensors", bits=4, group_size=64, keep=["fc"])
        print(report)
        again = load_packed(make_net, "net.int4.safetensors")

    Raises :class:`ArgumentError` for bits outside 1..8, ``bits`` with a model that is quantized already and for names
    in ``keep`` that do not exist; :class:`ExportError` for weights that are not finite.
    """
    contents = contents_of(model)
    if bits is not None:
        _round_weights(unwrap(model), contents, check_bits(bits, high=8, argument="bits"), group_size, keep)
    elif keep or group_size is not None:
        raise ArgumentError("keep and group_size belong to bits=..., which rounds a floating point model's weights")
    return write_contents(contents, path, coded=True, kind="packed")


def write_contents(contents: Contents, path: str | os.PathLike[str], *, coded: bool, kind: str) -> PackedReport:
    """Encode every tensor in its smallest form and write the file; see :func:`encode` for ``coded``."""
    encoded = {
        name: encode(name, tensor, contents.grids.get(name), coded=coded) for name, tensor in contents.tensors.items()
    }
    stored: dict[str, Tensor] = {}
    for one in encoded.values():
        twice = stored.keys() & one.tensors.keys()
        if twice:
            raise ExportError(f"two tensors of the model would be stored as {sorted(twice)[0]!r}: rename one")
        stored |= one.tensors
    description = {"kind": kind, "entries": short_entries(encoded), "structure": contents.structure}
    written = write_tensor_file(path, stored, description)
    rows = tuple(_row(name, contents.tensors[name], one) for name, one in encoded.items())
    return PackedReport(written, rows, sum(row.dense_bytes for row in rows), written.stat().st_size)


def _row(name: str, tensor: Tensor, encoded: Encoded) -> PackedRow:
    entry = encoded.entry
    kind = entry["encoding"] + (" + mask" if entry.get("masked") else "")
    size = tensor.element_size()
    zeros = sparsity(tensor) if tensor.numel() else 0.0
    return PackedRow(name, kind, entry.get("bits", 8 * size), zeros, tensor.numel() * size, encoded.file_bytes)


def _round_weights(
    model: nn.Module, contents: Contents, bits: int, group_size: int | None, keep: Sequence[str]
) -> None:
    """Put the weights of every layer on a grid, in ``contents`` alone."""
    if contents.grids or contents.structure.get("frozen"):
        raise ArgumentError("the model is quantized already: leave out bits, its own are used", argument=("bits",))
    if isinstance(keep, str) or (group_size is not None and (isinstance(group_size, bool) or group_size < 1)):
        message = f"keep is a list of layer names and group_size a number from 1, got {keep!r} and {group_size!r}"
        raise ArgumentError(message)
    layers = {canonical_name(name): layer for name, layer in model.named_modules() if is_quantizable(layer)}
    unknown = [name for name in keep if name not in layers]
    if unknown:
        message = f"the model has no layer {unknown[0]!r} with weights to quantize. {did_you_mean(unknown[0], layers)}"
        raise ArgumentError(message, argument=("keep",))
    for name, layer in layers.items():
        key = f"{name}.weight" if name else "weight"
        weight = contents.tensors.get(key)  # None: tied to another, which is rounded
        if name in keep or weight is None or weight.numel() == 0:
            continue
        if not bool(torch.isfinite(weight).all()):
            raise ExportError(f"{key} has values that are not finite: they cannot be quantized")
        grid = _nearest_grid(layer, weight.detach().cpu(), bits, group_size)
        integers = grid.integers(weight.detach().cpu()).clamp(0, 2**bits - 1)
        contents.tensors[key], contents.grids[key] = grid.values(integers, weight.dtype), grid


def _nearest_grid(layer: nn.Module, weight: Tensor, bits: int, group_size: int | None) -> WeightGrid:
    wide = weight.double() if weight.dtype == torch.float64 else weight.float()
    mode = LinearQuantMode.ASYMMETRIC_UNSIGNED
    qmin, qmax = quantized_range(bits, mode)
    axis = 0 if isinstance(layer, nn.Embedding) else channel_axis(layer, weight)
    if group_size is None:
        rows = wide.flatten()[None] if axis is None else wide.movedim(axis, 0).flatten(1)
        scale, zero = scale_and_zero_point(rows.amin(1), rows.amax(1), bits, mode)
        return (
            WeightGrid(scale, zero.to(torch.uint8), axis, qmin=qmin, qmax=qmax)
            if axis is not None
            else WeightGrid(scale.reshape(()), zero.reshape(()).to(torch.uint8), qmin=qmin, qmax=qmax)
        )
    rows = wide.flatten(1)
    groups = nn.functional.pad(rows, (0, -rows.shape[1] % group_size)).reshape(len(rows), -1, group_size)
    scale, zero = scale_and_zero_point(groups.amin(2), groups.amax(2), bits, mode)
    return WeightGrid(scale, zero.to(torch.uint8), 0, group_size, qmin=qmin, qmax=qmax)
