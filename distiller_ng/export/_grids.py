"""Which grid each tensor of a traced graph lies on (layer 4)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from distiller_ng.export._constants import Constants
from distiller_ng.export._dequantize import DEQUANTIZE, FAKE_QUANTIZE
from distiller_ng.ops.linear_quantization import QuantizationParameters

__all__ = ["MOVING", "PADDING", "Grids", "bits_of", "same_grid"]

_aten = torch.ops.aten

#: Operators whose results are values of their first argument.
MOVING = {
    *(_aten.view.default, _aten.reshape.default, _aten._unsafe_view.default, _aten.flatten.using_ints),
    *(_aten.permute.default, _aten.transpose.int, _aten.t.default, _aten.movedim.int, _aten.unflatten.int),
    *(_aten.squeeze.default, _aten.squeeze.dim, _aten.squeeze.dims, _aten.unsqueeze.default, _aten.expand.default),
    *(_aten.clone.default, _aten.contiguous.default, _aten.alias.default, _aten.detach.default),
    *(_aten.slice.Tensor, _aten.select.int, _aten.narrow.default, _aten.index_select.default, _aten.repeat.default),
    *(_aten.split.Tensor, _aten.split_with_sizes.default, _aten.chunk.default, _aten.unbind.int),
    *(_aten.max_pool1d.default, _aten.max_pool2d.default, _aten.max_pool3d.default),
    *(_aten.max_pool2d_with_indices.default, _aten.max_pool3d_with_indices.default),
    *(_aten.amax.default, _aten.amin.default, _aten.max.dim, _aten.min.dim),
    *(_aten.pixel_shuffle.default, _aten.upsample_nearest1d.vec, _aten.upsample_nearest2d.vec, _aten.flip.default),
}
#: Those that add zeros.
_WITH_ZEROS = {_aten.relu.default}
#: Those that surround a tensor with a value.
PADDING = {_aten.constant_pad_nd.default, _aten.pad.default}
_JOINING = {_aten.cat.default, _aten.stack.default}


class Grids:
    """Finds grids by following values back to where they were quantized."""

    def __init__(self, constants: Constants) -> None:
        self._constants = constants
        self._found: dict[fx.Node, QuantizationParameters | None] = {}

    def of(self, node: Any) -> QuantizationParameters | None:
        """The grid every value of ``node`` lies on; None where it is in floating point."""
        if not isinstance(node, fx.Node) or node.op != "call_function":
            return None
        if node not in self._found:
            self._found[node] = self._follow(node)
        return self._found[node]

    def written(self, node: fx.Node) -> QuantizationParameters | None:
        """The grid that a quantizing operator itself has; None where it depends on the inputs."""
        scale, zero_point = (self._constants.tensor(argument) for argument in node.args[1:3])
        if scale is None or zero_point is None:
            return None
        if node.target is FAKE_QUANTIZE:
            _, _, _, axis, qmin, qmax = node.args
            return QuantizationParameters(scale, zero_point, int(qmin), int(qmax), axis)  # type: ignore[arg-type]
        qmin, qmax = node.meta["integer_range"]
        return QuantizationParameters(scale, zero_point, qmin, qmax, node.args[3])  # type: ignore[arg-type]

    def _follow(self, node: fx.Node) -> QuantizationParameters | None:
        if node.target in (FAKE_QUANTIZE, DEQUANTIZE):
            return self.written(node)
        if node.target in MOVING or getattr(node.target, "__name__", "") == "getitem":
            return self._per_tensor(node.args[0])
        if node.target in _WITH_ZEROS or (node.target in PADDING and _pads_zeros(node)):
            grid = self._per_tensor(node.args[0])
            return grid if grid is not None and grid.qmin <= int(grid.zero_point) <= grid.qmax else None
        if node.target in _JOINING:
            grids = [self._per_tensor(part) for part in node.args[0]]  # type: ignore[union-attr]
            first = grids[0] if grids else None
            if first is not None and all(one is not None and same_grid(first, one) for one in grids):
                return first
        return None

    def _per_tensor(self, node: Any) -> QuantizationParameters | None:
        grid = self.of(node)
        return grid if grid is not None and grid.axis is None else None


def _pads_zeros(node: fx.Node) -> bool:
    rest = [value for value in (*node.args[2:], *node.kwargs.values()) if value != "constant"]
    return all(value is None or value == 0 for value in rest)


def same_grid(one: QuantizationParameters, other: QuantizationParameters) -> bool:
    """Whether both have the same levels."""
    return (
        one.axis == other.axis
        and (one.qmin, one.qmax) == (other.qmin, other.qmax)
        and _equal(one.scale, other.scale)
        and _equal(one.zero_point, other.zero_point)
    )


def bits_of(grid: QuantizationParameters) -> int:
    """How many bits its integers need: 8 for -127 .. 127, 4 for 0 .. 15."""
    return max(int(grid.qmax - grid.qmin).bit_length(), 1)


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one.reshape(-1), other.reshape(-1))
