"""Reports under Distiller's module name (re-exports)."""

from distiller_ng.reports import (
    attributes_summary,
    attributes_summary_tbl,
    connectivity_summary,
    connectivity_summary_verbose,
    connectivity_tbl_summary,
    create_png,
    draw_img_classifier_to_file,
    draw_model_to_file,
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
    "connectivity_summary",
    "connectivity_summary_verbose",
    "connectivity_tbl_summary",
    "create_png",
    "draw_img_classifier_to_file",
    "draw_model_to_file",
    "masks_sparsity_tbl_summary",
    "model_performance_summary",
    "model_performance_tbl_summary",
    "model_summary",
    "weights_sparsity_summary",
    "weights_sparsity_tbl_summary",
]
