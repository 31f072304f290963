"""Reports under Distiller's module name (re-exports)."""

from distiller_ng.reports import (
    attributes_summary,
    attributes_summary_tbl,
    masks_sparsity_tbl_summary,
    model_performance_summary,
    model_performance_tbl_summary,
    model_summary,
    weights_sparsity_summary,
    weights_sparsity_tbl_summary,
)

__all__ = [
    "attributes_summary",
    "attributes_summary_tbl",
    "masks_sparsity_tbl_summary",
    "model_performance_summary",
    "model_performance_tbl_summary",
    "model_summary",
    "weights_sparsity_summary",
    "weights_sparsity_tbl_summary",
]
