"""A weight as one row of numbers in which what is pruned together lies together (layer 2)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from distiller_ng.ops.mask_types import MaskType

__all__ = ["FlatLayout"]

_WIDEST = 64  # inputs of a block that is scored as a whole; wider ones are scored weight by weight


@dataclass(frozen=True, slots=True)
class FlatLayout:
    """``width`` neighbours along the inputs are neighbours here; a rest is filled up with zeros to a whole group.

    >>> layout = FlatLayout.of(torch.Size([2, 3]), MaskType.parse("block4"))
    >>> layout.width, layout.size
    (4, 8)
    """

    shape: tuple[int, ...]
    width: int = 1

    @classmethod
    def of(cls, shape: tuple[int, ...], mask_type: MaskType) -> FlatLayout:
        """For a weight of ``shape``; groups are formed for blocks of one output only."""
        outputs, inputs = mask_type.block
        joint = mask_type.kind == "block" and outputs == 1 and 1 < inputs <= _WIDEST
        return cls(tuple(shape), inputs if joint else 1)

    @property
    def size(self) -> int:
        """How many numbers, the filling included."""
        if self.width == 1:
            return math.prod(self.shape)
        rows, inputs, kernel = self._parts()
        return rows * kernel * -(-inputs // self.width) * self.width

    def flat(self, tensor: Tensor) -> Tensor:
        """``[size]`` from the weight's shape."""
        if self.width == 1:
            return tensor.reshape(-1)
        rows, inputs, kernel = self._parts()
        last = tensor.reshape(rows, inputs, kernel).transpose(1, 2)
        return functional.pad(last, (0, -inputs % self.width)).reshape(-1)

    def shaped(self, flat: Tensor) -> Tensor:
        """The weight's shape from ``[size]``."""
        if self.width == 1:
            return flat.view(self.shape)
        rows, inputs, kernel = self._parts()
        return flat.view(rows, kernel, -1)[..., :inputs].transpose(1, 2).reshape(self.shape)

    def _parts(self) -> tuple[int, int, int]:
        if len(self.shape) < 2:
            return 1, math.prod(self.shape), 1
        return self.shape[0], self.shape[1], math.prod(self.shape[2:])
