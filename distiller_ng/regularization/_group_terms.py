"""Group lasso of one weight: its penalty and its threshold mask, for every group type (layer 2).

Shapes: ``[C_o, C_i]`` for Linear, ``[C_o, C_i, *kernel]`` for convolutions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from distiller_ng.errors import ArgumentError, TargetError, did_you_mean
from distiller_ng.ops.thresholding import GROUP_TYPES, group_threshold_mask
from distiller_ng.regularization.base import check_strength

__all__ = ["GroupRegim", "GroupType", "check_group_regim", "check_groups", "group_mask", "group_penalty"]

GroupType: TypeAlias = Literal[
    "2D",
    "Rows",
    "Cols",
    "Rows+Cols",
    "Cols+Rows",
    "Channels",
    "3D",
    "Filters",
    "4D",
    "Channels+4D",
    "4D+Channels",
]
GroupRegim: TypeAlias = tuple[float, GroupType]

# Kept from Distiller: it keeps the square root of an all-zero channel differentiable.
CHANNELS_EPSILON = 1e-8

_PARTS: Mapping[str, tuple[str, ...]] = {
    "2D": ("2D",),
    "Rows": ("Rows",),
    "Cols": ("Cols",),
    "Rows+Cols": ("Rows", "Cols"),
    "Cols+Rows": ("Cols", "Rows"),
    "Channels": ("Channels",),
    "3D": ("3D",),
    "Filters": ("3D",),
    "4D": ("4D",),
    "Channels+4D": ("Channels", "4D"),
    "4D+Channels": ("4D", "Channels"),
}


def check_group_regim(target: str, regim: Any) -> None:
    """Refuse anything but ``[strength, group type]``; raises :class:`ArgumentError` with the path to the bad value."""
    path = ("reg_regims", target)
    if isinstance(regim, str) or not isinstance(regim, list | tuple) or len(regim) != 2:
        raise ArgumentError(
            f"expected [strength, group type], for example [0.0005, '3D'], got {regim!r}", argument=path
        )
    check_strength(regim[0], (*path, 0))
    if regim[1] not in _PARTS:
        raise ArgumentError(
            f"unknown group type {regim[1]!r}. {did_you_mean(str(regim[1]), _PARTS)}", argument=(*path, 1)
        )


def check_groups(name: str, parameter: Tensor, target: str, group_type: str) -> None:
    """Refuse a weight that has no such groups; raises :class:`TargetError`."""
    for part in _PARTS[group_type]:
        least, most = GROUP_TYPES[part]
        if not least <= parameter.dim() <= most:
            fitting = [kind for kind, parts in _PARTS.items() if all(_fits(parameter, p) for p in parts)]
            raise TargetError(
                f"{name!r} of shape {list(parameter.shape)} has no groups of type {group_type!r}; "
                f"types for it: {', '.join(fitting)}",
                argument=("reg_regims", target, 1),
            )


def group_penalty(param: Tensor, group_type: str, strength: float) -> Tensor:
    """``strength`` times the sum of the groups' L2 norms; two types add up. Differentiable, zero groups included.

    >>> group_penalty(torch.tensor([[3.0, 4.0], [0.0, 0.0]]), "Rows", 0.5)
    tensor(2.5000)
    """
    norms = [_norms(param, part).sum() for part in _PARTS[group_type]]
    return strength * sum(norms[1:], norms[0])


def group_mask(param: Tensor, group_type: str, strength: float, criteria: str) -> Tensor:
    """Mask that drops every group whose magnitude does not exceed ``strength``.

    With two types a value stays only if both of its groups stay. ``criteria`` is ``Max`` (largest |w| of the group)
    or ``Mean_Abs`` (mean of |w|).
    """
    masks = [group_threshold_mask(param, part, strength, criteria)[0] for part in _PARTS[group_type]]
    return masks[0] if len(masks) == 1 else masks[0] * masks[1]


def channel_norms(param: Tensor) -> Tensor:
    """``sqrt(sum(w^2) + 1e-8)`` of each input channel, ``[C_i]``."""
    return torch.sqrt(param.transpose(0, 1).flatten(1).square().sum(dim=1) + CHANNELS_EPSILON)


def _norms(param: Tensor, part: str) -> Tensor:
    """The norm of every group; at zero ``vector_norm`` has the gradient 0, so dead groups stay dead."""
    if part == "Channels":
        return channel_norms(param)
    if part == "Cols":
        return _norm(param, (0,))
    if part == "4D" and param.dim() > 1:
        # In two stages: over millions of float32 values at once vector_norm loses four digits.
        return _norm(_norm(param, tuple(range(1, param.dim()))), (0,))
    first = {"2D": 2, "Rows": 1, "3D": 1, "4D": 0}[part]
    return _norm(param, tuple(range(first, param.dim())))


def _norm(values: Tensor, dims: tuple[int, ...]) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(values, dim=dims)
    return norms


def _fits(parameter: Tensor, part: str) -> bool:
    least, most = GROUP_TYPES[part]
    return least <= parameter.dim() <= most
