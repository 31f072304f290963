"""Group thresholding under Distiller's module name (layer 2, re-exports)."""

from distiller_ng.ops.thresholding import (
    GroupThresholdMixin,
    expand_binary_map,
    group_threshold_binary_map,
    group_threshold_mask,
    threshold_mask,
)

__all__ = [
    "GroupThresholdMixin",
    "expand_binary_map",
    "group_threshold_binary_map",
    "group_threshold_mask",
    "threshold_mask",
]
