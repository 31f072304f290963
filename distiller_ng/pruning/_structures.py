"""How a weight divides into the structures that rankers prune (layer 2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from torch import Tensor

from distiller_ng.errors import ArgumentError, did_you_mean
from distiller_ng.ops.norms import NormFunction, channels_norm, filters_norm
from distiller_ng.ops.thresholding import expand_binary_map

__all__ = ["FILTER_GROUPS", "RANKED_GROUPS", "FilterGroup", "RankedGroup", "Structures"]

#: Filters are dimension 0. ``3D`` is Distiller's other name for them.
FilterGroup: TypeAlias = Literal["3D", "Filters"]
#: ``Channels`` are dimension 1; ``Rows`` are those of the transposed matrix, so dimension 1 too; ``Blocks`` see below.
RankedGroup: TypeAlias = Literal["3D", "Filters", "Channels", "Rows", "Blocks"]
FILTER_GROUPS = ("3D", "Filters")
RANKED_GROUPS = (*FILTER_GROUPS, "Channels", "Rows", "Blocks")
# Least and most dimensions of the weights that have such structures.
_DIMENSIONS = {"3D": (2, 5), "Filters": (2, 5), "Channels": (2, 5), "Rows": (2, 2), "Blocks": (2, 5)}


@dataclass(frozen=True, slots=True)
class Structures:
    """One kind of structure: ``3D`` or ``Filters``, ``Channels``, ``Rows``, ``Blocks``.

    ``group_size`` adjacent structures are ranked and pruned together. ``block_shape`` is ``(repetitions, depth)``, of
    ``Blocks`` only: with depth above 1 a block is ``repetitions * depth`` consecutive kernels (one position of each),
    with depth 1 it is the same weight of ``repetitions`` consecutive filters. For a weight ``[4, 8, 3, 3]`` there are
    4 filters, 8 channels, and with block shape ``[1, 8, 1, 1]`` 36 blocks of 8 weights.
    """

    group_type: str
    group_size: int = 1
    block_shape: tuple[int, int] | None = None

    @classmethod
    def of(cls, group_type: str, group_size: int = 1, kwargs: Mapping[str, Sequence[int]] | None = None) -> Structures:
        """From a pruner's arguments; ``kwargs`` is ``{block_shape: [repetitions, depth, 1, 1]}`` for Blocks.

        Raises :class:`ArgumentError` for an unknown type, a group size below 1, or a missing or impossible block shape.
        """
        if group_type not in RANKED_GROUPS:
            message = f"unknown group_type {group_type!r}. {did_you_mean(str(group_type), RANKED_GROUPS)}"
            raise ArgumentError(message, argument=("group_type",))
        if isinstance(group_size, bool) or not isinstance(group_size, int) or group_size < 1:
            message = f"group_size must be a whole number from 1, got {group_size!r}"
            raise ArgumentError(message, argument=("group_size",))
        if group_type != "Blocks":
            _check_no_kwargs(group_type, kwargs)
            return cls(group_type, group_size)
        if group_size != 1:
            raise ArgumentError("Blocks are not grouped: leave group_size out", argument=("group_size",))
        return cls(group_type, 1, _block_shape(kwargs or {}))

    def problem_with(self, param: Tensor) -> str | None:
        """Why ``param`` has no such structures; None when it has."""
        least, most = _DIMENSIONS[self.group_type]
        shape = list(param.shape)
        if not least <= param.dim() <= most:
            allowed = str(least) if least == most else f"{least} to {most}"
            return f"group type {self.group_type!r} needs a weight of {allowed} dimensions, not shape {shape}"
        if self.block_shape is not None:
            repetitions, depth = self.block_shape
            blocks = param.shape[0] * param.shape[1] if depth > 1 else param.shape[0]
            if blocks % (repetitions * depth):
                return f"blocks of {repetitions} x {depth} x 1 x 1 do not divide a weight of shape {shape}"
        elif self.count(param) % self.group_size:
            return f"{self.count(param)} {self.group_type} of shape {shape} cannot be grouped by {self.group_size}"
        return None

    def count(self, param: Tensor) -> int:
        """How many structures ``param`` has."""
        if self.block_shape is not None:
            return param.numel() // (self.block_shape[0] * self.block_shape[1])
        return param.shape[0 if self.group_type in FILTER_GROUPS else 1]

    def magnitudes(self, param: Tensor, norm: NormFunction) -> Tensor:
        """``[count / group_size]``: the norm of each group of structures, divided by its number of weights."""
        wide = param.float() if param.element_size() < 4 else param  # half types lose too much in long sums
        if self.block_shape is not None:
            view = wide.reshape(self._block_view(param))
            magnitudes: Tensor = norm(view, dim=1)
            return magnitudes.flatten() / view.shape[1]
        compute = filters_norm if self.group_type in FILTER_GROUPS else channels_norm
        return compute(wide, norm, self.group_size, True)

    def expand(self, param: Tensor, binary_map: Tensor) -> Tensor:
        """A mask of ``param``'s shape and dtype from one value for each structure ``[count]``."""
        if self.block_shape is not None:
            view = self._block_view(param)
            blocks = binary_map.to(device=param.device, dtype=param.dtype).reshape(view[0], 1, view[2])
            return blocks.expand(view).reshape(param.shape).contiguous()
        return expand_binary_map(param, "Filters" if self.group_type in FILTER_GROUPS else "Channels", binary_map)

    def _block_view(self, param: Tensor) -> tuple[int, int, int]:
        """``[super blocks, weights of a block, positions]``."""
        repetitions, depth = self.block_shape or (1, 1)
        size = repetitions * depth
        groups = (param.shape[0] * param.shape[1] if depth > 1 else param.shape[0]) // size
        return groups, size, param.numel() // (groups * size)


def _check_no_kwargs(group_type: str, kwargs: Mapping[str, Any] | None) -> None:
    if kwargs:
        message = f"kwargs {sorted(kwargs)} mean nothing to group_type {group_type!r}; block_shape belongs to Blocks"
        raise ArgumentError(message, argument=("kwargs",))


def _block_shape(kwargs: Mapping[str, Any]) -> tuple[int, int]:
    example = "kwargs: {block_shape: [1, 8, 1, 1]} (repetitions, depth, height, width)"
    for key in kwargs:
        if key != "block_shape":
            raise ArgumentError(f"kwargs has only block_shape, got {key!r}", argument=("kwargs", key))
    if "block_shape" not in kwargs:
        raise ArgumentError(f"group_type Blocks needs {example}", argument=("kwargs",))
    shape = kwargs["block_shape"]
    argument = ("kwargs", "block_shape")
    if isinstance(shape, str) or not isinstance(shape, Sequence) or len(shape) != 4:
        raise ArgumentError(f"block_shape has four numbers, like {example}; got {shape!r}", argument=argument)
    if any(isinstance(size, bool) or not isinstance(size, int) or size < 1 for size in shape):
        raise ArgumentError(f"block_shape holds whole numbers from 1, got {list(shape)!r}", argument=argument)
    if shape[2] != 1 or shape[3] != 1:
        raise ArgumentError(f"only blocks of height and width 1 exist, got {list(shape)!r}", argument=argument)
    return shape[0], shape[1]
