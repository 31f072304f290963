"""Masks that keep or drop whole groups of weights by comparing each group's magnitude with a threshold (layer 1).

Group types: ``2D`` (kernels), ``3D`` or ``Filters`` (dimension 0), ``Channels`` (dimension 1), ``Rows`` and ``Cols``
(of a matrix as it is stored) and ``4D`` (the whole tensor is one group).
"""

from __future__ import annotations

import torch
from torch import Tensor

from distiller_ng.errors import ArgumentError, did_you_mean
from distiller_ng.ops.norms import l2_norm

__all__ = [
    "GROUP_TYPES",
    "THRESHOLD_CRITERIA",
    "GroupThresholdMixin",
    "expand_binary_map",
    "group_threshold_binary_map",
    "group_threshold_mask",
    "threshold_mask",
]

# Least and most dimensions of the weights that have such groups.
GROUP_TYPES = {
    "2D": (3, 5),
    "Rows": (2, 2),
    "Cols": (2, 2),
    "3D": (2, 5),
    "Filters": (2, 5),
    "Channels": (2, 5),
    "4D": (1, 5),
}
THRESHOLD_CRITERIA = ("Mean_Abs", "Mean_L1", "L1", "Mean_L2", "L2", "Max")


def threshold_mask(weights: Tensor, threshold: float) -> Tensor:
    """Keep single values with ``|w| > threshold``; in the dtype of ``weights``."""
    return torch.gt(weights.detach().abs(), threshold).to(weights.dtype)


def group_threshold_binary_map(
    param: Tensor, group_type: str, threshold: float | Tensor, threshold_criteria: str
) -> Tensor:
    """One value for each group, in ``param``'s dtype: 1 where the group's magnitude exceeds ``threshold``, else 0.

    Criteria: ``Mean_Abs`` = ``Mean_L1`` (mean of |w|), ``L1`` (sum of |w|), ``L2`` (Euclidean norm), ``Mean_L2``
    (L2 divided by the number of elements), ``Max`` (largest |w|).

    >>> group_threshold_binary_map(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), "Rows", 2.0, "Max")
    tensor([0., 1.])

    Raises :class:`ArgumentError` for an unknown group type or criterion, or a weight without such groups.
    """
    groups = _as_groups(param.detach(), group_type)
    return torch.gt(_magnitudes(groups, threshold_criteria), threshold).to(param.dtype)


def group_threshold_mask(
    param: Tensor,
    group_type: str,
    threshold: float | Tensor,
    threshold_criteria: str,
    binary_map: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """``(mask of param's shape, binary_map)``; a ``binary_map`` that is given is only expanded.

    With ``4D`` the mask is all ones or all zeros: a layer below the threshold is removed as a whole.
    """
    if binary_map is None:
        binary_map = group_threshold_binary_map(param, group_type, threshold, threshold_criteria)
    return expand_binary_map(param, group_type, binary_map), binary_map


def expand_binary_map(param: Tensor, group_type: str, binary_map: Tensor) -> Tensor:
    """Give every element of a group its group's value: a mask of ``param``'s shape and dtype.

    >>> expand_binary_map(torch.zeros(2, 3), "Channels", torch.tensor([1.0, 0.0, 1.0]))
    tensor([[1., 0., 1.],
            [1., 0., 1.]])

    Raises :class:`ArgumentError` when the map does not have one value for each group.
    """
    _check_group_type(param, group_type)
    shape = _map_shape(param, group_type)
    if binary_map.numel() != shape.numel():
        raise ArgumentError(
            f"{group_type} groups of a weight of shape {tuple(param.shape)} need {shape.numel()} map values, "
            f"got {binary_map.numel()}"
        )
    values = binary_map.to(device=param.device, dtype=param.dtype).reshape(shape)
    return values.expand(param.shape).contiguous()


class GroupThresholdMixin:
    """Adds :meth:`group_threshold_mask` to a class, for code written against Distiller's mixin."""

    def group_threshold_mask(
        self, param: Tensor, group_type: str, threshold: float | Tensor, threshold_criteria: str
    ) -> Tensor:
        """The mask alone of :func:`group_threshold_mask`."""
        return group_threshold_mask(param, group_type, threshold, threshold_criteria)[0]


def _map_shape(param: Tensor, group_type: str) -> torch.Size:
    """The map's shape with ones where it is broadcast, so that it expands to ``param``'s shape."""
    grouped = {"2D": (0, 1), "Rows": (0,), "3D": (0,), "Filters": (0,), "Cols": (1,), "Channels": (1,), "4D": ()}
    dims = grouped[group_type]
    return torch.Size(size if dim in dims else 1 for dim, size in enumerate(param.shape))


def _as_groups(param: Tensor, group_type: str) -> Tensor:
    """View or copy as ``[groups, elements of a group]``."""
    _check_group_type(param, group_type)
    if group_type == "4D":
        return param.reshape(1, -1)
    if group_type == "2D":
        return param.flatten(2).flatten(0, 1)
    return (param.transpose(0, 1) if group_type in ("Cols", "Channels") else param).flatten(1)


def _magnitudes(groups: Tensor, criteria: str) -> Tensor:
    if criteria in ("Mean_Abs", "Mean_L1"):
        return groups.abs().mean(dim=1)
    if criteria == "L1":
        return groups.abs().sum(dim=1)
    if criteria == "L2":
        return l2_norm(groups)
    if criteria == "Mean_L2":
        return l2_norm(groups) / groups.shape[1]
    if criteria == "Max":
        return groups.abs().amax(dim=1)
    raise ArgumentError(
        f"unknown threshold_criteria {criteria!r}. {did_you_mean(str(criteria), THRESHOLD_CRITERIA)}",
        argument=("threshold_criteria",),
    )


def _check_group_type(param: Tensor, group_type: str) -> None:
    if group_type not in GROUP_TYPES:
        raise ArgumentError(
            f"unknown group type {group_type!r}. {did_you_mean(str(group_type), GROUP_TYPES)}",
            argument=("group_type",),
        )
    least, most = GROUP_TYPES[group_type]
    if not least <= param.dim() <= most:
        allowed = str(least) if least == most else f"{least} to {most}"
        raise ArgumentError(
            f"group type {group_type!r} needs a weight of {allowed} dimensions, got shape {tuple(param.shape)}",
            argument=("group_type",),
        )
