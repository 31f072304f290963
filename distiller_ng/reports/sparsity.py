"""How sparse the weights of a model are, and how sparse a schedule's masks would make them (layer 4)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from distiller_ng.ops.weights import (
    PARAM_DIMS,
    counted_weights,
    sparsity_table,
    weights_sparsity_summary,
    weights_sparsity_tbl_summary,
)
from distiller_ng.reports.table import Table

__all__ = [
    "MaskedScheduler",
    "masks_sparsity_summary",
    "masks_sparsity_tbl_summary",
    "weights_sparsity_summary",
    "weights_sparsity_tbl_summary",
]


class MaskedScheduler(Protocol):
    """Anything with Distiller's ``zeros_mask_dict``: ``{parameter name: object with .mask}``."""

    @property
    def zeros_mask_dict(self) -> Mapping[str, Any]:
        """The maskers by parameter name."""


def masks_sparsity_summary(
    model: nn.Module, scheduler: MaskedScheduler, param_dims: Collection[int] = PARAM_DIMS
) -> Table:
    """The sparsity table of the masks, one row for each weight that counts; a weight without a mask is all ones.

    Std, Mean and Abs-Mean are the masks' own.
    """
    masks: dict[str, Tensor] = {}
    for name, weight in counted_weights(model, param_dims):
        masker = scheduler.zeros_mask_dict.get(name)
        mask = None if masker is None else masker.mask
        masks[name] = torch.ones_like(weight) if mask is None else mask
    return sparsity_table("Masks:", masks)


def masks_sparsity_tbl_summary(
    model: nn.Module, scheduler: MaskedScheduler, param_dims: Collection[int] = PARAM_DIMS
) -> str:
    """:func:`masks_sparsity_summary` as text."""
    return str(masks_sparsity_summary(model, scheduler, param_dims))
